"""Reshapes that only rearrange channels: shuffles, interleaving stacks.

A view that splits the channel axis in two, a transposition of the two, and a reshape that merges them
again are a permutation.  In between, value[b, i, j, ...] = source[b, table[i, j], ...]; `_table` finds
that table.  A reshape counts as merging only if its other sizes provably are the source's: read from the
source's own shape, or equal to what the layers in between make of it whenever the reshape is valid.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from repfx.algebra import Ints
from repfx.graph import Concat, Context, Op, argument, name_of
from repfx.lifting.equal_sizes import are_sizes_of, force_equality, is_size_of, known_size
from repfx.lifting.rearranging import selected
from repfx.lifting.rules import (
    FunctionRule,
    OtherCallError,
    as_items,
    as_value,
    as_values,
    as_whole,
    items_after,
    known,
    source_of,
)


@dataclass(frozen=True, eq=False)
class _Table:
    """A value with a split channel axis: value[b, i, j, *rest] = joined[b, table[i, j], *rest]."""

    parts: tuple[fx.Node, ...]  # joined by concatenation
    table: Ints  # (I, J)

    @property
    def turned(self) -> _Table:
        """The same value with the two halves of its channel axis exchanged."""
        return _Table(self.parts, self.table.T)

    def chosen(self, order: Ints, context: Context) -> Op | None:
        """Some of the channels, in this order, as one axis."""
        if len(self.parts) == 1:
            return selected(self.parts[0], 1, order, context, self.table.size)
        return Concat(self.parts, first=True, last=False, order=order)


# --- what merges the two halves, or picks of one ----------------------------------------------------


def _reshape(node: fx.Node, context: Context) -> Op | None:
    split, sizes = _table(source_of(node), context), items_after(node, 1)
    if len(sizes) < 3 or not _merges(split, sizes, context):
        return None
    return split.chosen(split.table.reshape(-1), context)


def _merges(split: _Table, sizes: Sequence[object], context: Context) -> bool:
    """Whether a reshape to these sizes merges the two halves and keeps everything else."""
    first, channels, spatial = split.parts[0], known_size(sizes[1], context), sizes[2:]
    if len(sizes) != context.shapes.rank(first) or not is_size_of(sizes[0], first, 0, context):
        return False
    if channels not in (-1, split.table.size):
        return False
    if are_sizes_of(spatial, first, 2, context):
        return True
    return channels != -1 and force_equality(spatial, first, context)


def _flatten(node: fx.Node, context: Context) -> Op | None:
    split = _table(source_of(node), context)
    start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    return split.chosen(split.table.reshape(-1), context) if (start, end) == (1, 2) else None


def _picked(node: fx.Node, context: Context) -> Op | None:
    """One row or column of a split channel axis: y[:, i], y[:, :, j], y.unbind(1)[i]."""
    source, item = as_value(node.args[0]), node.args[1]
    if isinstance(item, int):
        return _row(_unbound(source), argument(source, 1, "dim", 0), item, context)
    items = item if isinstance(item, tuple) else (item,)
    used = [(axis, picked) for axis, picked in enumerate(items) if picked != slice(None)]
    if len(used) != 1 or type(used[0][1]) is not int:
        return None
    ((axis, index),) = used
    return _row(source, axis, index, context)


def _unbound(node: fx.Node) -> fx.Node:
    """What is taken apart by an unbind."""
    if name_of(node) != "unbind":
        raise OtherCallError
    return source_of(node)


def _row(value: fx.Node, axis: object, index: int, context: Context) -> Op | None:
    split = _table(value, context)
    if axis not in (1, 2):
        return None
    rows = split.table if axis == 1 else split.table.T
    return split.chosen(rows[index], context) if -len(rows) <= index < len(rows) else None


# --- what splits the channel axis -------------------------------------------------------------------


def _table(node: fx.Node, context: Context) -> _Table:
    """The split channel axis behind a view, a stack, and transpositions of the two halves."""
    return known(_SPLITTING.get(name_of(node)))(node, context)


def _kept(node: fx.Node, context: Context) -> _Table:
    return _table(as_value(node.args[0]), context)


def _transposed(node: fx.Node, context: Context) -> _Table:
    inner = _kept(node, context)
    if sorted(axis for axis in node.args[1:3] if isinstance(axis, int)) != [1, 2]:
        raise OtherCallError
    return inner.turned


def _permuted(node: fx.Node, context: Context) -> _Table:
    inner, dims = _kept(node, context), items_after(node, 1)
    if list(dims) != [0, 2, 1, *range(3, len(dims))]:
        raise OtherCallError
    return inner.turned


def _stack_table(node: fx.Node, context: Context) -> _Table:
    parts, dim = as_values(argument(node, 0, "tensors")), argument(node, 1, "dim", 0)
    sizes = {context.shapes.size(part, 1) for part in parts}
    if dim not in (1, 2) or len(sizes) != 1:
        raise OtherCallError
    size = known(sizes.pop())
    table = np.arange(len(parts) * size).reshape(len(parts), size)
    return _Table(parts, table if dim == 1 else table.T)


def _unflattened_table(node: fx.Node, context: Context) -> _Table:
    source, sizes = source_of(node), as_items(argument(node, 2, "sizes"))
    if argument(node, 1, "dim") != 1 or len(sizes) != 2:
        raise OtherCallError
    groups, rest = (as_whole(size) for size in sizes)
    channels = context.shapes.size(source, 1)
    if channels is None:
        channels = groups * rest
    elif groups == -1:
        groups = channels // rest
    return _in_groups(source, channels, groups, rest)


def _in_groups(source: fx.Node, channels: int, groups: int, rest: int | None) -> _Table:
    """Channels split into groups of `rest`: any number where it is None or -1."""
    if groups <= 0 or channels % groups or rest not in (None, -1, channels // groups):
        raise OtherCallError
    return _Table((source,), np.arange(channels).reshape(groups, -1))


def _view_table(node: fx.Node, context: Context) -> _Table:
    source, sizes = as_value(node.args[0]), items_after(node, 1)
    rank, channels = known(context.shapes.rank(source)), known(context.shapes.size(source, 1))
    if len(sizes) != rank + 1 or not is_size_of(sizes[0], source, 0, context):
        raise OtherCallError
    if not are_sizes_of(sizes[3:], source, 2, context):
        raise OtherCallError
    groups, rest = (known_size(size, context) for size in sizes[1:3])
    if groups == -1 or (groups is None and rest != -1):
        groups = channels // rest if rest else None
    return _in_groups(source, channels, known(groups), rest)


_SPLITTING: dict[str, Callable[[fx.Node, Context], _Table]] = {
    **dict.fromkeys(("contiguous", "clone"), _kept),
    **dict.fromkeys(("transpose", "swapaxes"), _transposed),
    **dict.fromkeys(("view", "reshape"), _view_table),
    "permute": _permuted,
    "stack": _stack_table,
    "unflatten": _unflattened_table,
}

FUNCTIONS: dict[Any, FunctionRule] = {
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    operator.getitem: _picked,
}
METHODS: dict[str, FunctionRule] = {
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _flatten,
}
