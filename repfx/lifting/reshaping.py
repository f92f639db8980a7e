"""Reshapes that only rearrange: shuffles, interleaving stacks, tokens folded and unfolded.

A view that splits the channel axis in two, a transposition of the two, and a reshape that merges them
again are a permutation.  In between, value[b, i, j, ...] = source[b, table[i, j], ...]; `_table` finds
that table.  A reshape counts as merging only if its other sizes provably are the source's: read from the
source's own shape, or equal to what the layers in between make of it whenever the reshape is valid.

A per-pixel map between a rearrangement of the axes and its inverse is a map of the axis that was moved:
bn(x.transpose(1, 2)).transpose(1, 2), bn(x.reshape(B * N, C)).reshape(B, N, C).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from repfx.algebra import AffineConv, Ints, over
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Concat, Context, Op, argument, arithmetic, size_read
from repfx.lifting import rearranging
from repfx.lifting.rearranging import selected

_PROBED = range(1, 33)  # input sizes tried; sizes are quasi-linear in them with a period of a few strides


@dataclass(frozen=True, eq=False)
class _Table:
    """A value with a split channel axis: value[b, i, j, *rest] = joined[b, table[i, j], *rest]."""

    parts: tuple[fx.Node, ...]  # joined by concatenation
    table: Ints  # (I, J)


def _reshape(node: fx.Node, context: Context) -> Op | None:
    source = node.args[0]
    sizes = node.args[1:] if len(node.args) != 2 or not isinstance(node.args[1], tuple | list) else node.args[1]
    if not isinstance(source, fx.Node) or not isinstance(sizes, tuple | list):
        return None
    split = _table(source, context)
    if split is None:
        return _refolded(node, list(sizes), context)
    if len(sizes) < 3 or not _merges(split, list(sizes), context):
        return None
    return _rearranged(split, context)


def _flatten(node: fx.Node, context: Context) -> Op | None:
    source = argument(node, 0, "input")
    start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    split = _table(source, context) if isinstance(source, fx.Node) else None
    return _rearranged(split, context) if split is not None and (start, end) == (1, 2) else None


def _rearranged(split: _Table, context: Context) -> Op | None:
    order = split.table.reshape(-1)
    if len(split.parts) == 1:
        return selected(split.parts[0], 1, order, context, split.table.size)
    return Concat(split.parts, first=True, last=False, order=order)


def _table(node: fx.Node, context: Context) -> _Table | None:
    """The split channel axis behind a view, a stack, and transpositions of the two halves."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("contiguous", "clone"):
        return _table(node.args[0], context) if isinstance(node.args[0], fx.Node) else None
    if name in ("transpose", "swapaxes", "permute"):
        inner = _table(node.args[0], context) if isinstance(node.args[0], fx.Node) else None
        if inner is None or not _swaps(node, name, context):
            return None
        return _Table(inner.parts, inner.table.T)
    if name == "stack":
        return _stack_table(node, context)
    if name == "unflatten":
        return _unflattened_table(node, context)
    if name in ("view", "reshape"):
        return _view_table(node, context)
    return None


def _unflattened_table(node: fx.Node, context: Context) -> _Table | None:
    source, dim, sizes = argument(node, 0, "input"), argument(node, 1, "dim"), argument(node, 2, "sizes")
    if not isinstance(source, fx.Node) or dim != 1 or not isinstance(sizes, tuple | list) or len(sizes) != 2:
        return None
    channels, (groups, rest) = context.shapes.size(source, 1), sizes
    if not isinstance(groups, int) or not isinstance(rest, int):
        return None
    if channels is None or groups == -1:
        groups = groups if channels is None else channels // rest
        channels = groups * rest if channels is None else channels
    if groups <= 0 or channels % groups or rest not in (-1, channels // groups):
        return None
    return _Table((source,), np.arange(channels).reshape(groups, -1))


def _picked(node: fx.Node, context: Context) -> Op | None:
    """One row or column of a split channel axis: y[:, i], y[:, :, j], y.unbind(1)[i]."""
    source, item = node.args
    if not isinstance(source, fx.Node):
        return None
    if isinstance(item, int):
        name = source.target if isinstance(source.target, str) else getattr(source.target, "__name__", "")
        value, dim = argument(source, 0, "input"), argument(source, 1, "dim", 0)
        split = _table(value, context) if name == "unbind" and isinstance(value, fx.Node) else None
        index = item
    else:
        items = item if isinstance(item, tuple) else (item,)
        used = [(i, v) for i, v in enumerate(items) if v != slice(None)]
        if len(used) != 1 or type(used[0][1]) is not int:
            return None
        (dim, index), split = used[0], _table(source, context)
    if split is None or dim not in (1, 2):
        return None
    rows = split.table if dim == 1 else split.table.T
    if not -len(rows) <= index < len(rows):
        return None
    if len(split.parts) == 1:
        return selected(split.parts[0], 1, rows[index], context, split.table.size)
    return Concat(split.parts, first=True, last=False, order=rows[index])


def _getitem(node: fx.Node, context: Context) -> Op | None:
    return _picked(node, context) or rearranging.FUNCTIONS[operator.getitem](node, context)


def _swaps(node: fx.Node, name: str, context: Context) -> bool:
    if name != "permute":
        return sorted(a for a in node.args[1:3] if isinstance(a, int)) == [1, 2]
    dims = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
    return list(dims) == [0, 2, 1, *range(3, len(dims))]


def _stack_table(node: fx.Node, context: Context) -> _Table | None:
    parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
    if not isinstance(parts, tuple | list) or dim not in (1, 2) or not all(isinstance(p, fx.Node) for p in parts):
        return None
    channels = {context.shapes.size(p, 1) for p in parts if isinstance(p, fx.Node)}
    size = channels.pop()
    if channels or size is None:
        return None
    table = np.arange(len(parts) * size).reshape(len(parts), size)
    return _Table(tuple(p for p in parts if isinstance(p, fx.Node)), table if dim == 1 else table.T)


def _view_table(node: fx.Node, context: Context) -> _Table | None:
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    rank, channels = context.shapes.rank(source), context.shapes.size(source, 1)
    sizes = node.args[1:] if len(node.args) != 2 or not isinstance(node.args[1], tuple | list) else node.args[1]
    if rank is None or channels is None or not isinstance(sizes, tuple | list) or len(sizes) != rank + 1:
        return None
    if not _is_size_of(sizes[0], source, 0, context):
        return None
    if not all(_is_size_of(s, source, i + 2, context) for i, s in enumerate(sizes[3:])):
        return None
    groups, rest = (known_size(s, context) for s in sizes[1:3])
    if groups == -1 or (groups is None and rest not in (None, -1)):
        groups = channels // rest if rest else None
    if not groups or channels % groups or rest not in (None, -1, channels // groups):
        return None
    return _Table((source,), np.arange(channels).reshape(groups, -1))


def _merges(split: _Table, sizes: list[object], context: Context) -> bool:
    """Whether a reshape to these sizes merges the two halves and keeps everything else."""
    first = split.parts[0]
    rank = context.shapes.rank(first)
    if rank is None or len(sizes) != rank or not _is_size_of(sizes[0], first, 0, context):
        return False
    if known_size(sizes[1], context) not in (-1, split.table.size):
        return False
    spatial = sizes[2:]
    if all(_is_size_of(s, first, i + 2, context) for i, s in enumerate(spatial)):
        return True
    return known_size(sizes[1], context) != -1 and _forced(spatial, first, context)


def _is_size_of(size: object, value: fx.Node, axis: int, context: Context) -> bool:
    """Whether `size` is value.shape[axis], read from it or from a value of the same size."""
    if isinstance(size, int):
        return size == context.shapes.size(value, axis) and size > 0
    base = size_read(size)
    if base is None or base[1] != axis:
        return False
    return base[0] is value or axis == 0 or (_same_size(base[0], value, context))


def known_size(size: object, context: Context) -> int | None:
    """A size that is a number, or follows from known channel counts by integer arithmetic."""
    if isinstance(size, int):
        return size
    read = size_read(size)
    if read is not None:
        return context.shapes.size(read[0], read[1])
    if isinstance(size, fx.Node) and size.op == "call_function" and len(size.args) == 2:
        a, b = (known_size(v, context) for v in size.args)
        if a is not None and b is not None:
            return arithmetic(size.target, a, b)
    return None


def _same_size(a: fx.Node, b: fx.Node, context: Context) -> bool:
    return all(_spatial(b, a, h, context) == h for h in _PROBED)


def _forced(spatial: list[object], part: fx.Node, context: Context) -> bool:
    """Whether the wanted sizes, whenever the reshape is valid, are the part's own.

    If they are nowhere larger (or nowhere smaller) than the part's, equal products force equal sizes.
    """
    bases = {base for s in spatial for base in _bases(s)}
    if len(bases) != 1:
        return False
    base = bases.pop()
    signs = set()
    for axis, size in enumerate(spatial):
        for h in _PROBED:
            wanted, own = _evaluated(size, base, axis + 2, h), _spatial(part, base, h, context, axis)
            if wanted is None or own is None:
                return False
            signs.add(int(np.sign(wanted - own)))
    return not {1, -1} <= signs


def _bases(size: object) -> set[fx.Node]:
    read = size_read(size)
    if read is not None:
        return {read[0]}
    if isinstance(size, fx.Node) and size.op == "call_function":
        return {base for arg in size.args for base in _bases(arg)}
    return set()


def _evaluated(size: object, base: fx.Node, axis: int, h: int) -> int | None:
    """Value of a size expression when axis `axis` of `base` has size h."""
    if isinstance(size, int):
        return size
    read = size_read(size)
    if read is not None:
        return h if read == (base, axis) else None
    if not isinstance(size, fx.Node) or len(size.args) != 2:
        return None
    a, b = (_evaluated(arg, base, axis, h) for arg in size.args)
    return None if a is None or b is None else arithmetic(size.target, a, b)


def _spatial(node: fx.Node, base: fx.Node, h: int, context: Context, axis: int = 0) -> int | None:
    """Spatial size of `node` along an axis when that of `base` is h: the layers in between, one by one."""
    if node is base:
        return h
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_module":
        module = context.module(node)
        inner = _spatial(source, base, h, context, axis)
        if inner is None:
            return None
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not isinstance(module.padding, str):
            k, s, p, d = (t[axis] for t in (module.kernel_size, module.stride, module.padding, module.dilation))
            return (inner + 2 * p - d * (k - 1) - 1) // s + 1
        return inner if isinstance(module, nn.modules.batchnorm._BatchNorm) else None
    if node.op == "call_function" and node.target in (operator.add, torch.add, operator.iadd):
        return _spatial(source, base, h, context, axis)
    return None


def _reshape_as(node: fx.Node, context: Context) -> Op | None:
    """bn(x.flatten(0, 1)).reshape_as(x): a map of the last axis, token by token."""
    inner, original = node.args[0], node.args[1] if len(node.args) > 1 else None
    if not isinstance(inner, fx.Node) or not isinstance(original, fx.Node) or inner.op != "call_module":
        return None
    flat = inner.args[0]
    if not isinstance(flat, fx.Node) or flat.target != "flatten" or flat.args != (original, 0, 1):
        return None
    module = context.module(inner)
    if not isinstance(module, nn.BatchNorm1d):
        return None
    from repfx.lifting import norms

    lifted = norms.MODULES[nn.modules.batchnorm._BatchNorm](inner, module, context)
    if not isinstance(lifted, Affine):
        return None

    def build(axes: int, channels: int | None) -> AffineConv | Decline:
        return lifted.build(0, channels)

    context.shapes.set(node, context.shapes.of(original))
    return Affine(original, 0, build)


def _refolded(node: fx.Node, sizes: list[object], context: Context) -> Op | None:
    """A map of the last axis between x.reshape(-1, C) and the reshape back to x's own sizes."""
    between = node.args[0]
    op = _lifted(between, context) if isinstance(between, fx.Node) else None
    if not isinstance(op, Affine) or op.axes not in (0, None):
        return None
    flat = op.source
    original = flat.args[0] if flat.args else None
    rank = context.shapes.rank(original) if isinstance(original, fx.Node) else None
    if not isinstance(original, fx.Node) or rank is None or rank < 3 or len(sizes) != rank:
        return None
    if not _is_folded(flat, original, rank, context):
        return None
    kept = all(_is_size_of(s, original, i, context) for i, s in enumerate(sizes[:-1]))
    last = known_size(sizes[-1], context)
    if not kept or (last != -1 and not _is_size_of(sizes[-1], original, rank - 1, context)):
        return None
    return _over(original, op, 0, 0)


def _is_folded(flat: fx.Node, original: fx.Node, rank: int, context: Context) -> bool:
    """Whether `flat` is `original` with all axes but the last one merged."""
    name = flat.target if isinstance(flat.target, str) else getattr(flat.target, "__name__", "")
    if name == "flatten":
        start, end = argument(flat, 1, "start_dim", 0), argument(flat, 2, "end_dim", -1)
        return (start, end) in ((0, rank - 2), (0, -2))
    sizes = flat.args[1:] if len(flat.args) != 2 or not isinstance(flat.args[1], tuple | list) else flat.args[1]
    if name not in ("view", "reshape") or not isinstance(sizes, tuple | list) or len(sizes) != 2:
        return False
    return _is_size_of(sizes[1], original, rank - 1, context)


def _over(original: fx.Node, op: Affine, inner: int, axes: int) -> Op:
    def build(_: int, channels: int | None) -> AffineConv | Decline:
        map_ = op.build(inner, channels)
        if isinstance(map_, Decline) or (map_.is_pointwise and not map_.borders):
            return map_ if isinstance(map_, Decline) else over(map_, axes)
        return Decline(Reason.NOT_EXACT, "slides along an axis that is moved away again")

    return Affine(original, axes, build)


def _lifted(node: fx.Node, context: Context) -> Op:
    from repfx.lifting import lift

    return lift(node, context)


Rule = Callable[[fx.Node, Context], Op | None]
FUNCTIONS: dict[Any, Rule] = {
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    operator.getitem: _getitem,
}
METHODS: dict[str, Rule] = {
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _flatten,
    "reshape_as": _reshape_as,
}
