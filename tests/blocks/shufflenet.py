"""ShuffleNetV2: half of the channels pass by, then both halves are shuffled together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need

PAPER = "1807.11164"


def channel_shuffle(x: Tensor, groups: int = 2) -> Tensor:
    """Interleave `groups` blocks of channels."""
    B, C, H, W = x.shape
    return x.view(B, groups, C // groups, H, W).transpose(1, 2).contiguous().view(B, C, H, W)


def branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """1x1, relu, depthwise 3x3, 1x1, relu, with batch norms."""
    return nn.Sequential(
        conv_bn(in_channels, out_channels, 1),
        nn.ReLU(inplace=True),
        depthwise_bn(out_channels, 3, stride=stride),
        conv_bn(out_channels, out_channels, 1),
        nn.ReLU(inplace=True),
    )


class Unit(nn.Module):
    """shuffle(cat(x1, branch(x2)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch2 = branch(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch2(x2)), dim=1))


class DownUnit(nn.Module):
    """shuffle(cat(branch1(x), branch2(x))), both with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(
            depthwise_bn(channels, 3, stride=2), conv_bn(channels, channels, 1), nn.ReLU(inplace=True)
        )
        self.branch2 = branch(channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), dim=1))


def followed(unit: nn.Module, channels: int) -> nn.Sequential:
    """The unit, then the 1x1 convolution that ends the network's features."""
    return nn.Sequential(unit, conv_bn(channels, 12, 1), nn.ReLU())


DENSE = "a merge of a 1x1 with its depthwise neighbour would be a dense 3x3"
ENTRIES = (
    Entry(
        "shufflenet_v2",
        PAPER,
        lambda: followed(Unit(8), 8),
        8,
        {
            "convolutions": Need(4, DENSE),
            "splits": Need(1, "half of the input passes by a relu"),
            "concats": Need(1, "the last 1x1 reads both halves"),
        },
    ),
    Entry(
        "shufflenet_v2_down",
        PAPER,
        lambda: followed(DownUnit(8), 16),
        8,
        {"convolutions": Need(6, DENSE), "concats": Need(1, "the last 1x1 reads both branches")},
    ),
    Entry(
        "shufflenet_v2_bare",
        PAPER,
        lambda: Unit(8),
        8,
        {
            "convolutions": Need(3, DENSE),
            "splits": Need(1, "half of the input passes by a relu"),
            "concats": Need(1, "the output holds both halves"),
        },
        open_kinds=frozenset({"permutations"}),  # one, however it is spelled: it interleaves input and relu
    ),
)
