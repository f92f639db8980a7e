"""fold_scales: a per-channel scale and shift goes into what produces or consumes the value.

    Given:  y = bn(cat([conv1(a), conv2(b)]))      Result: y = cat([conv1'(a), conv2'(b)])
    Given:  z = bn(x); y1 = conv1(z); y2 = conv2(z)      Result: y1 = conv1'(x); y2 = conv2'(x)

Backward into all branches, or forward into all readers, whichever is exact and free (a single
producer or reader is a chain, see collapse_chains).  Exact always backward; forward when no reader pads,
else with a border term.  Declined where a branch or a reader cannot take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
            yield from _backward(self.name, lifted, node, op.source, map_)
        if lifted.alive(node):
            yield from _forward(self.name, lifted, node, op.source, map_)
        if lifted.alive(node) and isinstance(lifted.op(op.source), Opaque):
            yield _left(lifted, node, op.source)


def scale_of(lifted: LiftedGraph, node: fx.Node) -> AffineConv | None:
    """The map of a node that is one scale and shift per channel."""
    map_ = lifted.own_map(node)
    if map_ is None or not map_.is_pointwise or map_.selection is not None or map_.borders:
        return None
    same = map_.in_channels == map_.out_channels and map_.incidence.one_to_one
    return map_ if same else None


def _left(lifted: LiftedGraph, node: fx.Node, source: fx.Node) -> Decline:
    """Why a lone scale stays: what makes the value is not affine, and what reads it had its turn."""
    fact = f"follows {lifted.place(source)}, which is no affine map, and nothing that reads it can take it up"
    return Decline(Reason.NOT_EXACT, fact, lifted.place(node))


# --- backward ---------------------------------------------------------------------------------------


def _backward(
    rule: str, lifted: LiftedGraph, node: fx.Node, joined: fx.Node, map_: AffineConv
) -> Iterator[Proposal | Decline]:
    """Into everything that a concatenation or a sum joins."""
    parts = _parts(lifted, joined, map_)
    if isinstance(parts, Decline):
        yield parts
        return
    if not parts:
        return
    interior = [node, joined]
    values: list[Expr] = []
    for part, own in parts:
        values.append(_absorbed(lifted, part, own, interior))
    is_concat = isinstance(lifted.op(joined), Concat)
    whole = Cat(tuple(values), 1 if map_.axes else -1) if is_concat else Add(tuple(values))
    yield Proposal(rule, ((node, whole),), tuple(interior))


_Parts = list[tuple[fx.Node, AffineConv]]  # what is joined, and what of the scale each part takes


def _parts(lifted: LiftedGraph, joined: fx.Node, map_: AffineConv) -> _Parts | Decline:
    """How a scale is distributed; empty where it cannot be."""
    match lifted.op(joined):
        case Concat(parts=parts, first=first, last=last, order=None) if first if map_.axes else last:
            return _of_channels(lifted, joined, parts, map_)
        case Sum(terms=((_, 1.0), _, *_) as terms, shift=0.0):
            return [(term, _of_term(map_, factor, first=i == 0)) for i, (term, factor) in enumerate(terms)]
        case _:
            return []


def _of_channels(lifted: LiftedGraph, joined: fx.Node, parts: Sequence[fx.Node], map_: AffineConv) -> _Parts | Decline:
    """Each part takes the scale of its own channels."""
    found: _Parts = []
    start = 0
    for part in parts:
        size = lifted.channels(part, map_.axes)
        if size is None:
            return lifted.unknown_channels(part)
        own = take(map_, np.arange(start, start + size))
        found.append((part, restrict(own, start, start + size)))
        start += size
    return found if start == map_.in_channels else lifted.unknown_channels(joined)


def _of_term(map_: AffineConv, factor: float, *, first: bool) -> AffineConv:
    """Every term takes the scale, the first one the shift."""
    own = scaled(map_, factor)
    return own if first else linear_part(own)


def _absorbed(lifted: LiftedGraph, part: fx.Node, own: AffineConv, interior: list[fx.Node]) -> Expr:
    """own(part), inside the map that makes `part` where that is possible."""
    op = lifted.op(part)
    if not isinstance(op, Affine) or op.axes != own.axes or part in interior or len(lifted.readers(part)) != 1:
        return Apply(own, part)
    inner = lifted.map_of(part, own.axes)
    merged = inner if isinstance(inner, Decline) else applied(own, inner)
    if isinstance(merged, Decline):
        return Apply(own, part)
    interior.append(part)
    return Apply(merged, op.source, (part,))


# --- forward ----------------------------------------------------------------------------------------


def _forward(
    rule: str, lifted: LiftedGraph, node: fx.Node, source: fx.Node, map_: AffineConv
) -> Iterator[Proposal | Decline]:
    """Into everything that reads the scaled value, if it is several maps."""
    readers = lifted.readers(node)
    if len(readers) < 2:
        return
    replacements: list[tuple[fx.Node, Expr]] = []
    for reader in readers:
        outer = _map_of_reader(lifted, reader, node, map_.axes)
        if outer is None:
            return
        merged = applied(outer, map_)
        if isinstance(merged, Decline):
            yield merged.at(lifted.place(reader))
            return
        replacements.append((reader, Apply(merged, source)))
    yield Proposal(rule, tuple(replacements), (node, *readers))


def _map_of_reader(lifted: LiftedGraph, reader: fx.Node, node: fx.Node, axes: int) -> AffineConv | None:
    """The map of a reader over the same spatial axes."""
    op = lifted.op(reader) if lifted.alive(reader) else None
    if not isinstance(op, Affine) or op.axes != axes or op.source is not node:
        return None
    return lifted.own_map(reader)
