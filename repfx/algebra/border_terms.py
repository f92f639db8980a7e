"""Constants at the border: how terms unite, and what becomes of them in a composition.

A constant is one on the whole inner output, q = 0 ... (H + e) // s, and zero where the outer map pads.
On the input's grid, where q stands at q s, that is 0 <= q s <= H + e: a plane of ones of length H + e + 1,
or any length that no multiple of s tells from it (the input's own, if possible, so that terms unite).

Source: docs/algebra.md, section "Serial".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from repfx.algebra.affine import ZEROS, AffineConv, Border
from repfx.algebra.incidence import Incidence
from repfx.algebra.kernels import shifted
from repfx.algebra.values import Values, dilated


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of some tensors."""
    return reduce(torch.add, terms)


# --- terms on one plane are one term ------------------------------------------------------------------


@dataclass(frozen=True)
class United:
    """The border terms of several owners, one for each plane of ones."""

    owners: tuple[tuple[Border, ...], ...]
    borders: tuple[Border, ...]
    members: tuple[tuple[tuple[int, int], ...], ...]  # who contributes to each: (owner, index among the owner's terms)

    def contributions(self, ones: Sequence[Sequence[Tensor]]) -> Iterable[tuple[Border, list[tuple[int, Tensor]]]]:
        """Each term with the taps of those that contribute, in its own window; `ones` are the owners' taps."""
        for border, users in zip(self.borders, self.members):
            yield border, [(i, grown(ones[i][j], border, self.owners[i][j])) for i, j in users]

    def summed(self, ones: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """The taps of each term, where contributions add up."""
        return tuple(total([taps for _, taps in given]) for _, given in self.contributions(ones))


def united(owners: Sequence[Sequence[Border]]) -> United:
    """One border term per plane of ones, large enough for all windows on it."""
    groups: dict[tuple[tuple[bool, ...], tuple[int, ...]], list[tuple[int, int]]] = {}
    for i, owned in enumerate(owners):
        for j, border in enumerate(owned):
            groups.setdefault((border.free, border.longer), []).append((i, j))
    borders = tuple(_around([owners[i][j] for i, j in users]) for users in groups.values())
    return United(tuple(map(tuple, owners)), borders, tuple(map(tuple, groups.values())))


def _around(members: Sequence[Border]) -> Border:
    """The smallest window that holds those of all members, which look at one plane."""
    before = tuple(max(starts) for starts in zip(*(m.before for m in members)))
    ends = [max(k - b for k, b in pairs) for pairs in zip(*(zip(m.kernel, m.before) for m in members))]
    kernel = tuple(b + end for b, end in zip(before, ends))
    return replace(members[0], kernel=kernel, before=before)


def grown(one: Tensor, into: Border, own: Border) -> Tensor:
    """The taps (O, *kernel) of a border term, placed in a larger window."""
    lead = [b - o for b, o in zip(into.before, own.before)]
    tail = [k - before - o for k, before, o in zip(into.kernel, lead, own.kernel)]
    return shifted(one, lead, tail)


# --- the constants of a composition -----------------------------------------------------------------

_Taps = Callable[[Values, Values], Tensor]  # of the outer and the inner map


@dataclass(frozen=True)
class _Term:
    """One constant of the composition: a border term of the input's size, or (all free) a bias."""

    border: Border
    taps: _Taps  # (O, *border.kernel)

    @property
    def is_bias(self) -> bool:
        """Whether no border is seen anywhere."""
        return all(self.border.free)


@dataclass(frozen=True)
class Constants:
    """What becomes of the constants of two maps in their composition."""

    biases: tuple[_Term, ...]
    terms: tuple[_Term, ...]
    united: United

    def bias(self, v2: Values, v1: Values) -> Tensor:
        """The bias of the composition, (O,)."""
        bias = v2.bias
        for term in self.biases:
            bias = bias + term.taps(v2, v1).reshape(-1)
        return bias

    def ones(self, v2: Values, v1: Values) -> tuple[Tensor, ...]:
        """The taps of its border terms."""
        return self.united.summed([(term.taps(v2, v1),) for term in self.terms])


def constants_of(outer: AffineConv, inner: AffineConv) -> Constants:
    """The constants of outer(inner(x)): the outer map's own, and the inner map's seen through the outer planes."""
    found = [_of_outer(outer, inner, index) for index in range(len(outer.borders))]
    found += [_of_inner(outer, inner, index) for index in range(len(inner.borders))]
    if inner.biased:
        found.append(_of_bias(outer, inner))
    terms = tuple(term for term in found if not term.is_bias)
    return Constants(tuple(term for term in found if term.is_bias), terms, united([(term.border,) for term in terms]))


def _of_outer(outer: AffineConv, inner: AffineConv, index: int) -> _Term:
    border = outer.borders[index]
    moved = _along_each_axis(border, lambda stretch, axis: _on_input_grid(stretch, inner, axis))
    return _Term(moved, lambda v2, _: dilated(v2.ones[index], _spread(border, inner), 1))


def _of_inner(outer: AffineConv, inner: AffineConv, index: int) -> _Term:
    border = _along_each_axis(inner.borders[index], lambda stretch, axis: _seen_through(stretch, outer, inner, axis))

    def taps(v2: Values, v1: Values) -> Tensor:
        kernel = _summed(v2.planes, border.free, 2)
        read = _read(v1.ones[index], outer.incidence)
        out = kernel.new_zeros(len(kernel), *border.kernel)
        sizes, spread = read.shape[2:], _spread(border, inner)
        for tap in np.ndindex(*kernel.shape[2:]):
            weight = kernel[(..., *tap)].reshape(*kernel.shape[:2], *(1 for _ in sizes))
            place = tuple(slice(t * s, t * s + k) for t, s, k in zip(tap, spread, sizes))
            out[(slice(None), *place)] += (weight * read).sum(1)
        return out

    return _Term(border, taps)


def _of_bias(outer: AffineConv, inner: AffineConv) -> _Term:
    axes = inner.axes
    everywhere = Border((1,) * axes, (0,) * axes, (True,) * axes)
    border = _along_each_axis(everywhere, lambda stretch, axis: _seen_through(stretch, outer, inner, axis))

    def taps(v2: Values, v1: Values) -> Tensor:
        seen = v2.weighted(_read(v1.bias, outer.incidence))  # (O, *outer.kernel)
        return dilated(_summed(seen, border.free, 1), _spread(border, inner), 1)

    return _Term(border, taps)


def _spread(border: Border, inner: AffineConv) -> tuple[int, ...]:
    """Distance of the outer taps on the input's grid."""
    return tuple(1 if free else stride for free, stride in zip(border.free, inner.stride))


def _read(source: Tensor, reads: Incidence) -> Tensor:
    """What each output reads of one value, or some, per channel: (O or 1, K, ...)."""
    if reads.one_to_one:
        return source[: reads.outputs, None]
    if len(reads.sets) == 1 and reads.width == len(source):
        return source[None]
    rows = reads.sets if len(reads.sets) == 1 else reads.rows
    return source[torch.as_tensor(rows.clip(0), device=source.device)]


def _summed(kernel: Tensor, axes: Sequence[bool], lead: int) -> Tensor:
    """The sum over some of the spatial axes, which stay with size one."""
    done = [lead + axis for axis, wanted in enumerate(axes) if wanted and kernel.shape[lead + axis] > 1]
    return kernel.sum(done, keepdim=True) if done else kernel


# --- windows, axis by axis --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stretch:
    """The window of a border term along one axis."""

    kernel: int
    before: int
    free: bool
    longer: int


def _along_each_axis(border: Border, change: Callable[[_Stretch, int], _Stretch]) -> Border:
    """The border term whose window is changed along every axis."""
    stretches = map(_Stretch, border.kernel, border.before, border.free, border.longer)
    changed = [change(stretch, axis) for axis, stretch in enumerate(stretches)]
    kernel, before = tuple(s.kernel for s in changed), tuple(s.before for s in changed)
    free, longer = tuple(s.free for s in changed), tuple(s.longer for s in changed)
    return Border(kernel, before, free, longer)


def _seen_through(stretch: _Stretch, outer: AffineConv, inner: AffineConv, axis: int) -> _Stretch:
    """A constant of the inner map, seen through the outer planes: free where nothing is padded."""
    padded = outer.padding_mode == ZEROS and outer.pads(axis)
    if stretch.free and not padded:
        return stretch
    before, longer, stride = stretch.before, stretch.longer, inner.stride[axis]
    if stretch.free:
        tap, longer = _plane(inner, axis, 0)
        before = -tap
    kernel = stretch.kernel + (outer.kernel[axis] - 1) * stride
    return _Stretch(kernel, before + stride * outer.before[axis], False, longer)


def _on_input_grid(stretch: _Stretch, inner: AffineConv, axis: int) -> _Stretch:
    """A border term of the inner map's output size, on the grid of the inner map's input."""
    if stretch.free:
        return stretch
    tap, longer = _plane(inner, axis, stretch.longer)
    stride = inner.stride[axis]
    return _Stretch((stretch.kernel - 1) * stride + 1, stretch.before * stride - tap, False, longer)


def _plane(inner: AffineConv, axis: int, longer: int) -> tuple[int, int]:
    """(r, a): q s + r lies on a plane of length H + a exactly when q lies on one of the output's size + longer.

    That is q s <= H + end, so r = 0 and a = end + 1 do; r moves both, and what (H + end) mod s leaves moves a.
    """
    stride = inner.stride[axis]
    end = inner.extent[axis] + longer * stride
    rests = remainders(inner, axis, end)
    slack = stride - 1 - max(rests)
    least, most = end + 1 - min(rests), end + stride + slack
    length = min(max(0, least), most)
    return max(0, length - 1 - end - slack), length


def remainders(map_: AffineConv, axis: int, extent: int) -> range:
    """Possible values of (H + extent) mod stride on this axis."""
    stride = map_.stride[axis]
    if map_.multiple[axis] % stride == 0:
        return range(extent % stride, extent % stride + 1)
    return range(stride)
