"""Functional forms of operations that PyTorch only has in place.  A compiled graph may call them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def assign(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of x in which x[index] is `value`: what `x[index] = value` leaves in x."""
    out = x.clone()
    out[index] = value
    return out
