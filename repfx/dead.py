"""Dead code: nodes that nothing reads and that do nothing else."""

from __future__ import annotations

from torch import fx


def has_effect(node: fx.Node) -> bool:
    """Whether running the node does more than return a value.  A module call does not, a guard apart."""
    if node.op == "call_module":
        return any(node.meta.get(mark) for mark in ("aliased", "overwrites", "guard"))
    return node.is_impure() or bool(node.meta.get("aliased"))


def remove_dead(graph: fx.Graph) -> None:
    """Erase what nothing reads, inputs excepted."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users and not has_effect(node):
            graph.erase_node(node)
