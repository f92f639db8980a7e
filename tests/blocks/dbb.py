"""Diverse Branch Block: kxk, 1x1, 1x1-kxk and 1x1-average, the inner batch norm padding with its own
response to zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import bordered, conv_bn
from tests.blocks.entry import Entry, only_conv

PAPER = "2103.13425"


def response_to_zero(norm: nn.BatchNorm2d) -> Tensor:
    """What the batch norm makes of a zero: (C,)."""
    return norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[arg-type]


class BNAndPad(nn.Module):
    """Batch norm, then a border of what the batch norm would have made of zeros."""

    def __init__(self, channels: int, width: int, spelling: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.width = width
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        value, p = response_to_zero(self.norm), self.width
        if self.spelling == "assign":
            return bordered(self.norm(x), value, p)
        value = value.view(1, -1, 1, 1)
        return F.pad(self.norm(x) - value, (p, p, p, p)) + value


class IdentityPlus1x1(nn.Module):
    """A 1x1 convolution whose weight is stored as its difference from the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros(channels, channels, 1, 1))
        self.register_buffer("identity", torch.eye(channels)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.difference + self.identity)


class DiverseBranchBlock(nn.Module):
    """relu(kxk + 1x1 + (1x1, pad, kxk) + (1x1, pad, average)), a batch norm after every convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, spelling: str = "assign") -> None:
        super().__init__()
        self.origin = conv_bn(in_channels, out_channels, kernel)
        self.pointwise = conv_bn(in_channels, out_channels, 1)
        self.serial = nn.Sequential(
            IdentityPlus1x1(in_channels),
            BNAndPad(in_channels, kernel // 2, spelling),
            nn.Conv2d(in_channels, out_channels, kernel, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.average = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            BNAndPad(out_channels, kernel // 2, spelling),
            nn.AvgPool2d(kernel, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.origin(x)
        out += self.pointwise(x)
        out += self.average(x)
        out += self.serial(x)
        return self.act(out)


ENTRIES = (
    Entry(
        "dbb",
        PAPER,
        lambda: DiverseBranchBlock(8, 12),
        8,
        only_conv("the border equals the batch norm's shift, so each chain sees a zero-extended input"),
    ),
    Entry(
        "dbb_shifted_pad",
        PAPER,
        lambda: DiverseBranchBlock(8, 12, kernel=5, spelling="shift"),
        8,
        only_conv("pad(y - c) + c is a border of value c, and c is the batch norm's shift"),
    ),
)
