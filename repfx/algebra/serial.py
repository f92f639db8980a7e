"""Maps one after the other: compose(outer, inner)(x) = outer(inner(x)).

Stride s1 s2, pad p1 + s1 p2 per side, kernel (k2 - 1) s1 + k1; the merged kernel is the true
convolution of the two.  Where the outer map zero-pads, it reads zeros beyond the inner map's output,
while the merged kernel would read whatever the inner kernel sees there.  So it is exact iff, on every
axis that is padded, no inner window evaluated outside the inner output touches the image.  The inner
map's constants (bias, border terms) become border terms; where nothing is padded, they stay a bias.

A constant is one on the whole inner output, q = 0 ... (H + e) // s, and zero where the outer map pads.
On the input's grid, where q stands at q s, that is 0 <= q s <= H + e: a plane of ones of length H + e + 1,
or any length that no multiple of s tells from it (the input's own, if possible, so that terms unite).

Source: docs/algebra.md, section "Serial".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repfx.algebra.affine import REMEMBERED, ZEROS, AffineConv, Border, by_structure, moved, times
from repfx.algebra.incidence import Incidence
from repfx.algebra.kernels import composed
from repfx.algebra.parallel import executable, grown, total, united
from repfx.algebra.values import Values, dilated
from repfx.decline import Decline, Reason


def compose(outer: AffineConv, inner: AffineConv) -> AffineConv | Decline:
    """outer after inner, or why that is no single convolution."""
    return _composed((outer, inner))


@by_structure
def _composed(parts: Sequence[AffineConv]) -> AffineConv | Decline:
    outer, inner = parts
    if outer.axes != inner.axes:
        return Decline(Reason.NOT_EXACT, f"chains maps over {inner.axes} and {outer.axes} spatial axes")
    if outer.in_channels != inner.out_channels:
        fact = f"reads {outer.in_channels} channels where {inner.out_channels} are produced"
        return Decline(Reason.NOT_EXACT, fact)
    refused = _refusal(outer, inner)
    if refused is not None:
        return refused
    terms = _constants(outer, inner)
    bordered = [term for term in terms if not all(term.border.free)]
    borders, members = united([[term.border] for term in bordered])
    incidence = outer.incidence.after(inner.incidence)
    copying = inner.selection is not None

    def rule(values: Sequence[Values]) -> Values:
        v2, v1 = moved(values)
        planes = composed(v2, outer.incidence, v1, inner.incidence, incidence, inner.stride, copying=copying)
        bias = v2.bias
        for term in terms:
            if all(term.border.free):
                bias = bias + term.taps(v2, v1, outer, inner).reshape(-1)
        taps = [term.taps(v2, v1, outer, inner) for term in bordered]
        ones = []
        for border, users in zip(borders, members):
            ones.append(total([grown(taps[i], border, bordered[i].border) for i, _ in users]))
        return Values(planes, bias, tuple(ones))

    selection = None
    if outer.selection is not None and inner.selection is not None:
        selection = inner.selection[outer.selection]
    stride = inner.stride
    return executable(
        AffineConv(
            in_channels=inner.in_channels,
            incidence=incidence,
            kernel=tuple((k2 - 1) * s + k1 for k2, s, k1 in zip(outer.kernel, stride, inner.kernel)),
            before=tuple(b1 + s * b2 for b1, s, b2 in zip(inner.before, stride, outer.before)),
            stride=tuple(s1 * s2 for s1, s2 in zip(stride, outer.stride)),
            extent=tuple(e1 + s * (1 + e2) for e1, s, e2 in zip(inner.extent, stride, outer.extent)),
            biased=outer.biased or inner.biased,
            inputs=(outer, inner),
            rule=rule,
            borders=borders,
            extension=outer.extension.of(inner.extension),
            multiple=_multiple(outer, inner),
            selection=selection,
            support=_support(outer, inner),
            zoom=outer.zoom if outer.is_zoomed else inner.zoom,
        )
    )


def _refusal(outer: AffineConv, inner: AffineConv) -> Decline | None:
    if outer.is_zoomed and not inner.is_pointwise:
        return Decline(Reason.NOT_EXACT, "is a transposed convolution of a map that is not per-pixel")
    if outer.is_zoomed and (inner.biased or inner.borders):
        fact = "is a transposed convolution of a shifted value; the shift reaches the gaps between the pixels nowhere"
        return Decline(Reason.NOT_EXACT, fact)
    if inner.is_zoomed and any(s != 1 for s in outer.stride):
        return Decline(Reason.UNSUPPORTED, "strides over the output of a transposed convolution")
    if outer.padding_mode != ZEROS:
        return _extended_otherwise(outer, inner)
    if inner.padding_mode != ZEROS and any(outer.pads(i) for i in range(outer.axes)):
        return Decline(Reason.NOT_EXACT, f"zero-pads the output of a {inner.padding_mode}-padded map")
    for axis in range(outer.axes):
        windows = [(inner.kernel[axis], inner.before[axis], 0)]
        windows += [(b.kernel[axis], b.before[axis], b.longer[axis]) for b in inner.borders if not b.free[axis]]
        stride = inner.stride[axis]
        first_outside = inner.extent[axis] - max(_remainders(inner, axis, inner.extent[axis])) + stride  # minus H
        for kernel, before, longer in windows:
            touches_before = outer.before[axis] > 0 and kernel - 1 - before >= stride
            touches_after = outer.after[axis] > 0 and first_outside < before + longer
            if touches_before or touches_after:
                return _on_the_frame(outer, inner, some=not touches_before and stride > 1)
    return None


def _extended_otherwise(outer: AffineConv, inner: AffineConv) -> Decline | None:
    """Reflect, replicate or circular padding of the inner output, against that of the input.

    Where the inner map is per-pixel along the padded axis, it commutes with the extension.  Circular after
    circular: an inner map that keeps the size and wraps is periodic, like its input.
    """
    mode = outer.padding_mode
    if inner.borders:
        return Decline(Reason.NOT_EXACT, f"{mode}-pads a map whose constants fade at its own border")
    for axis in range(outer.axes):
        if inner.pads(axis) and inner.padding_mode != mode:
            return Decline(Reason.NOT_EXACT, f"{mode}-pads a {inner.padding_mode}-padded map")
        shape = (inner.kernel[axis], inner.stride[axis], inner.before[axis], inner.extent[axis])
        if not outer.pads(axis) or shape == (1, 1, 0, -1):
            continue
        keeps_size = inner.stride[axis] == 1 and inner.extent[axis] == -1
        if not (mode == inner.padding_mode == "circular" and keeps_size and _wraps(inner, axis)):
            fact = f"{mode}-pads a map that is not per-pixel; its border would be extended differently"
            return Decline(Reason.NOT_EXACT, fact)
        if not _wraps(outer, axis):
            return Decline(Reason.NOT_EXACT, f"{mode}-pads one side and crops the other")
    return None


def _wraps(map_: AffineConv, axis: int) -> bool:
    return map_.before[axis] >= 0 and map_.after[axis] >= 0


def _on_the_frame(outer: AffineConv, inner: AffineConv, *, some: bool) -> Decline:
    return Decline(
        Reason.NOT_EXACT,
        f"zero-pads a map that {'for some input sizes ' if some else ''}still sees the image there: "
        f"{times(inner.kernel)} pad {times(inner.before)} "
        f"then {times(outer.kernel)} pad {times(outer.before)} differ on the frame",
        remedy="pad the first convolution fully and the second not at all",
    )


def _remainders(map_: AffineConv, axis: int, extent: int) -> range:
    """Possible values of (H + extent) mod stride on this axis."""
    stride = map_.stride[axis]
    if map_.multiple[axis] % stride == 0:
        return range(extent % stride, extent % stride + 1)
    return range(stride)


@dataclass(frozen=True)
class _Term:
    """One constant of the composition: a border term of the input's size, or (all free) a bias."""

    border: Border
    outer_index: int = -1  # it is this border term of the outer map, or
    inner_index: int = -1  # this border term of the inner map (-1: its bias) seen through the outer planes
    spread: tuple[int, ...] = ()  # distance of the outer taps on the input's grid
    summed: tuple[bool, ...] = ()  # axes over which the outer taps are summed up

    def taps(self, v2: Values, v1: Values, outer: AffineConv, inner: AffineConv) -> Tensor:
        """The constant's taps, (O, *border.kernel)."""
        if self.outer_index >= 0:
            return dilated(v2.ones[self.outer_index], self.spread, 1)
        if self.inner_index < 0:
            taps = v2.weighted(_read(v1.bias, outer.incidence))  # (O, *outer.kernel)
            return dilated(_summed(taps, self.summed, 1), self.spread, 1)
        kernel = _summed(v2.planes, self.summed, 2)
        read = _read(v1.ones[self.inner_index], outer.incidence)
        out = kernel.new_zeros(len(kernel), *self.border.kernel)
        sizes = read.shape[2:]
        for tap in np.ndindex(*kernel.shape[2:]):
            weight = kernel[(..., *tap)].reshape(*kernel.shape[:2], *(1 for _ in sizes))
            place = tuple(slice(t * s, t * s + k) for t, s, k in zip(tap, self.spread, sizes))
            out[(slice(None), *place)] += (weight * read).sum(1)
        return out


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


def _constants(outer: AffineConv, inner: AffineConv) -> list[_Term]:
    axes = range(outer.axes)
    terms = []
    for index, border in enumerate(outer.borders):
        own = _on_input_grid(border, inner)
        spread = tuple(1 if border.free[axis] else inner.stride[axis] for axis in axes)
        terms.append(_Term(own, outer_index=index, spread=spread))
    constants = list(enumerate(inner.borders))
    if inner.biased:
        nothing = Border((1,) * outer.axes, (0,) * outer.axes, (True,) * outer.axes)
        constants.append((-1, nothing))
    padded = [outer.padding_mode == ZEROS and outer.pads(axis) for axis in axes]
    for index, constant in constants:
        kernel, before, longer = list(constant.kernel), list(constant.before), list(constant.longer)
        free = [constant.free[axis] and not padded[axis] for axis in axes]
        for axis in axes:
            if free[axis]:
                continue
            if constant.free[axis]:
                tap, longer[axis] = _plane(inner, axis, 0)
                before[axis] = -tap
            kernel[axis] += (outer.kernel[axis] - 1) * inner.stride[axis]
            before[axis] += inner.stride[axis] * outer.before[axis]
        spread = tuple(1 if free[axis] else inner.stride[axis] for axis in axes)
        border = Border(tuple(kernel), tuple(before), tuple(free), tuple(longer), constant.filled)
        terms.append(_Term(border, inner_index=index, spread=spread, summed=tuple(free)))
    return terms


def _on_input_grid(border: Border, inner: AffineConv) -> Border:
    """A border term of the inner map's output size, on the grid of the inner map's input."""
    kernel, before, longer = list(border.kernel), list(border.before), list(border.longer)
    for axis, free in enumerate(border.free):
        if free:
            continue
        tap, longer[axis] = _plane(inner, axis, border.longer[axis])
        stride = inner.stride[axis]
        kernel[axis] = (border.kernel[axis] - 1) * stride + 1
        before[axis] = border.before[axis] * stride - tap
    return Border(tuple(kernel), tuple(before), border.free, tuple(longer), border.filled)


def _plane(inner: AffineConv, axis: int, longer: int) -> tuple[int, int]:
    """(r, a): q s + r lies on a plane of length H + a exactly when q lies on one of the output's size + longer.

    That is q s <= H + end, so r = 0 and a = end + 1 do; r moves both, and what (H + end) mod s leaves moves a.
    """
    stride = inner.stride[axis]
    end = inner.extent[axis] + longer * stride
    rests = _remainders(inner, axis, end)
    slack = stride - 1 - max(rests)
    least, most = end + 1 - min(rests), end + stride + slack
    length = min(max(0, least), most)
    return max(0, length - 1 - end - slack), length


def _multiple(outer: AffineConv, inner: AffineConv) -> tuple[int, ...]:
    """What the input size must be a multiple of, where the middle size is H / stride exactly."""
    merged = []
    for axis, kept in enumerate(inner.multiple):
        stride, extent = inner.stride[axis], inner.extent[axis]
        divides = kept % stride == 0 and -stride <= extent < 0
        merged.append(lcm(kept, stride * outer.multiple[axis]) if divides else kept)
    return tuple(merged)


def _support(outer: AffineConv, inner: AffineConv) -> NDArray[np.bool_]:
    """Taps of the composition: all sums of an outer tap, spread by the stride, and an inner tap."""
    return _sums(outer.support.tobytes(), outer.kernel, inner.support.tobytes(), inner.kernel, inner.stride)


@lru_cache(REMEMBERED)
def _sums(
    outer: bytes, k2: tuple[int, ...], inner: bytes, k1: tuple[int, ...], stride: tuple[int, ...]
) -> NDArray[np.bool_]:
    own = np.frombuffer(inner, bool).reshape(k1)
    out = np.zeros(tuple((a - 1) * s + b for a, s, b in zip(k2, stride, k1)), bool)
    for tap in np.argwhere(np.frombuffer(outer, bool).reshape(k2)):
        place = tuple(slice(t * s, t * s + k) for t, s, k in zip(tap, stride, k1))
        out[place] |= own
    return out
