"""Projections: what makes the queries, keys or values of one head, and the factors of its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from repfx.algebra import AffineConv, Kind, form_of, identity, scaled
from repfx.attention.recognition import Attention
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Alias, LiftedGraph, Sum, applied, shifted_by


@dataclass(frozen=True, eq=False)
class Projection:
    """What makes the queries, keys or values of one head: `map` of `source`, over single tokens."""

    source: fx.Node
    map: AffineConv
    nodes: tuple[fx.Node, ...]


def projection_of(lifted: LiftedGraph, node: fx.Node, *, deep: bool) -> Projection | Decline:
    """The map of single tokens that makes a value: copies and factors, and one linear among them, if `deep`.

    Else the head's own copy alone, and factors.
    """
    source, chain = _chain(lifted, node, deep=deep)
    channels = _channels(lifted, source, chain)
    if channels is None:
        remedy = "read it by a linear, or divide it by a split into sizes"
        fact = "is attended to; structure does not give its number of channels"
        return Decline(Reason.UNKNOWN_FACT, fact, lifted.place(source), remedy)
    map_: AffineConv = identity(channels, 0)
    for one in reversed(chain):
        result = _after(lifted, one, map_)
        if isinstance(result, Decline):
            return result.at(lifted.place(one))
        map_ = result
    return Projection(source, map_, tuple(chain))


def _chain(lifted: LiftedGraph, node: fx.Node, *, deep: bool) -> tuple[fx.Node, list[fx.Node]]:
    """The value that is projected, and the operations from the projection back to it."""
    most = {Kind.LINEAR: 1} if deep else {Kind.LINEAR: 0, Kind.COPY: 1}
    passed: Counter[Kind] = Counter()
    chain: list[fx.Node] = []
    while (step := _step(lifted, node)) is not None:
        source, kind = step
        if passed[kind] == most.get(kind):
            break
        passed[kind] += 1
        chain.append(node)
        node = source
    return node, chain


def _step(lifted: LiftedGraph, node: fx.Node) -> tuple[fx.Node, Kind] | None:
    """(what a map of single tokens reads, what it is)."""
    match lifted.op(node):
        case Alias(source=source):
            return source, Kind.IDENTITY
        case Sum(terms=((source, _),)):
            return source, Kind.SCALE
        case Affine(source=source, axes=0 | None, build=build):
            map_ = build(0, lifted.channels(source, 0))
            return None if isinstance(map_, Decline) else (source, form_of(map_).kind)
        case _:
            return None


def _channels(lifted: LiftedGraph, source: fx.Node, chain: Sequence[fx.Node]) -> int | None:
    """Channels of the value that is projected: its own, or as many as its first reader asks for."""
    known = lifted.channels(source, 0)
    op = lifted.op(chain[-1]) if known is None and chain else None
    first = op.build(0, None) if isinstance(op, Affine) else None
    return first.in_channels if isinstance(first, AffineConv) else known


def _after(lifted: LiftedGraph, node: fx.Node, inner: AffineConv) -> AffineConv | Decline:
    """What a node of single tokens makes of a map that it reads."""
    match lifted.op(node):
        case Sum(terms=((_, factor),), shift=shift):
            own = inner if factor == 1.0 else scaled(inner, factor)
            return shifted_by(own, shift) if shift else own
        case Affine(build=build):
            outer = build(0, inner.out_channels)
            return outer if isinstance(outer, Decline) else applied(outer, inner)
        case _:
            return inner


def scaling_of(lifted: LiftedGraph, head: Attention, size: int) -> float | None:
    """The product of the factors of a head of that size, or None where one of them is a constant tensor."""
    total = size**-0.5 if head.scale is None else head.scale
    for node in head.scales:
        op = lifted.op(node)
        if not isinstance(op, Sum):
            return None
        total *= op.terms[0][1]
    return total


def scaled_by(lifted: LiftedGraph, map_: AffineConv, scales: Sequence[fx.Node]) -> AffineConv | Decline:
    """The map times all factors of the scores that it makes."""
    for node in scales:
        result = _after(lifted, node, map_)
        if isinstance(result, Decline):
            return result
        map_ = result
    return map_
