"""What is left of a map where a channel order, a slice, or one scale and shift is all that it does."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelOrder(nn.Module):
    """y[:, o] = x[:, index[o]]: a permutation, slice or repetition of channels along `dim`."""

    index: Tensor

    def __init__(self, index: Tensor, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) to (B, len(index), ...), or along the last axis where dim is -1."""
        return torch.index_select(x, self.dim, self.index)

    def extra_repr(self) -> str:
        return f"{len(self.index)}, dim={self.dim}"


class ChannelSlice(nn.Module):
    """y = x[:, start:stop], a view: the channels that a branch reads, along `dim`."""

    def __init__(self, start: int, stop: int, dim: int = 1) -> None:
        super().__init__()
        self.start, self.stop, self.dim = start, stop, dim

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) to (B, stop - start, ...), or along the last axis where dim is -1."""
        return x.narrow(self.dim, self.start, self.stop - self.start)

    def extra_repr(self) -> str:
        return f"{self.start}:{self.stop}, dim={self.dim}"


class ScaleShift(nn.Module):
    """y = x * scale + shift, one value per channel along `dim`: what is left of a lone batch norm.

    Without a shift (None) it is a scale alone.
    """

    shift: nn.Parameter | None

    def __init__(self, scale: Tensor, shift: Tensor | None, axes: int) -> None:
        super().__init__()
        self.axes = axes
        self.scale = nn.Parameter(scale)
        self.register_parameter("shift", None if shift is None else nn.Parameter(shift))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *axes); with no axes, channels are last."""
        shape = (-1, *(1,) * self.axes)
        scaled = x * self.scale.view(shape)
        return scaled if self.shift is None else scaled + self.shift.view(shape)
