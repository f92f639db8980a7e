"""Lifting: one table that says what each node of a traced graph computes.

`lift(node, context)` looks the node's target up in the tables of this package's files and returns an
operation of `repfx.ops`.  A node that no table knows is `Opaque` without comment; a node that is known
but not affine here (a batch norm that uses batch statistics, a pooling that clips) is `Opaque` with a
`Decline`.
"""

from __future__ import annotations

from torch import fx

from repfx.lifting import arithmetic, assigning, convolutions, norms, rearranging, reshaping
from repfx.lifting.context import Context
from repfx.ops import Constant, Input, Op, Opaque

__all__ = ["Context", "lift"]

_MODULES = convolutions.MODULES | norms.MODULES | rearranging.MODULES | arithmetic.MODULES
_FUNCTIONS = (
    convolutions.FUNCTIONS
    | norms.FUNCTIONS
    | rearranging.FUNCTIONS
    | reshaping.FUNCTIONS
    | arithmetic.FUNCTIONS
    | assigning.FUNCTIONS
)
_METHODS = rearranging.METHODS | reshaping.METHODS | arithmetic.METHODS


def lift(node: fx.Node, context: Context) -> Op:
    """What `node` computes."""
    if context.constants.is_constant(node):
        return Constant()
    if node.meta.get("aliased"):
        return context.declined(node, "shares memory with a value that is overwritten in place")
    foreign = context.foreign(node) if node.op.startswith("call") else None
    if foreign is not None:
        fact = f"computes with {foreign} tensors where the network's are {context.home}"
        return context.declined(node, fact, "convert the model to one real dtype first")
    match node.op:
        case "placeholder":
            return Input()
        case "call_module":
            module = context.module(node)
            if str(node.target) in context.whole:
                return Opaque()
            for kind, rule in _MODULES.items():
                if isinstance(module, kind):
                    return rule(node, module, context) or Opaque()
            return Opaque()
        case "call_function":
            named = _FUNCTIONS.get(node.target) or _FUNCTIONS.get(getattr(node.target, "__name__", ""))
            return (named(node, context) if named else None) or Opaque()
        case "call_method":
            method = _METHODS.get(str(node.target))
            return (method(node, context) if method else None) or Opaque()
        case _:
            return Opaque()
