"""Maps side by side: sums, concatenations, and the border terms of both.

    add(a, b)(x) = a(x) + b(x)          concat([a, b])(x) = [a(x), b(x)]

Exact iff strides are equal, output sizes are equal for every input size (equal `extent`), and at most
one padding mode is in use.  The support is the union of the supports, never an approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repfx.algebra.affine import (
    ZEROS,
    AffineConv,
    Extension,
    by_structure,
    home,
    moved,
    times,
    transposed_padding,
)
from repfx.algebra.border_terms import United, total, united
from repfx.algebra.incidence import Incidence, Ints
from repfx.algebra.values import Part, Values, row_wise
from repfx.decline import Decline, Reason


@by_structure
def add(parts: Sequence[AffineConv]) -> AffineConv | Decline:
    """The sum of all parts."""
    counts = sorted({part.out_channels for part in parts})
    if len(counts) > 1:
        return Decline(Reason.NOT_EXACT, f"adds {counts[0]} channels to {counts[-1]} by broadcasting")
    clash = _clash(parts, "adds")
    if clash is not None:
        return clash
    incidence = reduce(Incidence.joined, [part.incidence for part in parts])
    window = _common(parts)
    borders = united([part.borders for part in parts])

    def rule(values: Sequence[Values]) -> Values:
        values = moved(values)
        planes = row_wise(window.shape(incidence), home(values), _summing(parts, values, incidence, window))
        return Values(planes, total([v.bias for v in values]), borders.summed([v.ones for v in values]))

    return _side_by_side(parts, incidence, window, borders, rule)


def _summing(
    parts: Sequence[AffineConv], values: Sequence[Values], incidence: Incidence, window: _Window
) -> Callable[[Part, Tensor], None]:
    """How some outputs of a sum are written: those of one part as they are, the others added."""
    device = home(values)
    spots = [_spot(part.incidence, incidence, device) for part in parts]
    in_place = [i for i, v in enumerate(values) if spots[i] is None and v.shape[2:] == window.kernel]
    first = min(in_place, key=lambda i: isinstance(values[i].given, Tensor), default=None)  # rows rather than tensors

    def write(rows: Part, out: Tensor) -> None:
        if first is None:
            out.zero_()
        else:
            values[first].write(rows, out)
        for i, v in enumerate(values):
            if i != first:
                _accumulate(out[(slice(None), slice(None), *window.places[i])], v.rows(rows), spots[i], rows)

    return write


@by_structure
def concat(parts: Sequence[AffineConv]) -> AffineConv | Decline:
    """The outputs of all parts one after the other: same conditions as `add`, any channel counts."""
    clash = _clash(parts, "concatenates")
    if clash is not None:
        return clash
    incidence = Incidence.stacked([part.incidence for part in parts])
    window = _common(parts)
    borders = united([part.borders for part in parts])
    starts = np.cumsum([0] + [part.out_channels for part in parts]).tolist()

    def rule(values: Sequence[Values]) -> Values:
        values = moved(values)
        planes = row_wise(window.shape(incidence), home(values), _stacking(values, starts, window))
        bias = torch.cat([v.bias for v in values])
        return Values(planes, bias, tuple(_stacked_terms(borders, values, starts, bias)))

    copies = [part.selection for part in parts if part.selection is not None]
    selection = np.concatenate(copies) if len(copies) == len(parts) else None
    return _side_by_side(parts, incidence, window, borders, rule, selection)


def _stacking(values: Sequence[Values], starts: Sequence[int], window: _Window) -> Callable[[Part, Tensor], None]:
    """How some outputs of a concatenation are written; those of part i are starts[i] to starts[i + 1]."""

    def write(rows: Part, out: Tensor) -> None:
        out.zero_()
        for i, v in enumerate(values):
            own = out[(slice(None), slice(v.shape[1]), *window.places[i])]
            if isinstance(rows, Tensor):
                here = ((rows >= starts[i]) & (rows < starts[i + 1])).nonzero()[:, 0]
                own[here] = v.rows(rows[here] - starts[i])
                continue
            begin, end, _ = rows.indices(starts[-1])
            low, high = max(begin, starts[i]), min(end, starts[i + 1])
            if low < high:
                v.write(slice(low - starts[i], high - starts[i]), own[low - begin : high - begin])

    return write


def _stacked_terms(borders: United, values: Sequence[Values], starts: Sequence[int], like: Tensor) -> Iterator[Tensor]:
    """The taps of each border term of a concatenation: zero where a part has none."""
    for border, given in borders.contributions([v.ones for v in values]):
        one = like.new_zeros(starts[-1], *border.kernel)
        for i, taps in given:
            one[starts[i] : starts[i + 1]] += taps
        yield one


def _side_by_side(
    parts: Sequence[AffineConv],
    incidence: Incidence,
    window: _Window,
    borders: United,
    rule: Callable[[Sequence[Values]], Values],
    selection: Ints | None = None,
) -> AffineConv | Decline:
    """The map in the common window of all parts, which agree in stride and size."""
    return executable(
        AffineConv(
            in_channels=parts[0].in_channels,
            incidence=incidence,
            kernel=window.kernel,
            before=window.before,
            stride=parts[0].stride,
            extent=parts[0].extent,
            biased=any(part.biased for part in parts),
            inputs=tuple(parts),
            rule=rule,
            borders=borders.borders,
            extension=Extension.shared([part.extension for part in parts]),
            multiple=_multiple(parts),
            zoom=parts[0].zoom,
            selection=selection,
            support=_support(parts, window),
        )
    )


def executable(map_: AffineConv) -> AffineConv | Decline:
    """The map, or why no transposed convolution executes it."""
    if not map_.is_zoomed:
        return map_
    if map_.borders:
        return Decline(Reason.UNSUPPORTED, "adds a border term to a transposed convolution")
    if map_.padding_mode != ZEROS:
        return Decline(Reason.UNSUPPORTED, f"{map_.padding_mode}-pads the output of a transposed convolution")
    found = transposed_padding(map_)
    return found if isinstance(found, Decline) else map_


def _clash(parts: Sequence[AffineConv], verb: str) -> Decline | None:
    for part in parts[1:]:
        fact = _difference(parts[0], part)
        if fact:
            return Decline(Reason.NOT_EXACT, f"{verb} maps {fact}")
    modes = {part.padding_mode for part in parts if any(part.pads(i) for i in range(part.axes))}
    if len(modes) > 1:
        return Decline(Reason.NOT_EXACT, f"{verb} maps with padding modes {' and '.join(sorted(modes))}")
    return None


def _difference(first: AffineConv, part: AffineConv) -> str:
    """Why two maps have no common window, or ""."""
    if part.axes != first.axes or part.in_channels != first.in_channels:
        return "of differently shaped inputs"
    if part.zoom != first.zoom:
        return f"that spread their input by {times(first.zoom)} and {times(part.zoom)}"
    if part.stride != first.stride:
        return f"of stride {times(first.stride)} and {times(part.stride)}"
    if part.extent != first.extent:
        return (
            f"whose output sizes differ: kernel {times(first.kernel)} pad {times(first.before)}, "
            f"kernel {times(part.kernel)} pad {times(part.before)}"
        )
    return ""


def _multiple(parts: Sequence[AffineConv]) -> tuple[int, ...]:
    return tuple(lcm(*sizes) for sizes in zip(*(part.multiple for part in parts)))


@dataclass(frozen=True)
class _Window:
    """The taps of several maps in one kernel."""

    kernel: tuple[int, ...]
    before: tuple[int, ...]
    places: tuple[tuple[slice, ...], ...]  # where the taps of each map stand in it

    def shape(self, incidence: Incidence) -> tuple[int, ...]:
        """Shape of the planes."""
        return incidence.outputs, incidence.width, *self.kernel


def _common(parts: Sequence[AffineConv]) -> _Window:
    """The smallest window that holds the taps of all parts."""
    axes = range(parts[0].axes)
    before = tuple(max(part.before[i] for part in parts) for i in axes)
    end = [max(part.kernel[i] - part.before[i] for part in parts) for i in axes]
    places = tuple(
        tuple(slice(b - p, b - p + k) for b, p, k in zip(before, part.before, part.kernel)) for part in parts
    )  # fmt: skip
    return _Window(tuple(b + e for b, e in zip(before, end)), before, places)


_Spot = tuple[Tensor, Tensor | None]  # where reads of a part stand among those of the sum, (O, K); which are any


def _spot(own: Incidence, wider: Incidence, device: torch.device) -> _Spot | None:
    """Where the reads of a part stand among those of the sum; None: where they are."""
    if own.same(wider):
        return None
    positions = own.positions(wider)
    places = torch.as_tensor(positions, device=device)
    return places, None if (positions >= 0).all() else places >= 0


def _accumulate(into: Tensor, own: Tensor, spot: _Spot | None, rows: Part) -> None:
    """Add the planes of some outputs of one part."""
    if spot is None:
        into.add_(own)
        return
    places = spot[0][rows]
    output = torch.arange(len(places), device=places.device)[:, None]
    if spot[1] is None:
        into.index_put_((output, places), own, accumulate=True)
        return
    valid = spot[1][rows]
    into.index_put_((output.expand_as(places)[valid], places[valid]), own[valid], accumulate=True)


def _support(parts: Sequence[AffineConv], window: _Window) -> NDArray[np.bool_]:
    """Taps that any part uses, in the common window."""
    out = np.zeros(window.kernel, bool)
    for part, place in zip(parts, window.places):
        out[place] |= part.support
    return out
