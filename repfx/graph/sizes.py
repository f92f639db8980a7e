"""What a number read from a shape is."""

from __future__ import annotations

import operator

from torch import fx


def size_read(size: object) -> tuple[fx.Node, int] | None:
    """(value, axis) of `value.shape[axis]`, `value.size(axis)` or an unpacked shape."""
    if not isinstance(size, fx.Node):
        return None
    match size.op, size.target, size.args:
        case "call_method", "size", (fx.Node() as value, int(axis)):
            return value, axis
        case _, operator.getitem, (fx.Node() as shape, int(axis)) if is_shape(shape):
            whole = shape.args[0]
            return (whole, axis) if isinstance(whole, fx.Node) else None
        case _:
            return None


def is_shape(node: fx.Node) -> bool:
    """Whether a node is `x.shape` or `x.size()`."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and bool(node.args[1] == "shape")


def is_size(node: fx.Node) -> bool:
    """Whether a value is a number read from a shape, or computed from such numbers."""
    work, seen = [node], {node}
    while work:
        step = work.pop()
        own = _is_measured(step)
        if own is False:
            return False
        if own is None:
            fresh = [given for given in step.all_input_nodes if given not in seen]
            seen.update(fresh)
            work += fresh
    return True


def _is_measured(node: fx.Node) -> bool | None:
    """Whether a node reads a number from a shape; None where that is so if it is of all that it is computed from."""
    if node.op == "call_method":
        return str(node.target) in ("size", "dim", "numel", "ndimension", "__len__")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    arithmetic = getattr(node.target, "__module__", "") in (
        "_operator",
        "math",
        "builtins",
    )  # h // 2, ceil(h), max(h, w)
    return None if arithmetic and node.all_input_nodes else False


def arithmetic(target: object, a: int, b: int) -> int | None:
    if target is operator.mul:
        return a * b
    if target is operator.floordiv:
        return a // b if b else None
    if target is operator.add:
        return a + b
    return a - b if target is operator.sub else None
