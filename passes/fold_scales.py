"""fold_scales: a per-channel scale and shift goes into what produces or consumes the value.

    Given:  y = bn(cat([conv1(a), conv2(b)]))      Result: y = cat([conv1'(a), conv2'(b)])
    Given:  z = bn(x); y1 = conv1(z); y2 = conv2(z)      Result: y1 = conv1'(x); y2 = conv2'(x)

Backward into all branches, or forward into all readers, whichever is exact and free (a single
producer or reader is a chain, see collapse_chains).  Exact always backward; forward when no reader pads,
else with a border term.  Declined where a branch or a reader cannot take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from repfx.algebra import AffineConv, linear_part, restrict, scaled, take
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Concat, LiftedGraph, Op, Opaque, Sum, applied
from repfx.rewriting import Add, Apply, Cat, Expr, Proposal


@dataclass(frozen=True)
class FoldScales:
    """Distribute a per-pixel, per-channel map over the branches before it or the readers after it."""

    name: str = "fold_scales"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Proposals for a scale: backward first, then forward."""
        op, map_ = lifted.op(node), scale_of(lifted, node)
        if map_ is None:
            return
        assert isinstance(op, Affine)
        if lifted.is_affine(op.source) and len(lifted.readers(op.source)) == 1:
            backward = _backward(self.name, lifted, node, op.source, map_)
            if backward is not None:
                yield backward
        if lifted.alive(node):
            forward = _forward(self.name, lifted, node, op.source, map_)
            if forward is not None:
                yield forward
        if lifted.alive(node) and isinstance(lifted.op(op.source), Opaque):
            yield _left(lifted, node, op.source)


def _left(lifted: LiftedGraph, node: fx.Node, source: fx.Node) -> Decline:
    """Why a lone scale stays: what makes the value is not affine, and what reads it had its turn."""
    fact = f"follows {lifted.place(source)}, which is no affine map, and nothing that reads it can take it up"
    return Decline(Reason.NOT_EXACT, fact, lifted.place(node))


def scale_of(lifted: LiftedGraph, node: fx.Node) -> AffineConv | None:
    """The map of a node that is one scale and shift per channel."""
    op = lifted.op(node)
    if not isinstance(op, Affine) or op.axes is None:
        return None
    map_ = lifted.map_of(node, op.axes)
    if isinstance(map_, Decline) or not map_.is_pointwise or map_.selection is not None or map_.borders:
        return None
    if map_.in_channels != map_.out_channels or not map_.incidence.one_to_one:
        return None
    return map_


def _backward(
    rule: str, lifted: LiftedGraph, node: fx.Node, joined: fx.Node, map_: AffineConv
) -> Proposal | Decline | None:
    interior = [node, joined]
    values: list[Expr] = []
    match lifted.op(joined):
        case Concat(parts=parts, first=first, last=last, order=None):
            if not (first if map_.axes else last):
                return None  # joined along another axis than the scale's
            start = 0
            for part in parts:
                size = lifted.channels(part, map_.axes)
                if size is None:
                    return lifted.unknown_channels(part)
                own = restrict(take(map_, np.arange(start, start + size)), start, start + size)
                start += size
                value = _absorbed(lifted, part, own, interior)
                if isinstance(value, Decline):
                    return value
                values.append(value)
            if start != map_.in_channels:
                return lifted.unknown_channels(joined)
            return Proposal(rule, ((node, Cat(tuple(values), 1 if map_.axes else -1)),), tuple(interior))
        case Sum(terms=terms, shift=0.0) if len(terms) > 1:
            for i, (term, factor) in enumerate(terms):
                own = scaled(map_, factor) if i == 0 and factor == 1.0 else linear_part(scaled(map_, factor))
                if i == 0 and factor != 1.0:
                    return None
                value = _absorbed(lifted, term, own, interior)
                if isinstance(value, Decline):
                    return value
                values.append(value)
            return Proposal(rule, ((node, Add(tuple(values))),), tuple(interior))
        case _:
            return None


def _absorbed(lifted: LiftedGraph, part: fx.Node, own: AffineConv, interior: list[fx.Node]) -> Expr | Decline:
    """own(part), inside the map that makes `part` where that is possible."""
    op = lifted.op(part)
    if isinstance(op, Affine) and op.axes == own.axes and len(lifted.readers(part)) == 1 and part not in interior:
        inner = lifted.map_of(part, op.axes)
        if isinstance(inner, AffineConv):
            merged = applied(own, inner)
            if isinstance(merged, AffineConv):
                interior.append(part)
                return Apply(merged, op.source, (part,))
    return Apply(own, part)


def _forward(
    rule: str, lifted: LiftedGraph, node: fx.Node, source: fx.Node, map_: AffineConv
) -> Proposal | Decline | None:
    readers = lifted.readers(node)
    if len(readers) < 2:
        return None
    replacements: list[tuple[fx.Node, Expr]] = []
    for reader in readers:
        op = lifted.op(reader) if lifted.alive(reader) else None
        if not isinstance(op, Affine) or op.axes != map_.axes or op.source is not node:
            return None
        outer = lifted.map_of(reader, op.axes)
        if isinstance(outer, Decline):
            return None
        merged = applied(outer, map_)
        if isinstance(merged, Decline):
            return merged.at(lifted.place(reader))
        replacements.append((reader, Apply(merged, source)))
    return Proposal(rule, tuple(replacements), (node, *readers))
