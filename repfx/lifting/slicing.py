"""What an index picks: a part of a split, a slice of channels or of the image, channels by their numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from repfx.algebra import Ints, constructors
from repfx.graph import (
    SPLITS,
    Affine,
    Alias,
    Context,
    Op,
    Shapes,
    is_size,
    name_of,
    part_sizes,
    split_dim,
)
from repfx.lifting.rearranging import indexed, selected, unknown_count
from repfx.lifting.rules import (
    FunctionRule,
    OtherCallError,
    as_value,
    as_whole,
    asked,
    known,
    per_channel,
    spread_ellipsis,
)

_WHOLE = ((None, None, None), (0, None, None), (0, None, 1))  # the ends of a slice that keeps everything


def _getitem(node: fx.Node, context: Context) -> Op | None:
    source, item = as_value(node.args[0]), node.args[1]
    match item:
        case int():
            return _part_of_split(node, source, item, context)
        case tuple():
            items = list(item)
        case slice():
            items = [item]
        case _:
            return None
    if Ellipsis not in items and sum(isinstance(i, fx.Node | list) for i in items) == 1:
        return _at_indices(node, source, items, context)
    if Ellipsis in items:
        items = spread_ellipsis(items, known(context.shapes.rank(source)))
    return _sliced(node, source, [_numbered(i) for i in items], context)


# --- parts of a split -------------------------------------------------------------------------------


def _part_of_split(node: fx.Node, split: fx.Node, index: int, context: Context) -> Op | None:
    name = name_of(split)
    if name not in SPLITS:
        return None
    value = as_value(split.args[0] if split.args else split.kwargs.get("input", split.kwargs.get("tensor")))
    dim = as_whole(split_dim(split, name))
    rank = context.shapes.rank(value)
    if dim < 0 and rank is not None:
        dim %= rank
    sizes = part_sizes(split, context.shapes.size(value, dim))
    if sizes is None or not -len(sizes) <= index < len(sizes):
        return unknown_count(node, "splits", context) if dim == 1 else None
    index %= len(sizes)
    start = sum(sizes[:index])
    part = np.arange(start, start + sizes[index])
    listed = len(split.args) > 1 and isinstance(split.args[1], tuple | list)  # the code says all sizes
    return selected(value, dim, part, context, sum(sizes), given=listed)


# --- slices -----------------------------------------------------------------------------------------


def _numbered(item: object) -> slice:
    """A slice between numbers."""
    if not isinstance(item, slice) or not all(end is None or isinstance(end, int) for end in _ends(item)):
        raise OtherCallError
    return item


def _ends(item: slice) -> tuple[Any, Any, Any]:
    return item.start, item.stop, item.step


def _sliced(node: fx.Node, source: fx.Node, slices: Sequence[slice], context: Context) -> Op | None:
    """x[slices]: along one channel axis, or along the axes of an image."""
    rank = context.shapes.rank(source)
    used = [dim for dim, item in enumerate(slices) if _ends(item) not in _WHOLE]
    if not used:
        return Alias(source)
    if used == [2] and _is_signal(source, context):
        return _cropped(source, 1, slices[2:])
    if used == [1] or _are_tokens(used, rank):
        return _some_channels(node, source, used[0], slices[used[0]], context)
    if min(used) < 2 or known(rank) < 3:
        return None
    return _cropped(source, known(rank) - 2, slices[2:])


def _some_channels(node: fx.Node, source: fx.Node, dim: int, item: slice, context: Context) -> Op | None:
    total = context.shapes.size(source, dim)
    if total is None:
        return unknown_count(node, "slices", context)
    return selected(source, dim, np.arange(total)[item], context, total)


def _are_tokens(used: Sequence[int], rank: int | None) -> bool:
    """Whether the one axis that is cut is the last one, and not that of an image."""
    return rank not in (None, 4) and rank == used[0] + 1 and len(used) == 1


def _is_signal(source: fx.Node, context: Context) -> bool:
    """Whether of a value (B, C, L) the axis that may be cut has no size of its own, and the channels have."""
    certain = _certain(context)
    return context.shapes.rank(source) == 3 and certain.size(source, 2) is None and certain.size(source, 1) is not None


def _certain(context: Context) -> Shapes:
    """Sizes that hold for every input."""
    return context.structure if context.sure is None else context.sure


def _cropped(source: fx.Node, axes: int, items: Sequence[slice]) -> Op:
    """x[:, :, a::s, a:-b]: a window of one tap, stride s, negative padding."""
    starts, strides, extents = [], [], []
    for axis in range(axes):
        start, stop, step = _window(items[axis] if axis < len(items) else slice(None))
        starts.append(start)
        strides.append(step)
        extents.append(stop - start - 1)
    return Affine(source, axes, per_channel(lambda _, channels: constructors.crop(channels, starts, strides, extents)))


def _window(item: slice) -> tuple[int, int, int]:
    """(start, stop, step) of a slice that cuts by numbers of pixels, whatever the size; stop counted from the end."""
    start, stop, step = item.start or 0, item.stop, item.step or 1
    if start < 0 or step < 1 or (stop is not None and stop >= 0):
        raise OtherCallError
    return start, stop or 0, step


# --- channels by their numbers ----------------------------------------------------------------------


def _at_indices(node: fx.Node, source: fx.Node, items: list[Any], context: Context) -> Op | None:
    """x[:, index], x[:, [2, 0, 1]]: whole slices and one index."""
    dim = next(i for i, item in enumerate(items) if not isinstance(item, slice))
    index = items.pop(dim)
    if any(item != slice(None) for item in items) or not _may_be_channels(source, dim, context):
        return None
    total = context.shapes.size(source, dim)
    if isinstance(index, fx.Node):
        return _at_value(node, source, dim, index, context)
    if total is None:
        return unknown_count(node, "indexes", context)
    return selected(source, dim, _numbers(index, total), context, total)


def _numbers(index: Sequence[object], total: int) -> Ints:
    """A list of indices, counted from the front."""
    if not all(type(item) is int and -total <= item < total for item in index):
        raise OtherCallError
    return np.asarray(index, dtype=np.int64) % total


def _may_be_channels(source: fx.Node, dim: int, context: Context) -> bool:
    """Whether an axis is axis 1, or the last one."""
    rank = context.shapes.rank(source)
    return dim == 1 or (dim > 1 and rank is not None and dim == rank - 1)


def _at_value(node: fx.Node, source: fx.Node, dim: int, index: fx.Node, context: Context) -> Op | None:
    """x[:, index] with a tensor that the model holds."""
    if is_size(index):
        return None
    if not context.constants.is_constant(index):
        return context.declined(node, "its index depends on the input")
    if context.shapes.size(source, dim) is None:
        return unknown_count(node, "indexes", context)
    chosen: Op | None = asked(indexed, source, dim, index, context, wraps=True)
    return chosen or context.declined(node, "its index is a mask or was computed, and not written in the model")


FUNCTIONS: dict[Any, FunctionRule] = {operator.getitem: _getitem}
