"""Questions about one node of an fx graph: its arguments, and where it stands."""

from __future__ import annotations

from typing import Any

from torch import fx


def place_of(node: fx.Node) -> str:
    """Where a node stands: its module path, or the name of the function in it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = ""
    if stack:
        last = stack[next(reversed(stack))]
        path = last[0] if isinstance(last, tuple) else str(last)
    return f"{path}:{node.name}" if path else node.name


def name_of(node: fx.Node) -> str:
    """What a function or method is called; "" for a module, and for what calls nothing."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def tuple_of(value: object, axes: int) -> tuple[int, ...] | None:
    """`value` as one integer per axis, or None where it is anything else."""
    if isinstance(value, int):
        return (value,) * axes
    if isinstance(value, tuple | list) and all(isinstance(v, int) for v in value):
        items = tuple(int(v) for v in value)
        return items * axes if len(items) == 1 else items if len(items) == axes else None
    return None


PENDING = "repfx_pending"  # target of nodes whose module is not written yet
