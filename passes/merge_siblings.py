"""merge_siblings: convolutions that read the same value are one, and a split.

    Given:  q = conv1(x); k = conv2(x); v = conv3(x)      Result: y = conv(x); q, k, v = slices of y

Exact always, for maps of one kernel window, stride and padding.  The slices are views.  Declined where the
windows differ (the smaller kernels would be padded with zeros) and where the objective sees no gain: "macs"
stacks a biased and an unbiased map apart, because the stack would have a bias for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from repfx.algebra import AffineConv, Kind, concat, form_of, select, times
from repfx.decline import Decline, Reason
from repfx.graph import ANY, Affine, LiftedGraph, Op
from repfx.rewriting import Proposal, Shared

Group = list[tuple[fx.Node, AffineConv]]


@dataclass(frozen=True)
class MergeSiblings:
    """Stack the convolutions or linears of one value."""

    name: str = "merge_siblings"
    about: tuple[type[Op], ...] = ANY
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """All readers of one window; where together they cost more, those with and those without a bias."""
        windows = _alike(lifted, node)
        for group in windows:
            apart = [[m for m in group if m[1].biased is biased] for biased in (True, False)]
            for part in (group, *(part for part in apart if len(part) < len(group))):
                if len(part) > 1 and all(lifted.alive(reader) for reader, _ in part):
                    yield _stacked(self.name, lifted, node, part)
        if len(windows) > 1:
            first, second = (group[0] for group in windows[:2])
            yield Decline(Reason.COST, _other_window(first[1], second[1]), lifted.place(second[0]))


def _other_window(one: AffineConv, other: AffineConv) -> str:
    def told(map_: AffineConv) -> str:
        return f"{times(map_.kernel)} of stride {times(map_.stride)}, padded by {times(map_.before)}"

    return f"is {told(other)}, its sibling {told(one)}: one convolution has one window"


def _stacked(rule: str, lifted: LiftedGraph, node: fx.Node, group: Group) -> Proposal | Decline:
    stacked = concat([map_ for _, map_ in group])
    if isinstance(stacked, Decline):
        return stacked.at(lifted.place(group[0][0]))
    replacements, start = [], 0
    for reader, map_ in group:
        part = np.arange(start, start + map_.out_channels)
        replacements.append((reader, Shared(stacked, node, select(stacked.out_channels, part, map_.axes))))
        start += map_.out_channels
    return Proposal(rule, tuple(replacements), tuple(reader for reader, _ in group))


def _alike(lifted: LiftedGraph, node: fx.Node) -> list[Group]:
    """Readers of a value that are dense maps, grouped by their window."""
    groups: dict[tuple[object, ...], Group] = {}
    for reader in sorted(lifted.readers(node)):
        op = lifted.op(reader) if lifted.alive(reader) else None
        if not isinstance(op, Affine) or op.axes is None or op.source is not node:
            continue
        map_ = lifted.map_of(reader, op.axes)
        if isinstance(map_, Decline):
            continue
        form = form_of(map_)
        if (
            form.kind not in (Kind.CONV, Kind.LINEAR, Kind.TRANSPOSED)
            or form.groups != 1
            or form.gather is not None
            or map_.borders
        ):
            continue
        key = (
            map_.axes,
            map_.zoom,
            map_.kernel,
            map_.before,
            map_.stride,
            map_.extent,
            map_.padding_mode,
            map_.support.tobytes(),
        )
        groups.setdefault(key, []).append((reader, map_))
    return list(groups.values())
