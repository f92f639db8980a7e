"""RepGhost: the ghost module's concat replaced by an add of depthwise 3x3 and batch norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need


class RepGhostModule(nn.Module):
    """[relu](bn(dw3x3(h)) + bn(h)), h = [relu](bn(conv1x1(x)))."""

    def __init__(self, in_channels: int, out_channels: int, relu: bool) -> None:
        super().__init__()
        self.primary = conv_bn(in_channels, out_channels, 1)
        self.cheap = depthwise_bn(out_channels, 3)
        self.fusion = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.primary(x))
        return self.act(self.cheap(hidden) + self.fusion(hidden))


class RepGhostBottleneck(nn.Module):
    """Two modules and a shortcut; with stride 2 a depthwise convolution on both paths."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.ghost1 = RepGhostModule(in_channels, middle, relu=True)
        self.down = depthwise_bn(middle, 3, stride=stride) if stride > 1 else nn.Identity()
        self.ghost2 = RepGhostModule(middle, out_channels, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                depthwise_bn(in_channels, 3, stride=stride), conv_bn(in_channels, out_channels, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.ghost2(self.down(self.ghost1(x))) + self.shortcut(x)


class RepGhostStage(nn.Module):
    """A bottleneck, then a relu, so that the shortcut's end is inside a network."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepGhostBottleneck(8, 12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.block(x))


ENTRIES = (
    Entry(
        "repghost",
        "2211.06088",
        RepGhostStage,
        8,
        {
            "convolutions": Need(4, "two 1x1 and two depthwise; 1x1 then depthwise would be a dense 3x3"),
            "adds": Need(1, "shortcut around the relus"),
        },
    ),
    Entry(
        "repghost_stride",
        "2211.06088",
        lambda: RepGhostBottleneck(8, 12, 12, stride=2),
        8,
        {
            "convolutions": Need(7, "a merge of any 1x1 with its depthwise neighbour would be a dense 3x3"),
            "adds": Need(1, "shortcut around the relus"),
        },
    ),
)
