"""ConvNeXt's downsampling as RepNeXt's ablation modifies it: a grouped 7x7, then a residual mixer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.entry import Entry, Need

PAPER = "2406.16004"


class ModifiedA(nn.Module):
    """y + mlp(norm(y)), y = dw7x7 s2(x): the shortcut bypasses norm and mixer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        out = 2 * channels
        self.dwconv = nn.Conv2d(channels, out, 7, 2, 3, groups=channels)
        self.norm = nn.LayerNorm(out, eps=1e-6)
        self.pwconv1 = nn.Linear(out, 2 * out)
        self.pwconv2 = nn.Linear(2 * out, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x)
        z = self.norm(y.permute(0, 2, 3, 1))
        z = self.pwconv2(F.gelu(self.pwconv1(z)))
        return y + z.permute(0, 3, 1, 2)


class ModifiedB(nn.Module):
    """y + mlp(y), y = norm(dw7x7 s2(x)): the shortcut bypasses the mixer only."""

    def __init__(self, channels: int, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        out = 2 * channels
        self.dwconv = nn.Conv2d(channels, out, 7, 2, 3, groups=channels)
        self.norm = norm(out, eps=1e-6)
        self.pwconv1 = nn.Linear(out, 2 * out)
        self.pwconv2 = nn.Linear(2 * out, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x)
        if isinstance(self.norm, nn.LayerNorm):
            y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            y = self.norm(y)
        z = self.pwconv2(F.gelu(self.pwconv1(y.permute(0, 2, 3, 1))))
        return y + z.permute(0, 3, 1, 2)


BEST = {
    "convolutions": Need(1, "the strided 7x7"),
    "linears": Need(2, "a GELU between them"),
    "adds": Need(1, "residual around a GELU"),
}
LAYOUT = frozenset({"permutations"})
ENTRIES = (
    Entry("convnext_modified_a", PAPER, lambda: ModifiedA(8), 8, BEST, open_kinds=LAYOUT),
    Entry("convnext_modified_b", PAPER, lambda: ModifiedB(8), 8, BEST, open_kinds=LAYOUT),
    Entry(
        "convnext_modified_b_batchnorm",
        PAPER,
        lambda: ModifiedB(8, nn.BatchNorm2d),
        8,
        BEST,
        open_kinds=LAYOUT | {"adds"},  # torch computes a linear on permuted tokens as a product and an add
    ),
)
