"""collapse_sums: branches of one value, added, are one convolution.

    Given:  y = bn1(conv3(x)) + bn2(conv1(x)) + bn3(x) + g      Result: y = conv(x) + g

Exact when the branches have equal stride and equal output size for every input size (EXACTNESS,
"Parallel").  Terms of another origin stay terms.  Declined where the branches differ in size or padding
mode, where a value inside is read outside, and where the objective says it costs more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import fx

from repfx.algebra import AffineConv, add, scaled
from repfx.decline import Decline
from repfx.graph import LiftedGraph, Op, Region, Sum, around, between, dominators
from repfx.rewriting import Add, Apply, Expr, Proposal, Ref, as_one_map

Term = tuple[fx.Node, float]  # a value and its factor


@dataclass(frozen=True)
class CollapseSums:
    """Collapse the terms of a sum that have a common fork into one map."""

    name: str = "collapse_sums"
    about: tuple[type[Op], ...] = (Sum,)
    last_first: bool = True  # a sum inside a larger sum only if that one fails

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Proposals for one sum: all of it, else the terms that share an origin, pairs of terms, and what is around."""
        source = dominators(lifted).of(node)
        if source is None:
            yield from _by_origin(self.name, lifted, node)
            return
        region = between(lifted, source, node)
        if isinstance(region, Decline):
            yield region
            return
        yield as_one_map(self.name, region)
        if lifted.alive(node):
            yield from _pairs(self.name, lifted, node, source)
        if lifted.alive(node):
            yield from (as_one_map(self.name, wider, further=True) for wider in around(lifted, source, node))


@dataclass(frozen=True, eq=False)
class _Merged:
    """Some terms of a sum as one map of the value that they fork from."""

    map: AffineConv
    source: fx.Node
    nodes: tuple[fx.Node, ...]


def _proposed(rule: str, node: fx.Node, rest: Sequence[Term], merged: _Merged, sums: Sequence[fx.Node]) -> Proposal:
    """The other terms and the merged ones, which come last, as one sum in the place of nested ones."""
    values: tuple[Expr, ...] = (*(Ref(term) for term, _ in rest), Apply(merged.map, merged.source))
    return Proposal(rule, ((node, Add(values)),), tuple(dict.fromkeys((*sums, *merged.nodes))))


def _by_origin(rule: str, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
    """A sum of values with several origins: merge the first terms that share one and can be merged."""
    terms, sums = flattened(lifted, node)
    if len(terms) < 3:
        return
    for members in _sharing_an_origin(lifted, terms):
        merged = _together(lifted, members)
        rest = [term for term in terms if term not in members]
        if isinstance(merged, Decline):
            yield merged.at(lifted.place(node))
        elif merged is not None and all(factor == 1.0 for _, factor in rest):
            yield _proposed(rule, node, rest, merged, sums)
            return


def _sharing_an_origin(lifted: LiftedGraph, terms: Sequence[Term]) -> list[list[Term]]:
    """The terms in groups of one origin each, where that is more than one term."""
    groups: dict[fx.Node, list[Term]] = {}
    for term in terms:
        origin = dominators(lifted).chain(term[0])[-1]
        groups.setdefault(origin, []).append(term)
    return [members for members in groups.values() if len(members) > 1]


def _together(lifted: LiftedGraph, members: Sequence[Term]) -> _Merged | Decline | None:
    """Terms as one map of the nearest value that is on the way to all of them."""
    source = _nearest(lifted, [term for term, _ in members])
    if source is None:
        return None
    maps: list[AffineConv] = []
    nodes: list[fx.Node] = []
    for term, factor in members:
        region = between(lifted, source, term)
        if isinstance(region, Decline):
            return region
        maps.append(region.map if factor == 1.0 else scaled(region.map, factor))
        nodes += region.nodes
    total = add(maps)
    return total if isinstance(total, Decline) else _Merged(total, source, tuple(nodes))


def _nearest(lifted: LiftedGraph, nodes: Sequence[fx.Node]) -> fx.Node | None:
    """The nearest value on the dominator chains of all nodes."""
    chains = [dominators(lifted).chain(node) for node in nodes]
    shared = set(chains[0]).intersection(*chains[1:])
    return next((node for node in chains[0] if node in shared), None)


def _pairs(rule: str, lifted: LiftedGraph, node: fx.Node, source: fx.Node) -> Iterator[Proposal | Decline]:
    """The whole sum costs more than its branches: merge two terms that do not (the first pair that pays)."""
    terms, sums = flattened(lifted, node)
    if len(terms) < 3 or any(factor != 1.0 for _, factor in terms):
        return
    regions = [between(lifted, source, term) for term, _ in terms]
    for pair in sorted(combinations(range(len(terms)), 2), key=lambda pair: pair[1]):
        if not lifted.alive(node):
            return
        merged = _pair(*(regions[place] for place in pair))
        if merged is not None:
            rest = [term for place, term in enumerate(terms) if place not in pair]
            yield _proposed(rule, node, rest, merged, sums)


def _pair(first: Region | Decline, second: Region | Decline) -> _Merged | None:
    """Two branches of one value as one map."""
    if isinstance(first, Decline) or isinstance(second, Decline):
        return None
    total = add([first.map, second.map])
    return None if isinstance(total, Decline) else _Merged(total, first.source, (*first.nodes, *second.nodes))


def flattened(lifted: LiftedGraph, node: fx.Node) -> tuple[list[Term], list[fx.Node]]:
    """All terms of nested sums that nothing else reads, and the sum nodes themselves; none of a sum with a shift."""
    terms: list[Term] = []
    sums: list[fx.Node] = []
    work: list[Term] = [(node, 1.0)]
    while work:
        term, factor = work.pop()
        op = lifted.op(term)
        if isinstance(op, Sum) and not op.shift and (term is node or len(lifted.readers(term)) == 1):
            sums.append(term)
            work.extend((inner, own * factor) for inner, own in reversed(op.terms))
        elif term is not node:
            terms.append((term, factor))
    return terms, sums
