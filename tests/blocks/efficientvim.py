"""EfficientViM: each mixer mixed with its input by a gate that is a sigmoid of a parameter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need, only_conv

PAPER = "2411.15241"


class Gated(nn.Module):
    """(1 - a) x + a bn(dw3x3(x)), a = sigmoid(alpha)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(1e-4 * torch.ones(channels))
        self.dwconv = depthwise_bn(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.alpha).view(1, -1, 1, 1)
        return (1 - alpha) * x + alpha * self.dwconv(x)


class EfficientViMBlock(nn.Module):
    """Two gated depthwise convolutions around a mixer, and a gated feed-forward, sharing one alpha."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(1e-4 * torch.ones(4, channels))
        self.dwconv1 = depthwise_bn(channels, 3)
        self.mixer = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())
        self.dwconv2 = depthwise_bn(channels, 3)
        self.up = conv_bn(channels, 2 * channels, 1)
        self.down = conv_bn(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.alpha).view(4, -1, 1, 1)
        x = (1 - alpha[0]) * x + alpha[0] * self.dwconv1(x)
        x = (1 - alpha[1]) * x + alpha[1] * self.mixer(x)
        x = (1 - alpha[2]) * x + alpha[2] * self.dwconv2(x)
        return (1 - alpha[3]) * x + alpha[3] * self.down(F.relu(self.up(x)))


ENTRIES = (
    Entry(
        "efficientvim_gate",
        PAPER,
        lambda: Gated(8),
        8,
        only_conv("the gate is a constant per channel; identity is the kernel's centre"),
    ),
    Entry(
        "efficientvim_block",
        PAPER,
        lambda: EfficientViMBlock(8),
        8,
        {
            "convolutions": Need(5, "two depthwise, the mixer's, up and down; non-linearities between"),
            "adds": Need(2, "two residuals around non-linearities"),
            "muls": Need(3, "x is read unscaled by a mixer and scaled by the add; 1/(1-a) may overflow"),
        },
    ),
)
