"""The few operations on kernels that the algebra needs: moving their planes, and composing them.

All of them are torch operations on float64 planes (O, K, *kernel).  Which of several ways is taken follows from
structure alone, and every way computes the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repfx.algebra.incidence import Incidence, Ints
from repfx.algebra.values import Part, Rows, Values, dilated, multiplied, spread_out, trailing, written

_REMEMBERED = 4096  # results kept of each derivation from structure


def taps(kernel: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """All positions in a kernel."""
    return itertools.product(*(range(k) for k in kernel))


def shifted(kernel: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Grow the trailing axes by zeros, `before` and `after` each axis."""
    if not any(before) and not any(after):
        return kernel
    pads = [p for b, a in zip(reversed(before), reversed(after)) for p in (b, a)]
    return F.pad(kernel, pads)


def gathered(planes: Tensor, rows: Ints) -> Tensor:
    """Rows of a tensor by numpy index."""
    return planes[torch.as_tensor(rows, device=planes.device)]


def taken(planes: Tensor | Rows, outputs: Ints, width: int) -> Tensor | Rows:
    """The planes of these outputs, in this order, and the first ones of each."""
    if isinstance(planes, Tensor) or planes.shape[1] != width:
        return gathered(written(planes), outputs)[:, :width]
    index = torch.as_tensor(outputs, device=planes.device)
    return replace(
        planes, shape=(len(outputs), *planes.shape[1:]), write=lambda part, out: planes.write(index[part], out)
    )


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
    outer: Values,
    reads: Incidence,
    inner: Values,
    via: Incidence,
    out: Incidence,
    stride: Sequence[int],
    *,
    copying: bool = False,
) -> Tensor | Rows:
    """Planes of outer(inner(x)).

    outer (O, K2, *k2) reads the middle channels by `reads`; inner (M, K1, *k1) reads the input by
    `via`; `out` = reads.after(via).  Output classes of equal shape are computed in one batch.  `copying` says that
    all numbers of the inner map are one.
    """
    one_channel, one_tap = reads.width == 1, prod(outer.shape[2:]) == 1
    if one_channel and one_tap:
        return _scaled_copies(outer, reads, inner, via, out.width)
    scaled = _scaled(reads, via) if prod(inner.shape[2:]) == 1 else None
    if scaled is not None:
        return _of_copies(outer, inner, scaled, out.width, stride, copying=copying)
    if one_channel:
        return _of_single_channels(outer, reads, inner, out.width, stride)
    return _by_blocks(outer.planes, reads, inner.planes, via, out, stride)


def _scaled_copies(outer: Values, reads: Incidence, inner: Values, via: Incidence, width: int) -> Tensor | Rows:
    """Planes where each output is one middle channel at one tap, scaled."""
    scale = outer.planes.reshape(-1, 1, *(1 for _ in inner.shape[2:]))
    if reads.one_to_one and reads.outputs == via.outputs:
        return multiplied(inner.given, scale)
    return _spread(_picked(inner.planes, reads) * scale, width)


def _of_single_channels(outer: Values, reads: Incidence, inner: Values, width: int, stride: Sequence[int]) -> Tensor:
    """Planes where each output reads one middle channel at several taps."""
    block = _picked(inner.planes, reads)  # (O, U, *k1): what each output reads
    if all(a == 1 or b == 1 for a, b in zip(outer.shape[2:], inner.shape[2:])):
        return _spread(dilated(outer.planes, stride, 2) * block, width)
    return _spread(mixed(outer.planes[:, None], block[:, None], stride)[:, 0], width)


def _picked(planes: Tensor, reads: Incidence) -> Tensor:
    """The row that each output reads first."""
    if reads.one_to_one:
        return planes[: reads.outputs]
    return gathered(planes, reads.firsts)


@dataclass(frozen=True)
class _Scaled:
    """How outputs read a map that copies and scales channels."""

    order: Ints | None  # (O or 1, K): where each read stood before the inner map; None: where it stands
    middle: Ints | None  # (O or 1, K): the middle channel of each read; None: all in order


def _of_copies(
    outer: Values, inner: Values, how: _Scaled, width: int, stride: Sequence[int], *, copying: bool
) -> Tensor | Rows:
    """Planes of an outer map of scaled copies of channels: each is scaled, and stands at another place."""
    given = outer.given if how.order is None else _reordered(outer.given, how.order)
    if not copying:
        read = inner.planes if how.middle is None else gathered(inner.planes, how.middle)
        given = multiplied(given, read.reshape(-1, outer.shape[1], *(1 for _ in stride)))
    given = spread_out(given, stride)
    return given if given.shape[1] == width else _spread(written(given), width)


def _reordered(planes: Tensor | Rows, order: Ints) -> Tensor | Rows:
    """Planes whose reads stand in another order: k of (O or 1, K) is the read that was at order[k]."""
    if isinstance(planes, Tensor):
        return _picked_reads(planes, torch.as_tensor(order, device=planes.device))
    index = torch.as_tensor(order, device=planes.device)
    each = len(index) > 1

    def write(part: Part, out: Tensor) -> None:
        out.copy_(_picked_reads(planes.read(part), index[part] if each else index))

    return replace(planes, write=write)


def _picked_reads(planes: Tensor, index: Tensor) -> Tensor:
    if prod(planes.shape[2:]) == 1:
        flat = planes.reshape(planes.shape[:2])
        return flat.gather(1, index.expand_as(flat)).reshape(planes.shape)
    if len(index) == 1:
        return planes.index_select(1, index[0])
    return planes.gather(1, index.reshape(*index.shape, *(1 for _ in planes.shape[2:])).expand_as(planes))


def _by_blocks(
    outer: Tensor, reads: Incidence, inner: Tensor, via: Incidence, out: Incidence, stride: Sequence[int]
) -> Tensor:
    """Planes of a composition in general: dense blocks of outputs that read alike."""
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


@lru_cache(_REMEMBERED)
def _scaled(reads: Incidence, via: Incidence) -> _Scaled | None:
    """How outputs read a map of one input per channel.

    None where two reads of one set are of the same input, or an inner channel reads nothing.
    """
    if via.width != 1 or reads.width < 1 or (via.sizes != 1).any():
        return None
    none = np.iinfo(np.int64).max
    inputs = np.where(reads.sets < 0, none, via.firsts[reads.sets.clip(0)])
    order = np.argsort(inputs, axis=1, kind="stable")
    ordered = np.take_along_axis(inputs, order, 1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != none)).any():
        return None
    middle = np.take_along_axis(reads.sets, order, 1).clip(0)
    in_place = np.array_equal(order, np.broadcast_to(np.arange(order.shape[1]), order.shape))
    if len(reads.sets) > 1:
        order, middle = order[reads.classes], middle[reads.classes]
    whole = np.array_equal(middle.reshape(-1), np.arange(via.outputs))
    return _Scaled(None if in_place else order, None if whole else middle)


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
