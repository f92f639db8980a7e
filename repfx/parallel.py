"""Maps side by side: sums, concatenations, and the border terms of both.

    add(a, b)(x) = a(x) + b(x)          concat([a, b])(x) = [a(x), b(x)]

Exact iff strides are equal, output sizes are equal for every input size (equal `extent`), and at most
one padding mode is in use.  The support is the union of the supports, never an approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repfx.affine import ZEROS, AffineConv, Border, by_structure, home, moved, times, transposed_padding
from repfx.decline import Decline, Reason
from repfx.incidence import Incidence, Ints
from repfx.values import Values, row_wise, scattered, shifted


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
    kernel, _, align = _common(parts)
    borders, sources = united([part.borders for part in parts])

    def rule(values: Sequence[Values]) -> Values:
        values = moved(values)
        places = [
            None if part.incidence.same(incidence) else part.incidence.positions(incidence) for part in parts
        ]  # fmt: skip
        device = home(values)

        def total(rows: slice) -> Tensor:
            planes = None
            for i, v in enumerate(values):
                own, where = align(i, v.rows(rows)), places[i]
                own = own if where is None else scattered(own, where[rows], incidence.width)
                planes = own if planes is None else planes + own
            assert planes is not None
            return planes

        planes = row_wise((incidence.outputs, incidence.width, *kernel), device, total)
        bias = None
        for v in values:
            bias = v.bias if bias is None else bias + v.bias
        assert bias is not None
        ones = (
            sum(
                (grown(values[i].ones[j], border, parts[i].borders[j]) for i, j in users),
                bias.new_zeros(()),
            )
            for border, users in zip(borders, sources)
        )
        return Values(planes, bias, tuple(torch.as_tensor(one) for one in ones))

    return _side_by_side(parts, incidence, borders, rule)


@by_structure
def concat(parts: Sequence[AffineConv]) -> AffineConv | Decline:
    """The outputs of all parts one after the other: same conditions as `add`, any channel counts."""
    clash = _clash(parts, "concatenates")
    if clash is not None:
        return clash
    incidence = Incidence.stacked([part.incidence for part in parts])
    _, _, align = _common(parts)
    borders, sources = united([part.borders for part in parts])

    def rule(values: Sequence[Values]) -> Values:
        values = moved(values)
        planes = []
        for i, v in enumerate(values):
            own = align(i, v.planes)
            missing = incidence.width - own.shape[1]
            if missing > 0:
                own = torch.cat([own, own.new_zeros(own.shape[0], missing, *own.shape[2:])], 1)
            planes.append(own)
        ones = []
        for border, users in zip(borders, sources):
            rows = []
            for i, v in enumerate(values):
                row = v.planes.new_zeros(parts[i].out_channels, *border.kernel)
                for k, j in users:
                    if k == i:
                        row = row + grown(v.ones[j], border, parts[i].borders[j])
                rows.append(row)
            ones.append(torch.cat(rows))
        return Values(torch.cat(planes), torch.cat([v.bias for v in values]), tuple(ones))

    copies = [part.selection for part in parts if part.selection is not None and part.is_pointwise]
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
            own=False,
            borders=borders,
            padding_mode=_mode(parts),
            multiple=_multiple(parts),
            zoom=parts[0].zoom,
            laps=any(part.laps for part in parts),
            selection=selection,
            support=_support(parts, kernel, before),
            constant_padding=any(part.constant_padding for part in parts),
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
        borders.append(Border(kernel, before, free, longer))
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


def _mode(parts: Sequence[AffineConv]) -> str:
    return next((part.padding_mode for part in parts if part.padding_mode != ZEROS), ZEROS)


def _multiple(parts: Sequence[AffineConv]) -> tuple[int, ...]:
    return tuple(lcm(*sizes) for sizes in zip(*(part.multiple for part in parts)))


def _common(
    parts: Sequence[AffineConv],
) -> tuple[tuple[int, ...], tuple[int, ...], Callable[[int, Tensor], Tensor]]:
    """Kernel and before-padding that hold the taps of all parts, and how to grow part i into them."""
    axes = range(parts[0].axes)
    before = tuple(max(part.before[i] for part in parts) for i in axes)
    end = [max(part.kernel[i] - part.before[i] for part in parts) for i in axes]
    kernel = tuple(b + e for b, e in zip(before, end))

    def align(index: int, planes: Tensor) -> Tensor:
        part = parts[index]
        lead = [b - p for b, p in zip(before, part.before)]
        tail = [k - begin - own for k, begin, own in zip(kernel, lead, part.kernel)]
        return shifted(planes, lead, tail)

    return kernel, before, align


def _support(parts: Sequence[AffineConv], kernel: Sequence[int], before: Sequence[int]) -> NDArray[np.bool_]:
    """Taps that any part uses, in the common window."""
    out = np.zeros(tuple(kernel), bool)
    for part in parts:
        place = tuple(slice(b - p, b - p + k) for b, p, k in zip(before, part.before, part.kernel))
        out[place] |= part.support
    return out
