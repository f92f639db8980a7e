"""Keywords that torch accepts under NumPy's names too: axis for dim, keepdims for keepdim."""

from __future__ import annotations

from torch import fx

_NAMES = {"axis": "dim", "keepdims": "keepdim"}
_CALLS = {
    "amax", "amin", "cat", "chunk", "concat", "concatenate", "flip", "index_select", "mean", "narrow", "prod",
    "softmax", "split", "squeeze", "stack", "sum", "unbind", "unsqueeze",
}  # fmt: skip


def own_keywords(graph: fx.Graph) -> None:
    """Give every call the keywords that the lifting reads."""
    for node in graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op in ("call_function", "call_method") and name in _CALLS and not _NAMES.keys().isdisjoint(node.kwargs):
            node.kwargs = {_NAMES.get(key, key): value for key, value in node.kwargs.items()}
