"""Committing a proposal: the replacements are built, what nothing reads any more is erased.

Only this and `repfx.rewriting.replication` change a lifted graph; `repfx.rewriting.builder` makes the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from repfx.graph import Constant, Input, LiftedGraph, Resampling, has_effect
from repfx.rewriting.builder import Builder, Introduce
from repfx.rewriting.expressions import values_of
from repfx.rewriting.proposal import Proposal


def commit(lifted: LiftedGraph, proposal: Proposal, error: float | None, introduce: Introduce) -> set[fx.Node]:
    """Replace what a proposal replaces.  Returns the nodes of which anything has changed."""
    absorbed = _absorbed_by_each(lifted, proposal)
    changed = _touched(lifted, proposal)
    shapes = lifted.context.shapes
    builder = Builder(lifted, proposal, error, introduce)
    for node, expr in proposal.replacements:
        with lifted.graph.inserting_before(node):
            new = builder.build(expr, node, absorbed.get(node, []))
        known = shapes.of(node)
        if new not in shapes._known or shapes.of(new) is None:
            shapes.set(new, known)
        node.replace_all_uses_with(new)
        lifted.rename(node, new)
    return changed | erase_unused(lifted, proposal.interior)


def _absorbed_by_each(lifted: LiftedGraph, proposal: Proposal) -> dict[fx.Node, list[fx.Node]]:
    """Which interior nodes each replacement absorbs: those above it that no other one absorbed."""
    left = set(proposal.interior)
    absorbed: dict[fx.Node, list[fx.Node]] = {}
    for sink, _ in sorted(proposal.replacements, key=lambda replacement: replacement[0]):
        own, work = [], [sink]
        while work:
            node = work.pop()
            if node not in left:
                continue
            left.remove(node)
            own.append(node)
            op = lifted.op(node)
            work.extend((op.source,) if isinstance(op, Resampling) else lifted.sources(node))
        absorbed[sink] = own
    return absorbed


def _touched(lifted: LiftedGraph, proposal: Proposal) -> set[fx.Node]:
    """Nodes whose operation or readers change when a proposal is committed."""
    changed = {*proposal.interior, *proposal.across}
    for node in proposal.interior:
        changed.update(node.all_input_nodes)
        changed.update(lifted.sources(node))
    for node, expr in proposal.replacements:
        changed.update(values_of(expr))
        changed.update(node.users)
        changed.update(lifted.dependents(node))
    return changed


def erase_unused(lifted: LiftedGraph, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Erase nodes that nothing reads any more, and what only they read.  Returns what has lost a reader."""
    work = sorted(filter(lifted.alive, nodes), reverse=True)
    touched: set[fx.Node] = set()
    while work:
        node = work.pop(0)
        if not lifted.alive(node) or _is_needed(node):
            continue
        # constants stay until the maps that will read them are evaluated
        feeding = [n for n in node.all_input_nodes if not isinstance(lifted.op(n), Constant | Input)]
        touched.update(node.all_input_nodes)
        lifted.graph.erase_node(node)
        lifted.forget(node)
        work.extend(n for n in feeding if not n.users and not has_effect(n))
    return touched


def _is_needed(node: fx.Node) -> bool:
    return bool(node.users) or node.op in ("placeholder", "output")
