"""RepVGG: 3x3 and 1x1 convolutions and the identity, each behind its own batch norm, summed."""

from __future__ import annotations

from torch import Tensor, nn

from tests.blocks.common import conv_bn
from tests.blocks.entry import Entry, Need, only_conv

PAPER = "2101.03697"


class RepVGGBlock(nn.Module):
    """relu(bn(conv3x3(x)) + bn(conv1x1(x)) [+ bn(x)])."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = conv_bn(in_channels, out_channels, 3, stride=stride, groups=groups)
        self.pointwise = conv_bn(in_channels, out_channels, 1, stride=stride, groups=groups)
        keeps = stride == 1 and in_channels == out_channels
        self.identity = nn.BatchNorm2d(in_channels) if keeps else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = 0 if self.identity is None else self.identity(x)
        return self.act(self.dense(x) + self.pointwise(x) + shortcut)


ENTRIES = (
    Entry(
        "repvgg",
        PAPER,
        lambda: RepVGGBlock(8, 8),
        8,
        only_conv("1x1 and identity are taps of the 3x3; a relu follows"),
    ),
    Entry(
        "repvgg_groups",
        PAPER,
        lambda: RepVGGBlock(12, 12, groups=3),
        12,
        only_conv("all branches share the group pattern; the identity lies inside it"),
    ),
    Entry(
        "repvgg_stride",
        PAPER,
        lambda: RepVGGBlock(8, 12, stride=2),
        8,
        only_conv("3x3 pad 1 and 1x1 pad 0 with stride 2 look at the same centre"),
    ),
    Entry(
        "repvgg_pair",
        PAPER,
        lambda: nn.Sequential(RepVGGBlock(8, 12, stride=2), RepVGGBlock(12, 12)),
        8,
        {"convolutions": Need(2, "a relu stands between the two")},
    ),
)
