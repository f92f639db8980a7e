"""Maps side by side: sums, concatenations, and the border terms of both.

    add(a, b)(x) = a(x) + b(x)          concat([a, b])(x) = [a(x), b(x)]

Exact iff strides are equal, output sizes are equal for every input size (equal `extent`), and at most
one padding mode is in use.  The support is the union of the supports, never an approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repfx.algebra.affine import (
    ZEROS,
    AffineConv,
    Border,
    Extension,
    by_structure,
    home,
    moved,
    times,
    transposed_padding,
)
from repfx.algebra.incidence import Incidence, Ints
from repfx.algebra.kernels import shifted
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
    incidence = parts[0].incidence
    for part in parts[1:]:
        incidence = incidence.joined(part.incidence)
    kernel, _, windows = _common(parts)
    borders, sources = united([part.borders for part in parts])

    def rule(values: Sequence[Values]) -> Values:
        values = moved(values)
        device = home(values)
        spots = [_spot(part.incidence, incidence, device) for part in parts]
        alike = [i for i, v in enumerate(values) if spots[i] is None and v.shape[2:] == kernel]
        first = next(iter(sorted(alike, key=lambda i: isinstance(values[i].given, Tensor))), None)

        def write(rows: Part, out: Tensor) -> None:
            if first is None:
                out.zero_()
            else:
                values[first].write(rows, out)
            for i, v in enumerate(values):
                if i != first:
                    _accumulate(out[(slice(None), slice(None), *windows[i])], v.rows(rows), spots[i], rows)

        planes = row_wise((incidence.outputs, incidence.width, *kernel), device, write)
        ones = tuple(
            total([grown(values[i].ones[j], border, parts[i].borders[j]) for i, j in users])
            for border, users in zip(borders, sources)
        )
        return Values(planes, total([v.bias for v in values]), ones)

    return _side_by_side(parts, incidence, borders, rule)


@by_structure
def concat(parts: Sequence[AffineConv]) -> AffineConv | Decline:
    """The outputs of all parts one after the other: same conditions as `add`, any channel counts."""
    clash = _clash(parts, "concatenates")
    if clash is not None:
        return clash
    incidence = Incidence.stacked([part.incidence for part in parts])
    kernel, _, windows = _common(parts)
    borders, sources = united([part.borders for part in parts])
    starts = np.cumsum([0] + [part.out_channels for part in parts]).tolist()

    def rule(values: Sequence[Values]) -> Values:
        values = moved(values)

        def write(rows: Part, out: Tensor) -> None:
            out.zero_()
            for i, v in enumerate(values):
                own = out[(slice(None), slice(v.shape[1]), *windows[i])]
                if isinstance(rows, Tensor):
                    here = ((rows >= starts[i]) & (rows < starts[i + 1])).nonzero()[:, 0]
                    own[here] = v.rows(rows[here] - starts[i])
                    continue
                begin, end, _ = rows.indices(incidence.outputs)
                low, high = max(begin, starts[i]), min(end, starts[i + 1])
                if low < high:
                    v.write(slice(low - starts[i], high - starts[i]), own[low - begin : high - begin])

        planes = row_wise((incidence.outputs, incidence.width, *kernel), home(values), write)
        bias = torch.cat([v.bias for v in values])
        ones = []
        for border, users in zip(borders, sources):
            one = bias.new_zeros(incidence.outputs, *border.kernel)
            for i, j in users:
                one[starts[i] : starts[i + 1]] += grown(values[i].ones[j], border, parts[i].borders[j])
            ones.append(one)
        return Values(planes, bias, tuple(ones))

    copies = [part.selection for part in parts if part.selection is not None]
    selection = np.concatenate(copies) if len(copies) == len(parts) else None
    return _side_by_side(parts, incidence, borders, rule, selection)


def _side_by_side(
    parts: Sequence[AffineConv],
    incidence: Incidence,
    borders: tuple[Border, ...],
    rule: Callable[[Sequence[Values]], Values],
    selection: Ints | None = None,
) -> AffineConv | Decline:
    """The map in the common window of all parts, which agree in stride and size."""
    kernel, before, _ = _common(parts)
    return executable(
        AffineConv(
            in_channels=parts[0].in_channels,
            incidence=incidence,
            kernel=kernel,
            before=before,
            stride=parts[0].stride,
            extent=parts[0].extent,
            biased=any(part.biased for part in parts),
            inputs=tuple(parts),
            rule=rule,
            borders=borders,
            extension=Extension.shared([part.extension for part in parts]),
            multiple=_multiple(parts),
            zoom=parts[0].zoom,
            selection=selection,
            support=_support(parts),
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


def united(
    owners: Sequence[Sequence[Border]],
) -> tuple[tuple[Border, ...], tuple[tuple[tuple[int, int], ...], ...]]:
    """One border term per plane of ones, large enough for all windows on it.

    Returns the terms and, for each, who contributes: pairs (owner, index among the owner's terms).
    """
    groups: dict[tuple[tuple[bool, ...], tuple[int, ...]], list[tuple[int, int]]] = {}
    for i, owned in enumerate(owners):
        for j, border in enumerate(owned):
            groups.setdefault((border.free, border.longer), []).append((i, j))
    borders = []
    for (free, longer), users in groups.items():
        members = [owners[i][j] for i, j in users]
        axes = range(len(free))
        before = tuple(max(m.before[a] for m in members) for a in axes)
        kernel = tuple(before[a] + max(m.kernel[a] - m.before[a] for m in members) for a in axes)
        borders.append(Border(kernel, before, free, longer, any(m.filled for m in members)))
    return tuple(borders), tuple(tuple(users) for users in groups.values())


def grown(one: Tensor, into: Border, own: Border) -> Tensor:
    """The taps (O, *kernel) of a border term, placed in a larger window."""
    lead = [b - o for b, o in zip(into.before, own.before)]
    tail = [k - before - o for k, before, o in zip(into.kernel, lead, own.kernel)]
    return shifted(one, lead, tail)


def _clash(parts: Sequence[AffineConv], verb: str) -> Decline | None:
    first = parts[0]
    for part in parts[1:]:
        if part.axes != first.axes or part.in_channels != first.in_channels:
            return Decline(Reason.NOT_EXACT, f"{verb} maps of differently shaped inputs")
        if part.zoom != first.zoom:
            fact = f"{verb} maps that spread their input by {times(first.zoom)} and {times(part.zoom)}"
            return Decline(Reason.NOT_EXACT, fact)
        if part.stride != first.stride:
            return Decline(Reason.NOT_EXACT, f"{verb} maps of stride {times(first.stride)} and {times(part.stride)}")
        if part.extent != first.extent:
            return Decline(
                Reason.NOT_EXACT,
                f"{verb} maps whose output sizes differ: kernel {times(first.kernel)} pad "
                f"{times(first.before)}, kernel {times(part.kernel)} pad {times(part.before)}",
            )
    modes = {part.padding_mode for part in parts if any(part.pads(i) for i in range(part.axes))}
    if len(modes) > 1:
        return Decline(Reason.NOT_EXACT, f"{verb} maps with padding modes {' and '.join(sorted(modes))}")
    return None


def _multiple(parts: Sequence[AffineConv]) -> tuple[int, ...]:
    return tuple(lcm(*sizes) for sizes in zip(*(part.multiple for part in parts)))


def _common(
    parts: Sequence[AffineConv],
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[slice, ...]]]:
    """Kernel and before-padding that hold the taps of all parts, and where those of each part stand in them."""
    axes = range(parts[0].axes)
    before = tuple(max(part.before[i] for part in parts) for i in axes)
    end = [max(part.kernel[i] - part.before[i] for part in parts) for i in axes]
    kernel = tuple(b + e for b, e in zip(before, end))
    windows = [
        tuple(slice(b - p, b - p + k) for b, p, k in zip(before, part.before, part.kernel)) for part in parts
    ]  # fmt: skip
    return kernel, before, windows


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of some tensors."""
    return reduce(torch.add, terms)


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


def _support(parts: Sequence[AffineConv]) -> NDArray[np.bool_]:
    """Taps that any part uses, in the common window."""
    kernel, _, windows = _common(parts)
    out = np.zeros(kernel, bool)
    for part, window in zip(parts, windows):
        out[window] |= part.support
    return out
