"""RepLKNet: a large depthwise kernel with a small one beside it, between two 1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need


class RepLKBlock(nn.Module):
    """x + pw2(relu(large(h) + small(h))), h = relu(pw1(bn(x)))."""

    def __init__(self, channels: int, kernel: int = 13, small: int = 5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.pw1 = nn.Sequential(conv_bn(channels, channels, 1), nn.ReLU())
        self.large = depthwise_bn(channels, kernel)
        self.small = depthwise_bn(channels, small)
        self.act = nn.ReLU()
        self.pw2 = conv_bn(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pw1(self.norm(x))
        return torch.add(x, self.pw2(self.act(self.large(hidden) + self.small(hidden))))


ENTRIES = (
    Entry(
        "replknet",
        "2203.06717",
        lambda: RepLKBlock(8),
        8,
        {
            "convolutions": Need(3, "1x1, large kernel and 1x1, a relu between each two"),
            "adds": Need(1, "residual around the relus"),
        },
    ),
)
