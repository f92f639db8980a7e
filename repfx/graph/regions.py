"""Regions: which value dominates which, and the affine map between two values.

In the graph of affine dependencies (a node that is not affine hangs below the root), the immediate
dominator of a value is the nearest earlier value through which everything it depends on passes: the
point where the branches that meet in it fork.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from repfx.algebra import AffineConv, add, compose, concat, identity, pointwise, scaled, take, without_vanishing_borders
from repfx.decline import Decline, Reason
from repfx.graph.lifted import LiftedGraph
from repfx.graph.ops import Affine, Alias, Concat, Constant, Input, Normalised, Opaque, Resampling, Sum


class Dominators:
    """Immediate dominators of all values of a graph, which stay true while it is rewritten.

    In an acyclic graph the immediate dominator of a value is the nearest common ancestor, in the dominator
    tree, of the values it reads (Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm").  A rewrite
    makes no value depend on anything new, so what dominated it still does, as long as it is there.
    """

    def __init__(self, lifted: LiftedGraph) -> None:
        self._lifted = lifted
        self._above: dict[fx.Node, fx.Node | None] = {}  # by first names; None: the root
        self._depth: dict[fx.Node, int] = {}
        for node in lifted.graph.nodes:
            self._place(node)

    def _place(self, node: fx.Node) -> None:
        first = self._lifted.first_name(node)
        sources = [self._lifted.first_name(s) for s in self._lifted.sources(node)]
        above: fx.Node | None = sources[0] if sources else None
        for source in sources[1:]:
            above = self._nearest(above, source)
        self._above[first] = above
        self._depth[first] = 1 if above is None else self._depth[above] + 1

    def _nearest(self, a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
        """The nearest common ancestor of two values."""
        while a is not b:
            if a is None or b is None:
                return None
            if self._depth[a] >= self._depth[b]:
                a = self._above[a]
            else:
                b = self._above[b]
        return a

    def of(self, node: fx.Node) -> fx.Node | None:
        """The immediate dominator; None where the value mixes values without a common origin."""
        lifted, first = self._lifted, self._lifted.first_name(node)
        if first not in self._above:  # a rewrite made it
            work = [node]
            while work:
                missing = [s for s in lifted.sources(work[-1]) if lifted.first_name(s) not in self._above]
                if missing:
                    work += missing
                else:
                    self._place(work.pop())
        above = self._above[first]
        while above is not None and not lifted.alive(lifted.current(above)):
            above = self._above[above]
        return None if above is None else lifted.current(above)

    def chain(self, node: fx.Node) -> list[fx.Node]:
        """node, its dominator, the dominator's dominator, ..."""
        out = [node]
        while (above := self.of(out[-1])) is not None:
            out.append(above)
        return out


def dominators(lifted: LiftedGraph) -> Dominators:
    """The dominators of a graph, found once.

    Who dominates whom is not noted as looked at: an answer rests on the region in between, which `between` looks at.
    """
    graph = lifted.plain
    if graph.dominators is None:
        graph.dominators = Dominators(graph)
    assert isinstance(graph.dominators, Dominators)
    return graph.dominators


@dataclass(frozen=True, eq=False)
class Region:
    """Everything between a source and a sink, and the map it computes."""

    source: fx.Node
    sink: fx.Node
    nodes: tuple[fx.Node, ...]  # in order of execution, the sink last, the source not included
    map: AffineConv
    axes: int


def between(lifted: LiftedGraph, source: fx.Node, sink: fx.Node) -> Region | Decline:
    """The region from `source` to `sink`, or why it is no single map."""
    nodes = collect(lifted, sink, {source})
    if isinstance(nodes, Decline):
        return nodes
    axes = axes_of(lifted, nodes, source)
    if isinstance(axes, Decline):
        return axes.at(lifted.place(sink))
    channels = lifted.channels(source, axes) or _channels_asked(lifted, nodes, source, axes)
    if channels is None:
        return lifted.unknown_channels(sink)
    maps: dict[fx.Node, AffineConv] = {source: identity(channels, axes)}
    for node in nodes:
        result = _step(lifted, node, maps, axes)
        if isinstance(result, Decline):
            return result.at(lifted.place(node))
        maps[node] = result
    return Region(source, sink, tuple(nodes), without_vanishing_borders(maps[sink]), axes)


def around(lifted: LiftedGraph, source: fx.Node, sink: fx.Node) -> Iterator[Region]:
    """The wider regions of a fork and its join: with the map behind it, with the one before it, with both.

    A join alone may cost what it spares, where the convolution next to it would take it up for nothing.
    The join is asked for before each: whoever takes one has replaced it.
    """
    before = dominators(lifted).of(source) if isinstance(lifted.op(source), Affine) else None
    behind = _only_reader(lifted, sink)
    for start, end in ((source, behind), (before, sink), (before, behind)):
        if start is None or end is None or not lifted.alive(sink):
            continue
        region = between(lifted, start, end)
        if isinstance(region, Region):
            yield region


def _only_reader(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The map that alone reads a value, if that is all it reads."""
    readers = lifted.readers(node)
    if len(readers) != 1:
        return None
    op = lifted.op(readers[0])
    return readers[0] if isinstance(op, Affine) and op.source is node else None


def collect(lifted: LiftedGraph, sink: fx.Node, stops: set[fx.Node]) -> list[fx.Node] | Decline:
    """Affine nodes between the stops and the sink, in order of execution."""
    seen: set[fx.Node] = set()
    order: list[fx.Node] = []
    stack: list[tuple[fx.Node, bool]] = [(sink, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node in seen or node in stops:
            continue
        seen.add(node)
        if not lifted.is_affine(node):
            return Decline(Reason.NOT_EXACT, "is no affine function of the fork", lifted.place(node))
        stack.append((node, True))
        stack.extend((s, False) for s in lifted.sources(node))
    return order


def axes_of(lifted: LiftedGraph, nodes: Sequence[fx.Node], source: fx.Node) -> int | Decline:
    """Number of spatial axes that all maps of a region share."""
    wanted = set()
    for node in nodes:
        op = lifted.op(node)
        if isinstance(op, Affine) and op.axes is not None:
            wanted.add(op.axes)
    if len(wanted) > 1:
        return Decline(Reason.NOT_EXACT, f"mixes maps over {' and '.join(map(str, sorted(wanted)))} spatial axes")
    if wanted:
        return wanted.pop()
    rank = lifted.context.shapes.rank(source)
    if rank is None or rank < 2:
        return Decline(Reason.UNKNOWN_FACT, "reads a value whose rank is not known", remedy="pass example_inputs")
    return rank - 2


def _channels_asked(lifted: LiftedGraph, nodes: Sequence[fx.Node], source: fx.Node, axes: int) -> int | None:
    """Channels of the source, from a map in the region that reads it and knows how many it reads."""
    for node in nodes:
        op = lifted.op(node)
        if isinstance(op, Affine) and op.source is source:
            map_ = op.build(axes, None)
            if isinstance(map_, AffineConv):
                return map_.in_channels
    return None


def _step(lifted: LiftedGraph, node: fx.Node, maps: Mapping[fx.Node, AffineConv], axes: int) -> AffineConv | Decline:
    """The map of one node from the region's source, given those of the nodes it reads."""
    match lifted.op(node):
        case Alias(source=source):
            return maps[source]
        case Affine(source=source) as op:
            inner = maps[source]
            outer = lifted.built(node, op, axes, inner.out_channels)
            return outer if isinstance(outer, Decline) else applied(outer, inner)
        case Sum() as op:
            return _summed(op, maps)
        case Concat() as op:
            return _concatenated(op, maps, axes)
        case Constant() | Input() | Resampling() | Normalised() | Opaque():
            return Decline(Reason.NOT_EXACT, "is no affine function of the fork")


def _summed(op: Sum, maps: Mapping[fx.Node, AffineConv]) -> AffineConv | Decline:
    """The sum of the maps of its terms."""
    parts = [maps[term] if factor == 1.0 else scaled(maps[term], factor) for term, factor in op.terms]
    total = parts[0] if len(parts) == 1 else add(parts)
    return total if isinstance(total, Decline) or not op.shift else shifted_by(total, op.shift)


def _concatenated(op: Concat, maps: Mapping[fx.Node, AffineConv], axes: int) -> AffineConv | Decline:
    """The maps of its parts, one after the other."""
    along_channels = op.first if axes > 0 else op.last
    if not along_channels:
        return Decline(Reason.NOT_EXACT, "concatenates along an axis that is not the channel axis here")
    joined = concat([maps[part] for part in op.parts])
    if isinstance(joined, Decline) or op.order is None:
        return joined
    return take(joined, op.order)


def applied(outer: AffineConv, inner: AffineConv) -> AffineConv | Decline:
    """outer after inner, by the shortest way."""
    if inner.is_identity and inner.out_channels == outer.in_channels:
        return outer
    if outer.selection is not None and outer.is_pointwise and outer.in_channels == inner.out_channels:
        if outer.is_identity:
            return inner
        if outer.axes == inner.axes:
            return take(inner, np.asarray(outer.selection))
    return compose(outer, inner)


def shifted_by(map_: AffineConv, shift: float) -> AffineConv | Decline:
    """map + shift."""
    constant = pointwise(map_.out_channels, map_.axes, None, lambda: torch.tensor(shift, dtype=torch.float64))
    return compose(constant, map_)


def used_outside(
    lifted: LiftedGraph, nodes: Sequence[fx.Node], sinks: Sequence[fx.Node]
) -> tuple[fx.Node, fx.Node] | None:
    """A node of the region, other than the sinks, that somebody outside reads, and that reader."""
    inside = set(nodes)
    for node in nodes:
        if node in sinks:
            continue
        for reader in lifted.readers(node):
            if reader not in inside:
                return node, reader
    return None
