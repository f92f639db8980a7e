"""The border term: what a constant before a zero-padded convolution adds, as a map of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def _version(weight: Tensor) -> object:
    return () if weight.is_cpu else object() if weight.is_inference() else (weight._version, weight.data_ptr())


def _holds(kept: Tensor, weight: Tensor) -> bool:
    """Whether the weight is still what was kept: by value where that is cheap, as `weight.data` has no version."""
    return not weight.is_cpu or torch.equal(kept, weight)


class BorderTerm(nn.Module):
    """The map that a constant before a zero-padded convolution adds: sum_t weight[t] (*) 1~.

    `1~` is one inside the image and zero outside, or one on an image that is `longer` by so many pixels on
    each axis.  The map depends on the input's size alone; along a free axis it is constant and has size one,
    so adding it is a broadcast.
    """

    longer: tuple[int, ...] = ()  # of terms pickled before there was such a thing: none is

    def __init__(
        self,
        weight: Tensor,
        before: Sequence[int],
        stride: Sequence[int],
        free: Sequence[bool],
        longer: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (O, *kernel)
        self.before = tuple(before)
        self.stride = tuple(stride)
        self.free = tuple(free)
        self.longer = tuple(longer)
        self._last: tuple[Any, Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def forward(self, inputs: Sequence[int], outputs: Sequence[int]) -> Tensor:
        """Spatial sizes of the convolution's input and output, to the map (O, *sizes or 1)."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.weight.requires_grad):
            return self._map(inputs, outputs)
        weight = self.weight
        key = (tuple(inputs), tuple(outputs), weight.dtype, weight.device, _version(weight))
        if self._last is None or self._last[0] != key or not _holds(self._last[1], weight):
            kept = weight.detach().clone() if weight.is_cpu else weight.detach()
            self._last = (key, kept, self._map(inputs, outputs))
        return self._last[2]

    def _map(self, inputs: Sequence[int], outputs: Sequence[int]) -> Tensor:
        out: Tensor = self.weight
        for axis, free in enumerate(self.free):
            if free:
                continue
            taps = torch.arange(out.shape[1 + axis], device=out.device)
            places = torch.arange(outputs[axis], device=out.device)[:, None] * self.stride[axis]
            places = places + (taps - self.before[axis])
            size = inputs[axis] + (self.longer[axis] if self.longer else 0)
            inside = ((places >= 0) & (places < size)).to(out.dtype)  # (size, kernel)
            out = torch.matmul(out.transpose(1 + axis, -1), inside.t()).transpose(1 + axis, -1)
        return out

    def extra_repr(self) -> str:
        text = f"{tuple(self.weight.shape)}, before={self.before}, stride={self.stride}, free={self.free}"
        return f"{text}, longer={self.longer}" if any(self.longer) else text
