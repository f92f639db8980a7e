"""merge_siblings: convolutions that read the same value are one, and a split.

    Given:  q = conv1(x); k = conv2(x); v = conv3(x)      Result: y = conv(x); q, k, v = slices of y

Exact always, for maps of one kernel window, stride and padding.  The slices are views.  Declined where the
windows differ (the smaller kernels would be padded with zeros) and where the objective sees no gain: "macs"
stacks a biased and an unbiased map apart, because the stack would have a bias for both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from repfx.algebra import AffineConv, Kind, concat, form_of, select, times
from repfx.decline import Decline, Reason
from repfx.graph import ANY, Affine, LiftedGraph, Op
from repfx.rewriting import Proposal, Shared

Group = list[tuple[fx.Node, AffineConv]]
_DENSE = (Kind.CONV, Kind.LINEAR, Kind.TRANSPOSED)


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
            for part in (group, *_apart(group)):
                if len(part) > 1 and all(lifted.alive(reader) for reader, _ in part):
                    yield _stacked(self.name, lifted, node, part)
        if len(windows) > 1:
            first, second = (group[0] for group in windows[:2])
            yield Decline(Reason.COST, _other_window(first[1], second[1]), lifted.place(second[0]))


def _apart(group: Group) -> list[Group]:
    """Those with and those without a bias, where there are both."""
    biased = [sibling for sibling in group if sibling[1].biased]
    plain = [sibling for sibling in group if not sibling[1].biased]
    return [biased, plain] if biased and plain else []


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
    groups: dict[Hashable, Group] = {}
    for reader in sorted(lifted.readers(node)):
        map_ = _dense(lifted, reader, node)
        if map_ is not None:
            groups.setdefault(_window(map_), []).append((reader, map_))
    return list(groups.values())


def _dense(lifted: LiftedGraph, reader: fx.Node, node: fx.Node) -> AffineConv | None:
    """The map of a reader that mixes all channels of the value and has no border term of its own."""
    op = lifted.op(reader) if lifted.alive(reader) else None
    if not isinstance(op, Affine) or op.source is not node:
        return None
    map_ = lifted.own_map(reader)
    if map_ is None or map_.borders:
        return None
    form = form_of(map_)
    return map_ if form.kind in _DENSE and form.groups == 1 and form.gather is None else None


def _window(map_: AffineConv) -> Hashable:
    """What maps must have in common to be one convolution."""
    window = (map_.axes, map_.zoom, map_.kernel, map_.before, map_.stride, map_.extent)
    return (*window, map_.padding_mode, map_.support.tobytes())
