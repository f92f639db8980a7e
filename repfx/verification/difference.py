"""The worst difference between what two models return.

Infinities must be equal in place and NaN where the original has NaN; what holds no tensor was not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repfx.errors import UserError
from repfx.verification.calls import Call, Leaf

_INFINITE = float("inf")


@dataclass
class Difference:
    """The worst difference so far."""

    error: float = 0.0
    relative: float = 0.0
    where: str = ""
    tensors: int = 0  # how many were compared
    numbers: int = 0  # how many floating-point numbers there were
    finite: int = 0  # and how many of them were finite

    def see(self, error: float, relative: float, where: str) -> None:
        """One more difference."""
        if relative >= self.relative:
            self.error, self.relative, self.where = error, relative, where

    def compare(self, call: Call, expected: Sequence[Leaf], actual: Sequence[Leaf]) -> None:
        """The outputs of one call.  Raises `UserError` where they have another structure."""
        if [place for place, _ in expected] != [place for place, _ in actual]:
            raise UserError(f"the outputs are {_listed(expected)} and {_listed(actual)}")
        for index, ((place, x), (_, y)) in enumerate(zip(expected, actual)):
            where = f"{call.name}, output {place or index}"
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                self._compare_tensors(where, x, y, call.ours)
            elif not _are_equal(x, y):
                self.see(_INFINITE, _INFINITE, f"{where}: {x!r:.40} and {y!r:.40}")

    def _compare_tensors(self, where: str, x: Tensor, y: Tensor, ours: bool) -> None:
        if x.shape != y.shape:
            raise UserError(f"{where} has shape {tuple(x.shape)} and {tuple(y.shape)}")
        if x.dtype != y.dtype:
            self.see(_INFINITE, _INFINITE, f"{where}: {x.dtype} and {y.dtype}")
            return
        self.tensors += 1
        x, y = _plain(x), _plain(y)
        if x.is_floating_point():
            self._compare_numbers(where, x.double(), y.double(), ours)
        elif not torch.equal(x, y):
            self.see(1.0, 1.0, where)

    def _compare_numbers(self, where: str, x: Tensor, y: Tensor, ours: bool) -> None:
        if not x.numel():
            return
        usual = torch.isfinite(x)
        self.numbers, self.finite = self.numbers + x.numel(), self.finite + int(usual.sum())
        odd = ~usual | ~torch.isfinite(y)
        same = (x == y) | (torch.isnan(x) & torch.isnan(y))
        unlike = odd & ~same & (usual if ours else True)  # 0 / 0 of a probe of ours is whatever the last bit says
        if bool(unlike.any()):
            place = _first(unlike)
            self.see(_INFINITE, _INFINITE, f"{where} at {place}: {float(x[place])} and {float(y[place])}")
            return
        error = torch.where(odd, 0.0, (x - y).abs())
        place = _first(error == error.max())
        scale = float(torch.where(odd, 0.0, x.abs()).max())
        worst = float(error[place])
        self.see(worst, worst / scale if scale else worst, f"{where} at {place}")


def _are_equal(x: object, y: object) -> bool:
    """Whether two values of one type are equal, or the first is NaN."""
    return type(x) is type(y) and bool(x == y or x != x)


def _listed(found: Sequence[Leaf]) -> str:
    return f"({', '.join(place or 'one value' for place, _ in found[:6])}{', ...' if len(found) > 6 else ''})"


def _plain(x: Tensor) -> Tensor:
    """Dense real numbers."""
    x = x.detach()
    if x.layout is not torch.strided:
        x = x.to_dense()
    if x.is_quantized:
        x = x.dequantize()
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in where.nonzero()[0])
