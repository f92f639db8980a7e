"""OREPA: the branches live in the weight, an expression of parameters evaluated in every forward."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.entry import Entry, only_conv


def frequency_priors(channels: int, kernel: int) -> Tensor:
    """Cosine patterns, one per channel: (channels, kernel, kernel)."""
    at = torch.arange(kernel) + 0.5
    half = channels // 2
    rows = [torch.cos(at * (i + 1) * math.pi / kernel)[:, None].expand(kernel, kernel) for i in range(half)]
    columns = [row.T for row in rows]
    return torch.stack([*rows, *columns])


class OREPA(nn.Module):
    """relu(bn(conv(x, W))), W = sum over branches of scale[branch] * W_branch."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.origin = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.average = nn.Parameter(torch.randn(out_channels, in_channels))
        self.prior = nn.Parameter(torch.randn(out_channels, in_channels))
        self.inner = nn.Parameter(torch.zeros(in_channels, in_channels))
        self.outer = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.pointwise = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.depthwise = nn.Parameter(torch.randn(in_channels * 4, 1, kernel, kernel))
        self.separable = nn.Parameter(torch.randn(out_channels, in_channels * 4, 1, 1))
        self.scales = nn.Parameter(torch.ones(6, out_channels))
        self.register_buffer("uniform", torch.full((kernel, kernel), 1.0 / kernel**2))
        self.register_buffer("priors", frequency_priors(out_channels, kernel))
        self.register_buffer("identity", torch.eye(in_channels))
        self.norm = nn.BatchNorm2d(out_channels)

    def weight(self) -> Tensor:
        """The (O, C, k, k) weight of the one convolution."""
        scale = self.scales
        o, c4, k = self.origin.shape[0], self.depthwise.shape[0], self.kernel
        deep = self.depthwise.view(c4 // 4, 4, k, k)
        wide = self.separable.view(o, c4 // 4, 4)
        point = F.pad(self.pointwise, [k // 2] * 4)
        return (
            torch.einsum("oihw,o->oihw", self.origin, scale[0])
            + torch.einsum("oi,hw,o->oihw", self.average, self.uniform, scale[1])
            + torch.einsum("oi,ohw->oihw", self.prior, self.priors) * scale[2].view(-1, 1, 1, 1)
            + torch.einsum("ti,othw,o->oihw", self.inner + self.identity, self.outer, scale[3])
            + point * scale[4].view(-1, 1, 1, 1)
            + torch.einsum("imhw,oim,o->oihw", deep, wide, scale[5])
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(F.conv2d(x, self.weight(), None, 1, self.kernel // 2)))


ENTRIES = (
    Entry(
        "orepa",
        "2204.00826",
        lambda: OREPA(8, 12),
        8,
        only_conv("the weight depends on parameters alone, so it is a constant"),
    ),
)
