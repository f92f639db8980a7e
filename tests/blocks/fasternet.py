"""FasterNet: a dense 3x3 on a quarter of the channels, then a residual pointwise mixer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.entry import Entry, Need

PAPER = "2303.03667"


class FasterNetBlock(nn.Module):
    """x + pw2(relu(bn(pw1(cat(conv3x3(x1), x2)))))."""

    def __init__(self, channels: int, spelling: str) -> None:
        super().__init__()
        self.part = channels // 4
        self.spelling = spelling
        self.partial_conv3 = nn.Conv2d(self.part, self.part, 3, 1, 1, bias=False)
        self.pw1 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.pw2 = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def spatial(self, x: Tensor) -> Tensor:
        """The partial convolution, by concatenation or by writing into a copy."""
        if self.spelling == "split":
            x1, x2 = torch.split(x, [self.part, x.shape[1] - self.part], dim=1)
            return torch.cat((self.partial_conv3(x1), x2), 1)
        x = x.clone()
        x[:, : self.part, :, :] = self.partial_conv3(x[:, : self.part, :, :])
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(F.relu(self.norm(self.pw1(self.spatial(x)))))


CONVS = Need(3, "3x3 on a quarter; with the 1x1 it would be dense on all channels; a relu between the 1x1s")
ADDS = Need(1, "residual around a relu")
ENTRIES = (
    Entry(
        "fasternet",
        PAPER,
        lambda: FasterNetBlock(16, "split"),
        16,
        {
            "convolutions": CONVS,
            "adds": ADDS,
            "splits": Need(1, "three quarters pass by the 3x3"),
            "concats": Need(1, "the 1x1 reads both parts"),
        },
    ),
    Entry(
        "fasternet_slicing",
        PAPER,
        lambda: FasterNetBlock(16, "assign"),
        16,
        {"convolutions": CONVS, "adds": ADDS},
        open_kinds=frozenset({"splits", "concats"}),
    ),
)
