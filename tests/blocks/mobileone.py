"""MobileOne: several copies of one convolution, a 1x1 and the identity, each with batch norm, summed."""

from __future__ import annotations

from torch import Tensor, nn

from tests.blocks.common import conv_bn
from tests.blocks.entry import Entry, Need

PAPER = "2206.04040"


class MobileOneBlock(nn.Module):
    """act(sum of `copies` bn(conv kxk) [+ bn(conv 1x1)] [+ bn(x)])."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        copies: int = 3,
        act: bool = True,
    ) -> None:
        super().__init__()
        branches = [conv_bn(in_channels, out_channels, kernel, stride=stride, groups=groups) for _ in range(copies)]
        self.branches = nn.ModuleList(branches)
        self.scale = None
        if kernel > 1:
            self.scale = conv_bn(in_channels, out_channels, 1, stride=stride, groups=groups)
        keeps = in_channels == out_channels and stride == 1
        self.skip = nn.BatchNorm2d(in_channels) if keeps else None
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = 0
        if self.skip is not None:
            out = self.skip(x)
        if self.scale is not None:
            out = self.scale(x) + out
        for branch in self.branches:
            out = out + branch(x)
        return self.act(out)


def mobileone(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 block, then pointwise block."""
    return nn.Sequential(
        MobileOneBlock(in_channels, in_channels, 3, stride, groups=in_channels),
        MobileOneBlock(in_channels, out_channels, 1),
    )


BEST = {"convolutions": Need(2, "one depthwise and one pointwise with a relu between them")}
ENTRIES = (
    Entry("mobileone", PAPER, lambda: mobileone(8, 8, 1), 8, BEST),
    Entry("mobileone_stride", PAPER, lambda: mobileone(8, 12, 2), 8, BEST),
)
