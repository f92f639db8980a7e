"""ACNet: a square kernel, and horizontal and vertical strips on its cross, summed."""

from __future__ import annotations

from torch import Tensor, nn

from tests.blocks.common import conv_bn
from tests.blocks.entry import Entry, only_conv


class AsymmetricBlock(nn.Module):
    """bn(conv kxk) + bn(conv kx1) + bn(conv 1xk)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.square = conv_bn(in_channels, out_channels, kernel, stride=stride)
        self.vertical = conv_bn(in_channels, out_channels, (kernel, 1), stride=stride)
        self.horizontal = conv_bn(in_channels, out_channels, (1, kernel), stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.square(x) + self.vertical(x) + self.horizontal(x)


ENTRIES = (
    Entry(
        "acnet",
        "1908.03930",
        lambda: AsymmetricBlock(8, 10),
        8,
        only_conv("the strips are rows and columns of the square kernel"),
    ),
    Entry(
        "acnet_stride",
        "1908.03930",
        lambda: AsymmetricBlock(8, 10, kernel=5, stride=2),
        8,
        only_conv("equal strides and centres, so the strips are taps of the square kernel"),
    ),
)
