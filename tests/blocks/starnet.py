"""StarNet: two sibling 1x1 convolutions multiplied with each other, between two depthwise 7x7."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need


class StarBlock(nn.Module):
    """x + dw(bn(g(relu6(f1(h)) * f2(h)))), h = bn(dw(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = depthwise_bn(channels, 7)
        self.f1 = nn.Conv2d(channels, 2 * channels, 1)
        self.f2 = nn.Conv2d(channels, 2 * channels, 1)
        self.g = conv_bn(2 * channels, channels, 1)
        self.dwconv2 = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dwconv(x)
        x = F.relu6(self.f1(x)) * self.f2(x)
        return shortcut + self.dwconv2(self.g(x))


ENTRIES = (
    Entry(
        "starnet",
        "2403.19967",
        lambda: StarBlock(8),
        8,
        {
            "convolutions": Need(4, "depthwise, the siblings as one, g, depthwise; any other merge is dense 7x7"),
            "muls": Need(1, "the star: a product of two functions of the input"),
            "adds": Need(1, "residual around the star"),
        },
        open_kinds=frozenset({"splits"}),  # the siblings' halves: a split, or two slices
    ),
)
