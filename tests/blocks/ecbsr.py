"""ECBSR: 3x3, 1x1-3x3 and 1x1 followed by scaled Sobel and Laplacian filters, the 1x1's bias as border."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import bordered
from tests.blocks.entry import Entry, only_conv

SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class Expand(nn.Module):
    """1x1 to twice the channels, a border of its bias, then a valid 3x3."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(in_channels, 2 * in_channels, 1)
        self.outer = nn.Conv2d(2 * in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(bordered(self.inner(x), self.inner.bias, 1))  # type: ignore[arg-type]


class Edge(nn.Module):
    """1x1, a border of its bias, then a fixed 3x3 filter times a learned scale per channel."""

    def __init__(self, in_channels: int, out_channels: int, mask: tuple[tuple[float, ...], ...]) -> None:
        super().__init__()
        self.inner = nn.Conv2d(in_channels, out_channels, 1)
        self.scale = nn.Parameter(torch.randn(out_channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.randn(out_channels))
        self.register_buffer("mask", torch.tensor(mask).expand(out_channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        y = bordered(self.inner(x), self.inner.bias, 1)  # type: ignore[arg-type]
        return F.conv2d(y, self.scale * self.mask, self.bias, groups=len(self.scale))


class EdgeOrientedBlock(nn.Module):
    """prelu(3x3 + expand + sobel x + sobel y + laplacian + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(channels, channels, 3, padding=1)
        self.expand = Expand(channels, channels)
        self.sobel_x = Edge(channels, channels, SOBEL_X)
        self.sobel_y = Edge(channels, channels, SOBEL_Y)
        self.laplacian = Edge(channels, channels, LAPLACIAN)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.expand(x) + self.sobel_x(x) + self.sobel_y(x) + self.laplacian(x)
        y += x
        return self.act(y)


ENTRIES = (
    Entry(
        "ecbsr",
        "10.1145/3474085.3475291",
        lambda: EdgeOrientedBlock(8),
        8,
        only_conv("each border equals the inner bias, so each branch is a 3x3 on the zero-extended input"),
    ),
)
