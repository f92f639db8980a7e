"""merge_siblings: convolutions that read the same value are one, and a split.

    Given:  q = conv1(x); k = conv2(x); v = conv3(x)      Result: y = conv(x); q, k, v = slices of y

Exact always, for maps of one kernel window, stride and padding.  The slices are views.  Declined where the
windows differ (the smaller kernels would be padded with zeros) and where the objective sees no gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from repfx.affine import AffineConv
from repfx.decline import Decline
from repfx.form import Kind, form_of
from repfx.graph import LiftedGraph
from repfx.makers import select
from repfx.ops import Affine
from repfx.parallel import concat
from repfx.protocol import Proposal, Shared


@dataclass(frozen=True)
class MergeSiblings:
    """Stack the convolutions or linears of one value."""

    name: str = "merge_siblings"
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal per group of alike readers of the value."""
        for group in _alike(lifted, node):
            maps = [map_ for _, map_ in group]
            stacked = concat(maps)
            if isinstance(stacked, Decline):
                yield stacked.at(lifted.place(group[0][0]))
                continue
            replacements, start = [], 0
            for reader, map_ in group:
                part = np.arange(start, start + map_.out_channels)
                replacements.append((reader, Shared(stacked, node, select(stacked.out_channels, part, map_.axes))))
                start += map_.out_channels
            yield Proposal(self.name, tuple(replacements), tuple(reader for reader, _ in group))


def _alike(lifted: LiftedGraph, node: fx.Node) -> list[list[tuple[fx.Node, AffineConv]]]:
    """Readers of a value that are dense maps of one window, grouped."""
    groups: dict[tuple[object, ...], list[tuple[fx.Node, AffineConv]]] = {}
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
    return [group for group in groups.values() if len(group) > 1]
