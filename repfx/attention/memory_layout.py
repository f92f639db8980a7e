"""Memory layout: what attention reads has its channels innermost.

    Given:  scaled_dot_product_attention(y.permute(0, 1, 3, 2), k, v)
    Result: scaled_dot_product_attention(y.permute(0, 1, 3, 2).contiguous(), k, v)

The fused kernels take operands whose last axis has stride one; for others torch computes the scores in
several operations, slower than attention that is written out.  A copy changes no number.  Where the layout
is not known, nothing is copied.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from repfx.attention.recognition import is_call, name_of, permuted_dims, scalar_factor, transposed_last
from repfx.graph import SPLITS, Alias, LiftedGraph, Opaque, argument

_PARTS = (*SPLITS, "unbind")
_VIEWS = ("view", "reshape", "flatten", "unflatten", "transpose", "swapaxes", "permute")
_STEPS = 64  # views looked at before one operand


def copy_strided_operands(lifted: LiftedGraph) -> None:
    """Copy the queries, keys and values of attention calls whose last axis does not lie innermost."""
    copies: dict[fx.Node, fx.Node] = {}
    for node in lifted.nodes():
        if not is_call(node):
            continue
        for place, name in enumerate(("query", "key", "value")):
            operand = argument(node, place, name)
            if not isinstance(operand, fx.Node) or not _is_strided(lifted, operand):
                continue
            if operand not in copies:
                with lifted.graph.inserting_after(operand):
                    new = lifted.graph.call_method("contiguous", (operand,))
                new.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
                lifted.define(new, Opaque())
                lifted.context.shapes.set(new, lifted.context.shapes.of(operand))
                copies[operand] = new
            node.replace_input_with(operand, copies[operand])


def _is_strided(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether the last axis of a value is another axis of what was computed last."""
    axis = -1
    for _ in range(_STEPS):
        source = _viewed(lifted, node)
        if source is None:
            return axis != -1  # computed anew
        if name_of(node) in ("view", "reshape", "flatten", "unflatten") and axis != -1:
            return True
        above = _above(lifted, node, source, axis)
        if above is None:
            return False
        node, axis = source, above
    return False


def _viewed(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The value whose memory a node reads in another way, or whose layout it keeps; None where it is laid out anew."""
    name = name_of(node)
    if isinstance(op := lifted.op(node), Alias):
        return None if name in ("contiguous", "clone") else op.source
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    known = node.target is operator.getitem or name in (*_VIEWS, *_PARTS)
    return source if known or transposed_last(lifted, node) or scalar_factor(lifted, node) is source else None


def _above(lifted: LiftedGraph, node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """The axis of the source that is this axis of its view, both counted from the end; None where it is not known."""
    name = name_of(node)
    if transposed_last(lifted, node) is not None:
        return {-1: -2, -2: -1}.get(axis, axis)
    if name == "permute":
        dims = permuted_dims(node)
        return None if dims is None else dims[axis] - len(dims)
    if name in ("transpose", "swapaxes"):
        rank = lifted.context.shapes.rank(source)
        a, b = argument(node, 1, "dim0"), argument(node, 2, "dim1")
        if rank is None or not isinstance(a, int) or not isinstance(b, int):
            return None
        a, b = a % rank - rank, b % rank - rank
        return {a: b, b: a}.get(axis, axis)
    if name == "unbind":
        return _kept(lifted, source, axis, [argument(node, 1, "dim", 0)])
    if name == "getitem" and name_of(source) not in _PARTS:
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not all(isinstance(i, int) or (isinstance(i, slice) and i.step in (None, 1)) for i in items):
            return None
        return _kept(lifted, source, axis, [place for place, i in enumerate(items) if isinstance(i, int)])
    return axis


def _kept(lifted: LiftedGraph, source: fx.Node, axis: int, dropped: Sequence[object]) -> int | None:
    """The axis of the source that is this axis once others are dropped."""
    rank = lifted.context.shapes.rank(source)
    if rank is None or not all(isinstance(d, int) for d in dropped):
        return None
    gone = {d % rank - rank for d in dropped if isinstance(d, int)}
    kept = [a for a in range(-rank, 0) if a not in gone]
    return kept[axis] if -axis <= len(kept) else None
