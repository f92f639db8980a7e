"""FastViT: RepMixer, its convolutional feed-forward, and the large-kernel patch embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need, only_conv
from tests.blocks.mobileone import MobileOneBlock

PAPER = "2303.14189"


class RepMixer(nn.Module):
    """x + scale (mixer(x) - norm(x)); both are over-parameterised depthwise blocks."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = MobileOneBlock(channels, channels, kernel, groups=channels, copies=1, act=False)
        self.layer_scale = nn.Parameter(1e-5 * torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))


class RepMixerBlock(nn.Module):
    """RepMixer, then x + scale fc2(gelu(fc1(bn(dw7x7(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels)
        self.conv = depthwise_bn(channels, 7)
        self.fc1 = nn.Conv2d(channels, 2 * channels, 1)
        self.fc2 = nn.Conv2d(2 * channels, channels, 1)
        self.layer_scale = nn.Parameter(1e-5 * torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale * self.fc2(F.gelu(self.fc1(self.conv(x))))


class PatchEmbed(nn.Module):
    """gelu(bn(dw7x7 s2) + bn(dw3x3 s2)) with twice the channels, then an over-parameterised 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = conv_bn(channels, 2 * channels, 7, stride=2, groups=channels)
        self.small = conv_bn(channels, 2 * channels, 3, stride=2, groups=channels)
        self.pointwise = MobileOneBlock(2 * channels, 2 * channels, 1, copies=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(F.gelu(self.large(x) + self.small(x)))


ENTRIES = (
    Entry(
        "fastvit_repmixer",
        PAPER,
        lambda: RepMixer(8),
        8,
        only_conv("identity, batch norm and layer scale are taps of the depthwise kernel"),
    ),
    Entry(
        "fastvit_block",
        PAPER,
        lambda: RepMixerBlock(8),
        8,
        {
            "convolutions": Need(4, "mixer; dw7x7 (read beside the residual); fc1 and fc2 around a GELU"),
            "adds": Need(1, "residual around a GELU"),
        },
    ),
    Entry(
        "fastvit_patch_embed",
        PAPER,
        lambda: PatchEmbed(8),
        8,
        {"convolutions": Need(2, "grouped 7x7 and 1x1 with a GELU between them")},
    ),
)
