"""MixConv: channels split into groups with depthwise kernels of growing size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.entry import Entry, only_conv


class MixConv(nn.Module):
    """relu(bn(cat(dw3x3, dw5x5, dw7x7, dw9x9)))."""

    def __init__(self, channels: int, stride: int = 1, kernels: tuple[int, ...] = (3, 5, 7, 9)) -> None:
        super().__init__()
        part = channels // len(kernels)
        self.convs = nn.ModuleList(nn.Conv2d(part, part, k, stride, k // 2, groups=part, bias=False) for k in kernels)
        self.bn = nn.BatchNorm2d(channels)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.part, 1)
        return F.relu(self.bn(torch.cat([conv(p) for conv, p in zip(self.convs, parts)], 1)))


REASON = "every part is depthwise and fits into a 9x9"
ENTRIES = (
    Entry("mixconv", "1907.09595", lambda: MixConv(16), 16, only_conv(REASON)),
    Entry("mixconv_stride", "1907.09595", lambda: MixConv(16, stride=2), 16, only_conv(REASON)),
)
