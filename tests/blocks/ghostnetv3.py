"""GhostNetV3: ghost module with over-parameterised branches, gated by decoupled fully connected attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn, depthwise_bn
from tests.blocks.entry import Entry, Need
from tests.blocks.mobileone import MobileOneBlock

PAPER = "2404.11202"


class GhostModule(nn.Module):
    """cat(h, cheap(h)), h = relu(sum of 1x1 branches); `attention` gates the result."""

    def __init__(self, in_channels: int, out_channels: int, attention: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.primary = MobileOneBlock(in_channels, half, 1)
        self.cheap = MobileOneBlock(half, half, 3, groups=half)
        self.attention = None
        if attention:
            self.attention = nn.Sequential(
                conv_bn(in_channels, out_channels, 1),
                depthwise_bn(out_channels, (1, 5)),
                depthwise_bn(out_channels, (5, 1)),
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.primary(x)
        out = torch.cat([hidden, self.cheap(hidden)], dim=1)
        if self.attention is None:
            return out
        gate = torch.sigmoid(self.attention(F.avg_pool2d(x, kernel_size=2, stride=2)))
        return out * F.interpolate(gate, size=(out.shape[-2], out.shape[-1]), mode="nearest")


CAT = Need(1, "both halves end in a relu")
ENTRIES = (
    Entry(
        "ghostnetv3",
        PAPER,
        lambda: GhostModule(8, 16, attention=False),
        8,
        {"convolutions": Need(2, "1x1 and depthwise with a relu between them"), "concats": CAT},
    ),
    Entry(
        "ghostnetv3_attention",
        PAPER,
        lambda: GhostModule(8, 16, attention=True),
        8,
        {
            "convolutions": Need(4, "1x1 and depthwise; in the gate a 1x1, and 1x5 with 5x1 as one 5x5"),
            "border_terms": Need(1, "the 5x1 zero-pads the 1x5's batch-norm shift"),
            "concats": CAT,
            "muls": Need(1, "the gate depends on the input"),
        },
        sizes=((14, 14), (7, 9), (16, 5), (4, 4), (2, 3), (2, 2)),
    ),
)
