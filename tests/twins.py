"""Affine maps with a twin: the same map as torch's own operations compute it.

A law of the algebra is tested on `Twin`s: the algebra works on `.map`, the oracle on `.run`, and they
share no code.  Two maps are compared by running the emitted modules on a basis of the inputs (the zero
image and every impulse), so equality at a size is equality of the whole affine map at that size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from repfx.algebra import AffineConv, constructors
from repfx.emission import Target, emit
from repfx.verification.equivalence import FLOAT64_BOUND
from tests.hostile import relative_error

CONV = {0: F.linear, 1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LENGTHS = tuple((n,) for n in range(1, 17))
PLANES = ((1, 1), (5, 7), (2, 3), (8, 6), (1, 4))
DOUBLE = Target(torch.float64, requires_grad=False)


@dataclass(frozen=True, eq=False)
class Twin:
    """A map of the algebra, and torch's computation of the same."""

    map: AffineConv
    run: Callable[[Tensor], Tensor]


def conv(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    *,
    stride: Sequence[int] | int = 1,
    before: Sequence[int] | int = 0,
    after: Sequence[int] | int | None = None,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
    bias: bool = True,
    mode: str = "zeros",
    seed: int = 0,
) -> Twin:
    """A convolution (with an empty kernel: a Linear), with weights and a large bias from `seed`."""
    axes = len(kernel)

    def each(value: Sequence[int] | int) -> tuple[int, ...]:
        return (value,) * axes if isinstance(value, int) else tuple(value)

    steps, holes, first = each(stride), each(dilation), each(before)
    last = first if after is None else each(after)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs // groups, *kernel, generator=generator, dtype=torch.float64)
    shift = torch.randn(outputs, generator=generator, dtype=torch.float64) * 3 if bias else None
    flat = [p for pair in reversed(list(zip(first, last))) for p in pair]

    def run(x: Tensor) -> Tensor:
        if not axes:
            return F.linear(x, weight, shift)
        padded = F.pad(x, flat) if mode == "zeros" else F.pad(x, flat, mode=mode)
        return CONV[axes](padded, weight, shift, steps, 0, holes, groups)

    map_ = constructors.from_conv(
        lambda: weight,
        None if shift is None else lambda: shift,
        shape=weight.shape,
        groups=groups,
        stride=steps,
        before=first,
        after=last,
        dilation=holes,
        padding_mode=mode,
    )
    return Twin(map_, run)


def norm(channels: int, axes: int, seed: int = 0) -> Twin:
    """A batch norm with hostile statistics."""
    generator = torch.Generator().manual_seed(seed)
    mean, beta, gamma = (torch.randn(channels, generator=generator, dtype=torch.float64) * 2 for _ in range(3))
    variance = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.1
    scale = gamma / torch.sqrt(variance + 1e-5)
    map_ = constructors.pointwise(channels, axes, lambda: scale, lambda: beta - mean * scale)
    if axes:
        return Twin(map_, lambda x: F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, 1e-5))
    return Twin(map_, lambda x: (x - mean) * scale + beta)


def select(channels: int, indices: Sequence[int], axes: int) -> Twin:
    """A copy of channels: slice, permutation, duplicates."""
    index = torch.tensor(list(indices))
    return Twin(constructors.select(channels, index.numpy(), axes), lambda x: x.index_select(1 if axes else -1, index))


def chained(*twins: Twin) -> Callable[[Tensor], Tensor]:
    """The oracles one after the other, the first one innermost."""

    def run(x: Tensor) -> Tensor:
        for twin in twins:
            x = twin.run(x)
        return x

    return run


def applied(map_: AffineConv) -> Callable[[Tensor], Tensor]:
    """The map as its emitted modules compute it."""
    modules = [module for _, module in emit(map_, DOUBLE)]

    def run(x: Tensor) -> Tensor:
        for module in modules:
            x = module(x)
        return x

    return run


def basis(channels: int, size: Sequence[int]) -> Tensor:
    """Zero, every impulse, and all ones: a map agrees on them iff it agrees everywhere."""
    count = channels * prod(size)
    flat = torch.cat([torch.zeros(1, count), torch.eye(count), torch.ones(1, count)]).double()
    return flat.reshape(-1, channels, *size)


def value(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """The result, or None where torch refuses this size."""
    try:
        with torch.no_grad():
            return run(x)
    except (RuntimeError, ValueError):
        return None


def disagreement(
    expected: Callable[[Tensor], Tensor],
    actual: Callable[[Tensor], Tensor],
    channels: int,
    sizes: Iterable[Sequence[int]] = PLANES,
) -> tuple[int, str]:
    """(sizes that `expected` accepts, the first one where `actual` is different, in words)."""
    tried = 0
    for size in sizes:
        x = basis(channels, size)
        want = value(expected, x)
        if want is None:
            continue
        tried += 1
        got = value(actual, x)
        if got is None:
            return tried, f"size {tuple(size)}: refused"
        if got.shape != want.shape:
            return tried, f"size {tuple(size)}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
        error = relative_error(want, got)
        if not error <= FLOAT64_BOUND:
            return tried, f"size {tuple(size)}: relative error {error:.1e}"
    return tried, ""


def assert_computes(
    map_: object,
    expected: Callable[[Tensor], Tensor],
    sizes: Iterable[Sequence[int]] = PLANES,
    about: object = "",
) -> None:
    """The map is no refusal, and its emitted modules compute `expected` at every size that accepts."""
    assert isinstance(map_, AffineConv), f"{about}: {map_}"
    tried, wrong = disagreement(expected, applied(map_), map_.in_channels, sizes)
    assert not wrong, f"{about}: {wrong}"
    assert tried, f"{about}: no size is accepted, nothing was compared"
