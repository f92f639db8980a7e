"""What a traced value depends on: nothing of the input, its sizes, or its numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

_SIZES = ("shape", "ndim", "size", "dim", "numel")
_OTHER_FACTS = ("dtype", "device", "layout", "is_cuda", "requires_grad")


def depends_on_input(node: fx.Node) -> bool:
    """Whether a value is computed from an input, or from anything about it."""
    return _reaches(node, lambda step: step.op == "placeholder", lambda step: False)


def depends_on_values(node: fx.Node) -> bool:
    """Whether a value depends on the numbers of an input, or on a size of it that the trace has not decided.

    What is kept under a key of sizes is found again for those sizes; without that, for any.
    """
    decided = {_expression(n.args[0]) for n in node.graph.nodes if n.meta.get("decides") == "value"}

    def is_decided(step: fx.Node) -> bool:
        return bool(decided) and _expression(step) in decided

    def is_open(step: fx.Node) -> bool:
        """An input, or a size that nothing has decided."""
        return step.op == "placeholder" or (not is_decided(step) and _fact(step) in _SIZES)

    return _reaches(node, is_open, lambda step: is_decided(step) or _fact(step) in _OTHER_FACTS)


def _reaches(node: fx.Node, is_wanted: Callable[[fx.Node], bool], ends: Callable[[fx.Node], bool]) -> bool:
    """Whether something wanted stands on a way back from a node; a way ends where `ends` says so."""
    work, seen = [node], {node}
    while work:
        step = work.pop()
        if is_wanted(step):
            return True
        if ends(step):
            continue
        fresh = [given for given in step.all_input_nodes if given not in seen]
        seen.update(fresh)
        work += fresh
    return False


def _fact(node: fx.Node) -> Any:
    """What a node asks of a value, by name: "shape" of `x.shape`, "dim" of `x.dim()`."""
    if node.op not in ("call_function", "call_method"):
        return None
    return node.args[1] if node.target is getattr else node.target


def _expression(value: Any) -> Any:
    """What a number is computed by: the same for `x.shape[2]` and `x.size(2)`, read anywhere."""
    if isinstance(value, list | tuple):
        return tuple(map(_expression, value))
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op in ("placeholder", "get_attr", "call_module"):
        return value
    if value.target == "size" and len(value.args) == 2:
        return "size", *map(_expression, value.args)
    sized = _shape_of(value.args[0]) if value.target is operator.getitem else None
    if sized is not None:
        return "size", _expression(sized), _expression(value.args[1])
    return value.target, *map(_expression, value.args), *map(_expression, value.kwargs.values())


def _shape_of(value: Any) -> Any:
    """x of `x.shape`; None of anything else."""
    is_shape = isinstance(value, fx.Node) and value.target is getattr and value.args[1:] == ("shape",)
    return value.args[0] if is_shape else None
