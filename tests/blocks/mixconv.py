"""MixConv: channels split into groups with depthwise kernels of growing size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.entry import Entry, only_conv


class MixConv(nn.Module):
    """relu(bn(cat(dw3x3, dw5x5, dw7x7, dw9x9)))."""

    def __init__(self, channels: int, stride: int = 1, iterate: bool = False) -> None:
        super().__init__()
        kernels = (3, 5, 7, 9)
        part = channels // len(kernels)
        self.convs = nn.ModuleList(nn.Conv2d(part, part, k, stride, k // 2, groups=part, bias=False) for k in kernels)
        self.bn = nn.BatchNorm2d(channels)
        self.parts = [part] * len(kernels)
        self.iterate = iterate

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.parts, 1)
        if self.iterate:
            mixed = [conv(part) for conv, part in zip(self.convs, parts)]
        else:
            mixed = [conv(parts[i]) for i, conv in enumerate(self.convs)]
        return F.relu(self.bn(torch.cat(mixed, 1)))


REASON = "every part is depthwise and fits into a 9x9"
ENTRIES = (
    Entry("mixconv", "1907.09595", lambda: MixConv(16), 16, only_conv(REASON)),
    Entry("mixconv_iterated", "1907.09595", lambda: MixConv(16, iterate=True), 16, only_conv(REASON)),
    Entry("mixconv_stride", "1907.09595", lambda: MixConv(16, stride=2), 16, only_conv(REASON)),
)
