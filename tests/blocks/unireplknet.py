"""UniRepLKNet: a large depthwise kernel with dilated ones inside its reach; its block with SE and GRN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import depthwise_bn
from tests.blocks.entry import Entry, Need, only_conv

PAPER = "2311.15599"


class DilatedReparamBlock(nn.Module):
    """Sum of a large kernel and dilated kernels, all depthwise with batch norm."""

    def __init__(self, channels: int, kernel: int, branches: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.origin = depthwise_bn(channels, kernel)
        dilated = [depthwise_bn(channels, k, dilation=d) for k, d in branches]
        self.dilated = nn.ModuleList(dilated)

    def forward(self, x: Tensor) -> Tensor:
        out = self.origin(x)
        for branch in self.dilated:
            out = out + branch(x)
        return out


class GlobalResponseNorm(nn.Module):
    """(gamma n + 1) x + beta, n = |x| over space divided by its mean over channels; channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        spread = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = spread / (spread.mean(dim=-1, keepdim=True) + 1e-6)
        return (self.gamma * share + 1) * x + self.beta


class UniRepLKBlock(nn.Module):
    """x + gamma bn(linear(grn(gelu(linear(se(bn(dilated(x))))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = DilatedReparamBlock(channels, 7, ((5, 1), (3, 2), (3, 3)))
        self.norm = nn.BatchNorm2d(channels)
        self.se_down = nn.Conv2d(channels, channels // 4, 1)
        self.se_up = nn.Conv2d(channels // 4, channels, 1)
        self.pwconv1 = nn.Linear(channels, 2 * channels)
        self.grn = GlobalResponseNorm(2 * channels)
        self.pwconv2 = nn.Linear(2 * channels, channels, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x))
        gate = F.relu(self.se_down(F.adaptive_avg_pool2d(y, 1)))
        y = y * torch.sigmoid(self.se_up(gate))
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y.permute(0, 2, 3, 1)))))
        y = self.norm2(y.permute(0, 3, 1, 2))
        return x + self.gamma.view(1, -1, 1, 1) * y


ENTRIES = (
    Entry(
        "unireplknet_dilated",
        PAPER,
        lambda: DilatedReparamBlock(8, 13, ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))),
        8,
        only_conv("every dilated kernel lies on the grid of the 13x13"),
    ),
    Entry(
        "unireplknet_block",
        PAPER,
        lambda: UniRepLKBlock(8),
        8,
        {
            "convolutions": Need(3, "one depthwise; two in the gate, with a relu between them"),
            "linears": Need(2, "a GELU and GRN's normalisation between them"),
        },
        open_kinds=frozenset({"adds", "muls", "permutations"}),
    ),
)
