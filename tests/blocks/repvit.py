"""RepViT: token mixer bn(bn(dw3x3) + dw1x1 + x), optional SE, then a residual channel mixer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need

PAPER = "2307.09283"


class RepVGGDW(nn.Module):
    """bn(bn(dw3x3(x)) + dw1x1(x) + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)  # registered first, applied last
        self.conv = depthwise_bn(channels, 3)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm((self.conv(x) + self.conv1(x)) + x)


class SqueezeExcite(nn.Module):
    """x * sigmoid(up(relu(down(mean(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 2, 1)
        self.up = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class RepViTBlock(nn.Module):
    """y + mlp(y), y = se(token_mixer(x))."""

    def __init__(self, channels: int, squeeze: bool) -> None:
        super().__init__()
        self.token_mixer = RepVGGDW(channels)
        self.squeeze = SqueezeExcite(channels) if squeeze else nn.Identity()
        self.up = conv_bn(channels, 2 * channels, 1)
        self.down = conv_bn(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.token_mixer(x))
        return x + self.down(F.gelu(self.up(x)))


class RepViTDownsample(nn.Module):
    """A RepViT block, depthwise stride 2, pointwise, and a residual feed-forward."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.pre = RepViTBlock(channels, squeeze=False)
        self.spatial = depthwise_bn(channels, 3, stride=2)
        self.channel = conv_bn(channels, out_channels, 1)
        self.up = conv_bn(out_channels, 2 * out_channels, 1)
        self.down = conv_bn(2 * out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel(self.spatial(self.pre(x)))
        return x + self.down(F.gelu(self.up(x)))


ADD = Need(1, "residual around a GELU")
ENTRIES = (
    Entry(
        "repvit",
        PAPER,
        lambda: RepViTBlock(8, squeeze=False),
        8,
        {"convolutions": Need(3, "token mixer; up and down around a GELU"), "adds": ADD},
    ),
    Entry(
        "repvit_se",
        PAPER,
        lambda: RepViTBlock(8, squeeze=True),
        8,
        {
            "convolutions": Need(5, "token mixer, two in the gate, up and down around a GELU"),
            "adds": ADD,
            "muls": Need(1, "the gate depends on the input"),
        },
    ),
    Entry(
        "repvit_downsample",
        PAPER,
        lambda: RepViTDownsample(8, 12),
        8,
        {
            "convolutions": Need(7, "3 in the first block, 2 around each GELU; dw then 1x1 would be dense 3x3"),
            "adds": Need(2, "two residuals, each around a GELU"),
        },
    ),
)
