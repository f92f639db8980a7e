"""Res2Net: channel parts processed one after the other, each reading the one before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.common import conv_bn
from tests.blocks.entry import Entry, Need


class Bottle2neck(nn.Module):
    """relu(x + conv3(cat(y0, y1, y2, x3))), y_i = relu(bn(conv3x3(x_i + y_{i-1})))."""

    def __init__(self, channels: int, width: int = 4, scale: int = 4) -> None:
        super().__init__()
        self.width = width
        self.conv1 = conv_bn(channels, width * scale, 1)
        self.convs = nn.ModuleList(conv_bn(width, width, 3) for _ in range(scale - 1))
        self.conv3 = conv_bn(width * scale, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.conv1(x)), self.width, 1)
        done: list[Tensor] = []
        for i, conv in enumerate(self.convs):
            done.append(F.relu(conv(parts[i] + done[-1] if done else parts[i])))
        out = self.conv3(torch.cat((*done, parts[-1]), 1))
        out += x
        return F.relu(out)


ENTRIES = (
    Entry(
        "res2net",
        "1904.01169",
        lambda: Bottle2neck(8),
        8,
        {
            "convolutions": Need(5, "five convolutions with a relu between each two"),
            "splits": Need(1, "the parts pass through different numbers of relus"),
            "concats": Need(1, "the last 1x1 reads all parts"),
            "adds": Need(3, "two inside the hierarchy, one residual, all after relus"),
        },
    ),
)
