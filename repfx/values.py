"""The numbers behind an affine map, and the few kernel operations the algebra needs on them.

Everything is float64 and made of torch operations on weights only, so gradients can flow through a
fold.  `evaluate` runs a lazily built expression once per shared node, without recursion.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repfx.incidence import Incidence, Ints

_PROBING: ContextVar[bool] = ContextVar("probing", default=False)


def leaf(tensor: Tensor) -> Tensor:
    """A parameter or buffer as the algebra reads it; under `probing`, random numbers in its place."""
    if not _PROBING.get():
        return tensor
    generator = torch.Generator().manual_seed(id(tensor) % (1 << 31))
    return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5


@contextmanager
def probing() -> Iterator[None]:
    """Evaluate expressions at random parameter values: a fact that holds there is one of structure."""
    token = _PROBING.set(True)
    try:
        yield
    finally:
        _PROBING.reset(token)


_LARGE = 1 << 16  # planes of more numbers than this are not written down before they are needed


@dataclass(frozen=True)
class Rows:
    """Planes (O, K, *kernel) that are computed some outputs at a time: `read(slice)`, in float64.

    A folded weight then never exists in float64 as a whole, which saves most of the time and the memory.
    `read` gives the taps without the zeros that the dilation puts between them.
    """

    shape: tuple[int, ...]  # with the zeros
    device: torch.device
    read: Callable[[slice], Tensor]
    dilation: tuple[int, ...]


@dataclass(frozen=True)
class Values:
    """planes (O, K, *kernel), bias (O,), one (O, *kernel_i) per border term; all float64.

    The planes are given as they are or as `Rows`; `planes` writes them down, `rows` only a part of them.
    """

    given: Tensor | Rows
    bias: Tensor
    ones: tuple[Tensor, ...] = ()

    @cached_property
    def planes(self) -> Tensor:
        """All planes, (O, K, *kernel)."""
        return self.given if isinstance(self.given, Tensor) else self.rows(slice(None))

    def rows(self, part: slice) -> Tensor:
        """The planes of some outputs."""
        written = self.__dict__.get("planes", self.given)
        return written[part] if isinstance(written, Tensor) else dilated(written.read(part), written.dilation, 2)

    def taps(self, part: slice, window: Sequence[slice]) -> Tensor:
        """The planes of some outputs, cut to a window of taps; cheap where that takes the dilation's zeros out."""
        if isinstance(self.given, Rows) and any(d > 1 for d in self.given.dilation):
            ends = zip(self.given.shape[2:], window, self.given.dilation)
            if all((w.start, w.stop, w.step) == (0, k, d) for k, w, d in ends):
                return self.given.read(part)
        return self.rows(part)[(slice(None), slice(None), *window)]

    def mapped(self, change: Callable[[Tensor, slice], Tensor]) -> Tensor | Rows:
        """The planes after a change of each by itself that keeps zeros: a factor per output."""
        given = self.given
        if isinstance(given, Tensor):
            return change(given, slice(None))
        return replace(given, read=lambda part: change(given.read(part), part))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the planes."""
        return tuple(self.given.shape)

    @property
    def device(self) -> torch.device:
        """Where the planes are."""
        return self.given.device


def row_wise(
    shape: Sequence[int], device: torch.device, read: Callable[[slice], Tensor], dilation: Sequence[int] = ()
) -> Tensor | Rows:
    """Planes as rows where they are large, written down where they are small."""
    rows = Rows(tuple(shape), device, read, tuple(dilation) or (1,) * (len(shape) - 2))
    return rows if prod(rows.shape) > _LARGE else dilated(read(slice(None)), rows.dilation, 2)


class Expression(Protocol):
    """A node of the lazy evaluation: `rule` applied to the values of `inputs`."""

    @property
    def inputs(self) -> Sequence[Expression]: ...

    @property
    def rule(self) -> Callable[[Sequence[Values]], Values]: ...


def evaluate(root: Expression) -> Values:
    """Values of `root`; every shared input is computed once and dropped after its last use."""
    remaining: dict[int, int] = {}
    seen = {id(root)}
    stack = [root]
    while stack:
        node = stack.pop()
        for child in node.inputs:
            remaining[id(child)] = remaining.get(id(child), 0) + 1
            if id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
    done: dict[int, Values] = {}
    work: list[tuple[Expression, bool]] = [(root, False)]
    while work:
        node, ready = work.pop()
        if id(node) in done:
            continue
        if not ready:
            work.append((node, True))
            work.extend((child, False) for child in node.inputs if id(child) not in done)
            continue
        done[id(node)] = node.rule([done[id(child)] for child in node.inputs])
        for child in node.inputs:
            remaining[id(child)] -= 1
            if remaining[id(child)] == 0:
                del done[id(child)]
    return done[id(root)]


def taps(kernel: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """All positions in a kernel."""
    return itertools.product(*(range(k) for k in kernel))


def trailing(items: Iterable[int | slice]) -> Any:
    """An index of the last axes: [..., *items]."""
    return (..., *items)


def dilated(kernel: Tensor, dilation: Sequence[int], lead: int) -> Tensor:
    """Write dilation out: zeros between the taps of the trailing axes after `lead` leading ones."""
    if all(d == 1 for d in dilation):
        return kernel
    shape = [d * (k - 1) + 1 for k, d in zip(kernel.shape[lead:], dilation)]
    out = kernel.new_zeros(*kernel.shape[:lead], *shape)
    out[trailing(slice(None, None, d) for d in dilation)] = kernel
    return out


def shifted(kernel: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Grow the trailing axes by zeros, `before` and `after` each axis."""
    if not any(before) and not any(after):
        return kernel
    pads = [p for b, a in zip(reversed(before), reversed(after)) for p in (b, a)]
    return F.pad(kernel, pads)


def gathered(planes: Tensor, rows: Ints) -> Tensor:
    """Rows of a tensor by numpy index."""
    return planes[torch.as_tensor(rows, device=planes.device)]


def scattered(planes: Tensor, places: Ints, width: int) -> Tensor:
    """Move plane (o, k) to (o, places[o, k]) of a wider tensor; -1 entries hold nothing."""
    index = torch.as_tensor(places, device=planes.device)
    out = planes.new_zeros(planes.shape[0], width, *planes.shape[2:])
    valid = index >= 0
    rows = torch.arange(planes.shape[0], device=planes.device)[:, None].expand_as(index)[valid]
    return out.index_put((rows, index[valid]), planes[valid], accumulate=True)


def mixed(outer: Tensor, inner: Tensor, stride: Sequence[int]) -> Tensor:
    """Compose kernels: out[b,n,u] = sum_m outer[b,n,m] (*) inner[b,m,u], a true convolution.

    outer (B, N, M, *k2), inner (B, M, U, *k1); out (B, N, U, *((k2 - 1) stride + k1)).
    """
    k2, k1 = outer.shape[3:], inner.shape[3:]
    b, n, m = outer.shape[:3]
    u = inner.shape[2]
    shape = [(a - 1) * s + c for a, s, c in zip(k2, stride, k1)]
    if all(k == 1 for k in k2):
        return torch.bmm(outer.reshape(b, n, m), inner.reshape(b, m, -1)).reshape(b, n, u, *shape)
    out = outer.new_zeros(b, n, u, *shape)
    if _size(k2) <= _size(k1):
        flat = inner.reshape(b, m, -1)
        for tap in taps(k2):
            part = torch.bmm(outer[trailing(tap)], flat).reshape(b, n, u, *k1)
            out[trailing(slice(t * s, t * s + k) for t, s, k in zip(tap, stride, k1))] += part
        return out
    flat = outer.movedim(2, -1).reshape(b, -1, m)  # (B, N*k2, M)
    for tap in taps(k1):
        part = torch.bmm(flat, inner[trailing(tap)]).reshape(b, n, *k2, u).movedim(-1, 2)
        out[trailing(slice(t, t + (k - 1) * s + 1, s) for t, s, k in zip(tap, stride, k2))] += part
    return out


def composed(
    outer: Tensor, reads: Incidence, inner: Tensor, via: Incidence, out: Incidence, stride: Sequence[int]
) -> Tensor:
    """Planes of outer(inner(x)).

    outer (O, K2, *k2) reads the middle channels by `reads`; inner (M, K1, *k1) reads the input by
    `via`; `out` = reads.after(via).  Output classes of equal shape are computed in one batch.
    """
    if reads.width == 1 and all(k == 1 for k in outer.shape[2:]):
        # one middle channel at one tap: a scaled copy
        scale = outer.reshape(len(outer), 1, *(1 for _ in inner.shape[2:]))
        return _spread(gathered(inner, reads.firsts) * scale, out.width)
    order = _copied(reads, via, inner)
    if order is not None:
        factor = gathered(inner, np.take_along_axis(reads.sets, order, 1).clip(0))  # (G, K, 1, *k1)
        if len(reads.sets) > 1:
            factor, order = gathered(factor, reads.classes), order[reads.classes]
        if not np.array_equal(order, np.broadcast_to(np.arange(order.shape[1]), order.shape)):
            index = torch.as_tensor(order, device=outer.device)
            outer = outer[:, index[0]] if len(index) == 1 else outer[torch.arange(len(outer))[:, None], index]
        return _spread(dilated(outer * factor[:, :, 0], stride, 2), out.width)
    if reads.width == 1:
        block = gathered(inner, reads.firsts)[:, None]  # (O, 1, U, *k1): what each output reads
        return _spread(mixed(outer[:, None], block, stride)[:, 0], out.width)
    shape = [(a - 1) * s + c for a, s, c in zip(outer.shape[2:], stride, inner.shape[2:])]
    result = outer.new_zeros(out.outputs, out.width, *shape)
    for rows, middle, sources in _buckets(reads, via):
        places = _places(via, middle, sources)
        block = _block(inner, middle, places, sources.shape[1])
        chosen = gathered(outer, rows.reshape(-1)).reshape(*rows.shape, *outer.shape[1:])[:, :, : middle.shape[1]]
        part = mixed(chosen, block, stride)  # (B, N, U, *shape)
        index = torch.as_tensor(rows.reshape(-1), device=outer.device)
        result[index, : sources.shape[1]] = part.reshape(-1, sources.shape[1], *shape)
    return result


def _copied(reads: Incidence, via: Incidence, inner: Tensor) -> Ints | None:
    """Where the inner map copies and scales channels: in which order (G, K) each read set now reads.

    None where it does more, or where two reads of one set are of the same input.
    """
    if via.width != 1 or reads.width < 2 or any(k != 1 for k in inner.shape[2:]) or (via.sizes != 1).any():
        return None
    inputs = np.where(reads.sets < 0, np.iinfo(np.int64).max, via.firsts[reads.sets.clip(0)])
    order = np.argsort(inputs, axis=1, kind="stable")
    ordered = np.take_along_axis(inputs, order, 1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != np.iinfo(np.int64).max)
    return None if twice.any() else order


def _buckets(reads: Incidence, via: Incidence) -> Iterable[tuple[Ints, Ints, Ints]]:
    """Classes of outputs with alike shapes: rows (B, N), middle channels (B, M), inputs (B, U)."""
    order = np.argsort(reads.classes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(reads.classes, minlength=len(reads.sets)))[:-1])
    groups: dict[tuple[int, int, int], list[tuple[Ints, Ints, Ints]]] = {}
    for rows, row in zip(members, reads.sets):
        middle = row[row >= 0]
        sources = via.union(middle)
        groups.setdefault((len(rows), len(middle), len(sources)), []).append((rows, middle, sources))
    for (_, m, u), items in groups.items():
        if m and u:
            yield tuple(np.stack(column) for column in zip(*items))  # type: ignore[misc]


def _places(via: Incidence, middle: Ints, sources: Ints) -> Ints:
    """Position of each read of each middle channel among its batch's inputs: (B, M, K1), -1 padded."""
    rows = via.rows[middle]  # (B, M, K1)
    if sources.shape[1] == 1:
        return np.where(rows >= 0, 0, -1)
    places = np.empty_like(rows)
    for i, row in enumerate(rows):
        places[i] = np.where(row >= 0, np.searchsorted(sources[i], row), -1)
    return places


def _block(inner: Tensor, middle: Ints, places: Ints, width: int) -> Tensor:
    """Inner planes as a dense (B, M, U, *k1) block."""
    flat = gathered(inner, middle.reshape(-1))
    spread = scattered(flat, places.reshape(-1, places.shape[-1]), width)
    return spread.reshape(*middle.shape, width, *inner.shape[2:])


def _spread(planes: Tensor, width: int) -> Tensor:
    if planes.shape[1] == width:
        return planes
    if planes.shape[1] > width:
        return planes[:, :width]
    return torch.cat([planes, planes.new_zeros(planes.shape[0], width - planes.shape[1], *planes.shape[2:])], 1)


def _size(kernel: Sequence[int]) -> int:
    size = 1
    for k in kernel:
        size *= k
    return size
