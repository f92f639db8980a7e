"""QARepVGG: RepVGG made friendly to quantisation, one batch norm after the sum."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn
from tests.blocks.entry import Entry, only_conv


class QARepVGGBlock(nn.Module):
    """relu(bn(bn(conv3x3(x)) + conv1x1(x) + x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.dense = conv_bn(channels, channels, 3)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(sum([self.dense(x), self.pointwise(x), x])))


ENTRIES = (
    Entry(
        "qarepvgg",
        "2212.01593",
        lambda: QARepVGGBlock(8),
        8,
        only_conv("a sum of taps of the 3x3, then a batch norm"),
    ),
)
