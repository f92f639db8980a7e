"""Dead code: nodes that nothing reads and that do nothing else."""

from __future__ import annotations

from torch import fx


def has_effect(node: fx.Node) -> bool:
    """Whether running the node does more than return a value.  The call of a module that was read does not."""
    if node.op == "call_module":
        return any(node.meta.get(mark) for mark in ("aliased", "overwrites", "unread", "guard"))
    return node.is_impure() or bool(node.meta.get("aliased")) or draws(node)


def draws(node: fx.Node) -> bool:
    """Whether running the node moves a random generator: what is drawn next depends on it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if "dropout" in name or name.startswith("rrelu"):
        return node.kwargs.get("training", True in node.args[1:]) is not False
    if name == "scaled_dot_product_attention":
        return bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0))
    return name.startswith("rand") or name.rstrip("_") in _DRAWN


_DRAWN = (
    "bernoulli", "normal", "uniform", "multinomial", "poisson", "exponential", "cauchy", "geometric", "log_normal",
    "gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d",
)  # fmt: skip


def remove_dead(graph: fx.Graph) -> None:
    """Erase what nothing reads, inputs excepted."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users and not has_effect(node):
            graph.erase_node(node)
