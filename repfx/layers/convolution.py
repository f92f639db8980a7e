"""Convolutions with what torch's own lack: one-sided padding or cropping, and border terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repfx.layers.border import BorderTerm


class Extended(nn.Module):
    """A convolution with what torch's own lacks: one-sided padding or cropping, and border terms."""

    pads: tuple[tuple[int, int], ...]
    pad_mode: str
    borders: nn.ModuleList
    laps: bool = False  # circular padding that may be larger than the image

    def _setup(
        self, pads: Sequence[tuple[int, int]], pad_mode: str, borders: Sequence[BorderTerm], *, laps: bool = False
    ) -> None:
        self.pads = tuple(pads)
        self.pad_mode = pad_mode
        self.laps = laps
        self.borders = nn.ModuleList(borders)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *sizes) to (B, O, *sizes')."""
        sizes = x.shape[2:]
        if self.laps:
            x = self._wound(x)
        elif self.pads:
            flat = [p for pair in reversed(self.pads) for p in pair]
            if any(min(pair) < 0 < max(pair) for pair in self.pads):
                x = self._padded(x, [max(p, 0) for p in flat])  # first: a crop may be longer than a small image
                flat = [min(p, 0) for p in flat]
            x = self._padded(x, flat)
        y = super().forward(x)
        for border in self.borders:
            y = y + border(sizes, y.shape[2:])
        return y

    def _wound(self, x: Tensor) -> Tensor:
        """Position p of the extended image is position p mod size."""
        for axis, (before, after) in enumerate(self.pads, start=2):
            if before or after:
                places = torch.arange(-before, x.shape[axis] + after, device=x.device) % x.shape[axis]
                x = x.index_select(axis, places)
        return x

    def _padded(self, x: Tensor, flat: list[int]) -> Tensor:
        """Cropping is the same in every mode."""
        plain = self.pad_mode == "zeros" or max(flat) <= 0
        return F.pad(x, flat) if plain else F.pad(x, flat, mode=self.pad_mode)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return f"{text}, pads={self.pads}" if self.pads else text


class ExtendedConv1d(Extended, nn.Conv1d):
    """`nn.Conv1d` with one-sided padding and border terms."""


class ExtendedConv2d(Extended, nn.Conv2d):
    """`nn.Conv2d` with one-sided padding and border terms."""


class ExtendedConv3d(Extended, nn.Conv3d):
    """`nn.Conv3d` with one-sided padding and border terms."""


EXTENDED: dict[int, type[Extended]] = {1: ExtendedConv1d, 2: ExtendedConv2d, 3: ExtendedConv3d}


PLAIN: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


TRANSPOSED: dict[int, type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
