"""Dead code: nodes that nothing reads and that do nothing else."""

from __future__ import annotations

from torch import fx

from repfx.graph.kinds import Draws
from repfx.graph.nodes import argument, name_of
from repfx.graph.operation_table import operation_named


def has_effect(node: fx.Node) -> bool:
    """Whether running the node does more than return a value.  The call of a module that was read does not."""
    if node.op == "call_module":
        return any(node.meta.get(mark) for mark in ("aliased", "overwrites", "unread", "guard"))
    return node.is_impure() or bool(node.meta.get("aliased")) or draws(node)


_DRAWING = ("rand", "dropout", "bernoulli", "normal_", "uniform_", "multinomial", "empty")  # in a stranger's name


def may_draw(node: fx.Node) -> bool:
    """Whether two runs of a node may differ: it draws in some mode, or takes memory as it finds it."""
    info = operation_named(node)
    drawn = info is not None and info.draws is not Draws.NEVER
    return drawn or any(word in name_of(node) for word in _DRAWING)


def draws(node: fx.Node) -> bool:
    """Whether running the node moves a random generator: what is drawn next depends on it."""
    name, info = name_of(node), operation_named(node)
    if "dropout" in name or (info is not None and info.draws is Draws.TRAINING):
        return node.kwargs.get("training", True in node.args[1:]) is not False
    if name == "scaled_dot_product_attention":
        return bool(argument(node, 4, "dropout_p", 0.0))
    return name.startswith("rand") or (info is not None and info.draws is Draws.ALWAYS)


def remove_dead(graph: fx.Graph) -> None:
    """Erase what nothing reads, inputs excepted."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users and not has_effect(node):
            graph.erase_node(node)
