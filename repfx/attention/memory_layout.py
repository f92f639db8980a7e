"""Memory layout: what attention reads has its channels innermost.

    Given:  scaled_dot_product_attention(y.permute(0, 1, 3, 2), k, v)
    Result: scaled_dot_product_attention(y.permute(0, 1, 3, 2).contiguous(), k, v)

The fused kernels take operands whose last axis has stride one; for others torch computes the scores in
several operations, slower than attention that is written out.  A copy changes no number.  Where the layout
is not known, nothing is copied.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence

from torch import fx

from repfx.attention.recognition import is_call
from repfx.attention.views import (
    MOVES,
    PARTS,
    RESHAPES,
    index_items,
    permuted_dims,
    scalar_factor,
    swapped_axes,
    transposed_last,
)
from repfx.graph import Alias, LiftedGraph, Opaque, argument, name_of

_STEPS = 64  # views looked at before one operand


def copy_strided_operands(lifted: LiftedGraph) -> None:
    """Copy the queries, keys and values of attention calls whose last axis does not lie innermost."""
    copies: dict[fx.Node, fx.Node] = {}
    for call in filter(is_call, lifted.nodes()):
        for operand in _operands(call):
            if not _is_strided(lifted, operand):
                continue
            if operand not in copies:
                copies[operand] = _copy(lifted, operand, call)
            call.replace_input_with(operand, copies[operand])


def _operands(call: fx.Node) -> Iterator[fx.Node]:
    """Query, key and value, as the call holds them when it is their turn: one may be another's copy by then."""
    for place, name in enumerate(("query", "key", "value")):
        operand = argument(call, place, name)
        if isinstance(operand, fx.Node):
            yield operand


def _copy(lifted: LiftedGraph, operand: fx.Node, call: fx.Node) -> fx.Node:
    """A new node that lays an operand out anew, counted to the module of the call that reads it."""
    with lifted.graph.inserting_after(operand):
        new = lifted.graph.call_method("contiguous", (operand,))
    new.meta["nn_module_stack"] = call.meta.get("nn_module_stack", {})
    lifted.define(new, Opaque())
    lifted.context.shapes.set(new, lifted.context.shapes.of(operand))
    return new


def _is_strided(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether the last axis of a value is another axis of what was computed last."""
    axis = -1
    for _ in range(_STEPS):
        source = _laid_out_in(lifted, node)
        if source is None:
            return axis != -1  # computed anew
        if name_of(node) in RESHAPES and axis != -1:
            return True
        above = _above(lifted, node, source, axis)
        if above is None:
            return False
        node, axis = source, above
    return False


def _laid_out_in(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The value whose memory a node reads in another way, or whose layout it keeps; None where it is laid out anew."""
    op = lifted.op(node)
    if isinstance(op, Alias):
        return None if name_of(node) in ("contiguous", "clone") else op.source
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    if node.target is operator.getitem or name_of(node) in (*MOVES, *PARTS):
        return source
    keeps = transposed_last(lifted, node) is not None or scalar_factor(lifted, node) is source
    return source if keeps else None


def _above(lifted: LiftedGraph, node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """The axis of the source that is this axis of its view, both counted from the end; None where it is not known."""
    if transposed_last(lifted, node) is not None:
        return {-1: -2, -2: -1}.get(axis, axis)
    rule = _RULES.get(name_of(node))
    return axis if rule is None else rule(node, source, lifted.rank(source), axis)


def _above_permute(node: fx.Node, source: fx.Node, rank: int | None, axis: int) -> int | None:
    dims = permuted_dims(node)
    return None if dims is None else dims[axis] - len(dims)


def _above_swap(node: fx.Node, source: fx.Node, rank: int | None, axis: int) -> int | None:
    swapped = swapped_axes(node, rank)
    if rank is None or swapped is None:
        return None
    a, b = swapped
    return {a: b, b: a}.get(axis, axis)


def _above_unbind(node: fx.Node, source: fx.Node, rank: int | None, axis: int) -> int | None:
    return _kept(rank, axis, [argument(node, 1, "dim", 0)])


def _above_index(node: fx.Node, source: fx.Node, rank: int | None, axis: int) -> int | None:
    if name_of(source) in PARTS:
        return axis
    items = index_items(node.args[1])
    if not all(isinstance(item, int) or _is_plain_slice(item) for item in items):
        return None
    return _kept(rank, axis, [place for place, item in enumerate(items) if isinstance(item, int)])


_RULES: dict[str, Callable[[fx.Node, fx.Node, int | None, int], int | None]] = {
    "permute": _above_permute,
    "transpose": _above_swap,
    "swapaxes": _above_swap,
    "unbind": _above_unbind,
    "getitem": _above_index,
}


def _is_plain_slice(item: object) -> bool:
    return isinstance(item, slice) and item.step in (None, 1)


def _kept(rank: int | None, axis: int, dropped: Sequence[object]) -> int | None:
    """The axis of a source of this rank that is this axis once others are dropped."""
    numbers = [d for d in dropped if isinstance(d, int)]
    if rank is None or len(numbers) < len(dropped):
        return None
    gone = {d % rank for d in numbers}
    kept = [place - rank for place in range(rank) if place not in gone]
    return kept[axis] if -axis <= len(kept) else None
