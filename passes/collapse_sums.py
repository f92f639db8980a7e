"""collapse_sums: branches of one value, added, are one convolution.

    Given:  y = bn1(conv3(x)) + bn2(conv1(x)) + bn3(x) + g      Result: y = conv(x) + g

Exact when the branches have equal stride and equal output size for every input size (EXACTNESS,
"Parallel").  Terms of another origin stay terms.  Declined where the branches differ in size or padding
mode, where a value inside is read outside, and where the objective says it costs more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.algebra import add, scaled
from repfx.decline import Decline
from repfx.graph import Dominators, LiftedGraph, Op, Sum, between, dominators
from repfx.rewriting import Add, Apply, Expr, Proposal, Ref


@dataclass(frozen=True)
class CollapseSums:
    """Collapse the terms of a sum that have a common fork into one map."""

    name: str = "collapse_sums"
    about: tuple[type[Op], ...] = (Sum,)
    last_first: bool = True  # a sum inside a larger sum only if that one fails

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Proposals for one sum: all of it, else the terms that share an origin, else pairs of terms."""
        if not isinstance(lifted.op(node), Sum):
            return
        source = dominators(lifted).of(node)
        if source is None:
            yield from _partial(self.name, lifted, dominators(lifted), node)
            return
        region = between(lifted, source, node)
        if isinstance(region, Decline):
            yield region
            return
        yield Proposal(self.name, ((node, Apply(region.map, source)),), region.nodes)
        if lifted.alive(node):
            yield from _pairs(self.name, lifted, node, source)


def _partial(rule: str, lifted: LiftedGraph, above: Dominators, node: fx.Node) -> Iterator[Proposal | Decline]:
    """A sum of values with several origins: merge the terms that share one."""
    terms, inner = flattened(lifted, node)
    if terms is None or len(terms) < 3:
        return
    chains = [above.chain(term) for term, _ in terms]
    groups: dict[fx.Node, list[int]] = {}
    for index, chain in enumerate(chains):
        groups.setdefault(chain[-1], []).append(index)
    for members in groups.values():
        if len(members) < 2:
            continue
        source = _common([chains[i] for i in members])
        if source is None:
            continue
        maps, nodes = [], list(inner)
        failed = None
        for i in members:
            term, factor = terms[i]
            region = between(lifted, source, term)
            if isinstance(region, Decline):
                failed = region
                break
            maps.append(region.map if factor == 1.0 else scaled(region.map, factor))
            nodes += [n for n in region.nodes if n not in nodes]
        if failed is not None:
            yield failed
            continue
        total = add(maps)
        if isinstance(total, Decline):
            yield total.at(lifted.place(node))
            continue
        rest = [terms[i] for i in range(len(terms)) if i not in members]
        if any(factor != 1.0 for _, factor in rest):
            continue
        values: tuple[Expr, ...] = (*(Ref(t) for t, _ in rest), Apply(total, source))
        yield Proposal(rule, ((node, Add(values)),), tuple(nodes))
        return


def _pairs(rule: str, lifted: LiftedGraph, node: fx.Node, source: fx.Node) -> Iterator[Proposal | Decline]:
    """The whole sum costs more than its branches: merge two terms that do not (the first pair that pays)."""
    terms, inner = flattened(lifted, node)
    if terms is None or len(terms) < 3 or any(factor != 1.0 for _, factor in terms):
        return
    regions = [between(lifted, source, term) for term, _ in terms]
    for i, a in enumerate(regions):
        for j, b in enumerate(regions[:i]):
            if isinstance(a, Decline) or isinstance(b, Decline) or not lifted.alive(node):
                continue
            total = add([b.map, a.map])
            if isinstance(total, Decline):
                continue
            rest = [Ref(term) for k, (term, _) in enumerate(terms) if k not in (i, j)]
            nodes = [*inner, *b.nodes, *(n for n in a.nodes if n not in b.nodes)]
            yield Proposal(rule, ((node, Add((*rest, Apply(total, source)))),), tuple(nodes))


def flattened(lifted: LiftedGraph, node: fx.Node) -> tuple[list[tuple[fx.Node, float]] | None, list[fx.Node]]:
    """All terms of nested sums that nothing else reads, and the sum nodes themselves."""
    op = lifted.op(node)
    if not isinstance(op, Sum) or op.shift:
        return None, []
    terms: list[tuple[fx.Node, float]] = []
    inner = [node]
    stack = list(reversed(op.terms))
    while stack:
        term, factor = stack.pop()
        own = lifted.op(term)
        if isinstance(own, Sum) and not own.shift and len(lifted.readers(term)) == 1:
            inner.append(term)
            stack.extend((t, f * factor) for t, f in reversed(own.terms))
        else:
            terms.append((term, factor))
    return terms, inner


def _common(chains: list[list[fx.Node]]) -> fx.Node | None:
    """The nearest value on all dominator chains."""
    shared = set(chains[0]).intersection(*chains[1:])
    return next((n for n in chains[0] if n in shared), None)
