"""Maps one after the other: compose(outer, inner)(x) = outer(inner(x)).

Stride s1 s2, pad p1 + s1 p2 per side, kernel (k2 - 1) s1 + k1; the merged kernel is the true
convolution of the two.  Where the outer map zero-pads, it reads zeros beyond the inner map's output,
while the merged kernel would read whatever the inner kernel sees there.  So it is exact iff, on every
axis that is padded, no inner window evaluated outside the inner output touches the image.  The inner
map's constants (bias, border terms) become border terms; where nothing is padded, they stay a bias
(`repfx.algebra.border_terms`).

Source: docs/algebra.md, section "Serial".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import lcm

import numpy as np
from numpy.typing import NDArray

from repfx.algebra.affine import REMEMBERED, ZEROS, AffineConv, by_structure, moved, times
from repfx.algebra.border_terms import constants_of, remainders
from repfx.algebra.incidence import Ints
from repfx.algebra.kernels import composed
from repfx.algebra.parallel import executable
from repfx.algebra.values import Values
from repfx.decline import Decline, Reason


def compose(outer: AffineConv, inner: AffineConv) -> AffineConv | Decline:
    """outer after inner, or why that is no single convolution."""
    return _composed((outer, inner))


@by_structure
def _composed(parts: Sequence[AffineConv]) -> AffineConv | Decline:
    outer, inner = parts
    refused = _mismatch(outer, inner) or _refusal(outer, inner)
    if refused is not None:
        return refused
    constants = constants_of(outer, inner)
    incidence = outer.incidence.after(inner.incidence)
    copying = inner.selection is not None

    def rule(values: Sequence[Values]) -> Values:
        v2, v1 = moved(values)
        planes = composed(v2, outer.incidence, v1, inner.incidence, incidence, inner.stride, copying=copying)
        return Values(planes, constants.bias(v2, v1), constants.ones(v2, v1))

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
            borders=constants.united.borders,
            extension=outer.extension.of(inner.extension),
            multiple=_multiple(outer, inner),
            selection=_copied(outer, inner),
            support=_support(outer, inner),
            zoom=outer.zoom if outer.is_zoomed else inner.zoom,
        )
    )


def _mismatch(outer: AffineConv, inner: AffineConv) -> Decline | None:
    """Why the outer map does not read what the inner one gives."""
    if outer.axes != inner.axes:
        return Decline(Reason.NOT_EXACT, f"chains maps over {inner.axes} and {outer.axes} spatial axes")
    if outer.in_channels != inner.out_channels:
        fact = f"reads {outer.in_channels} channels where {inner.out_channels} are produced"
        return Decline(Reason.NOT_EXACT, fact)
    return None


def _copied(outer: AffineConv, inner: AffineConv) -> Ints | None:
    """Which input each output is a copy of, where all are."""
    if outer.selection is None or inner.selection is None:
        return None
    return inner.selection[outer.selection]


def _refusal(outer: AffineConv, inner: AffineConv) -> Decline | None:
    zoomed = _zoomed_otherwise(outer, inner)
    if zoomed is not None:
        return zoomed
    if outer.padding_mode != ZEROS:
        return _extended_otherwise(outer, inner)
    padded = [axis for axis in range(outer.axes) if outer.pads(axis)]
    if inner.padding_mode != ZEROS and padded:
        return Decline(Reason.NOT_EXACT, f"zero-pads the output of a {inner.padding_mode}-padded map")
    for axis in padded:
        touched = _sees_the_image(outer, inner, axis)
        if touched is not None:
            return touched
    return None


def _zoomed_otherwise(outer: AffineConv, inner: AffineConv) -> Decline | None:
    """Transposed convolutions take per-pixel maps without constants before them, and no stride behind."""
    if outer.is_zoomed and not inner.is_pointwise:
        return Decline(Reason.NOT_EXACT, "is a transposed convolution of a map that is not per-pixel")
    if outer.is_zoomed and (inner.biased or inner.borders):
        fact = "is a transposed convolution of a shifted value; the shift reaches the gaps between the pixels nowhere"
        return Decline(Reason.NOT_EXACT, fact)
    if inner.is_zoomed and any(s != 1 for s in outer.stride):
        return Decline(Reason.UNSUPPORTED, "strides over the output of a transposed convolution")
    return None


def _sees_the_image(outer: AffineConv, inner: AffineConv, axis: int) -> Decline | None:
    """Why zero padding of the inner output differs from what the inner windows see outside of it, on one axis."""
    stride = inner.stride[axis]
    first_outside = inner.extent[axis] - max(remainders(inner, axis, inner.extent[axis])) + stride  # minus H
    for kernel, before, longer in _windows(inner, axis):
        touches_before = outer.before[axis] > 0 and kernel - 1 - before >= stride
        touches_after = outer.after[axis] > 0 and first_outside < before + longer
        if touches_before or touches_after:
            return _on_the_frame(outer, inner, some=not touches_before and stride > 1)
    return None


def _windows(map_: AffineConv, axis: int) -> list[tuple[int, int, int]]:
    """(kernel, before, longer) of the kernel and of every border term that is looked at along an axis."""
    bordered = [border for border in map_.borders if not border.free[axis]]
    windows = [(border.kernel[axis], border.before[axis], border.longer[axis]) for border in bordered]
    return [(map_.kernel[axis], map_.before[axis], 0), *windows]


def _extended_otherwise(outer: AffineConv, inner: AffineConv) -> Decline | None:
    """Reflect, replicate or circular padding of the inner output, against that of the input.

    Where the inner map is per-pixel along the padded axis, it commutes with the extension.  Circular after
    circular: an inner map that keeps the size and wraps is periodic, like its input.
    """
    if inner.borders:
        fact = f"{outer.padding_mode}-pads a map whose constants fade at its own border"
        return Decline(Reason.NOT_EXACT, fact)
    for axis in range(outer.axes):
        refused = _extended_along(outer, inner, axis)
        if refused is not None:
            return refused
    return None


def _extended_along(outer: AffineConv, inner: AffineConv, axis: int) -> Decline | None:
    mode = outer.padding_mode
    if inner.pads(axis) and inner.padding_mode != mode:
        return Decline(Reason.NOT_EXACT, f"{mode}-pads a {inner.padding_mode}-padded map")
    shape = (inner.kernel[axis], inner.stride[axis], inner.before[axis], inner.extent[axis])
    if not outer.pads(axis) or shape == (1, 1, 0, -1):
        return None
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
