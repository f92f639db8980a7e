"""YOLOv7's RepConv and YOLOv9's residual bottleneck and aggregation around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn
from tests.blocks.entry import Entry, Need, only_conv


class RepConv(nn.Module):
    """silu(bn(conv3x3(x)) + bn(conv1x1(x)) [+ bn(x)])."""

    def __init__(self, in_channels: int, out_channels: int, identity: bool = False) -> None:
        super().__init__()
        self.conv1 = conv_bn(in_channels, out_channels, 3)
        self.conv2 = conv_bn(in_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(in_channels) if identity else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = 0 if self.bn is None else self.bn(x)
        return F.silu(self.conv1(x) + self.conv2(x) + shortcut)


class RepBottleneck(nn.Module):
    """x + silu(bn(conv3x3(repconv(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = RepConv(channels, channels)
        self.cv2 = conv_bn(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.cv2(self.cv1(x)))


class RepCSP(nn.Module):
    """cv3(cat(bottleneck(cv1(x)), cv2(x))): the two 1x1 convolutions read one value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1 = conv_bn(channels, half, 1)
        self.cv2 = conv_bn(channels, half, 1)
        self.cv3 = conv_bn(channels, channels, 1)
        self.m = RepBottleneck(half)

    def forward(self, x: Tensor) -> Tensor:
        a = self.m(F.silu(self.cv1(x)))
        b = F.silu(self.cv2(x))
        return F.silu(self.cv3(torch.cat((a, b), 1)))


ENTRIES = (
    Entry("yolo_repconv", "2207.02696", lambda: RepConv(8, 12), 8, only_conv("1x1 is a tap of the 3x3")),
    Entry(
        "yolo_repconv_identity",
        "2207.02696",
        lambda: RepConv(8, 8, identity=True),
        8,
        only_conv("1x1 and identity are taps of the 3x3"),
    ),
    Entry(
        "yolo_repcsp",
        "2402.13616",
        lambda: RepCSP(16),
        16,
        {
            "convolutions": Need(4, "siblings as one, two in the bottleneck, one after the concat"),
            "concats": Need(1, "the last 1x1 reads the bottleneck and the bypass"),
            "adds": Need(1, "residual around a SiLU"),
        },
        open_kinds=frozenset({"splits"}),  # the siblings' halves: a split, or two slices
    ),
)
