"""Copies: identities, slices, splits, concatenations, permutations of channels, spatial cropping."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from repfx.algebra import AffineConv, Ints, constructors
from repfx.decline import Decline, Reason
from repfx.graph import (
    SPLITS,
    Affine,
    Alias,
    Concat,
    Context,
    Op,
    Opaque,
    Shapes,
    argument,
    is_size,
    part_sizes,
    place_of,
    split_dim,
)
from repfx.layers import ChannelOrder, ChannelSlice


def selected(
    source: fx.Node, dim: int, indices: Ints, context: Context, total: int, *, given: bool = False
) -> Op | None:
    """source.index_select(dim, indices), where that is the channel axis of some map.

    `total`, the size along `dim`, must hold for every input; it does where the code itself has `given` it.
    """
    if not len(indices):
        return Opaque(Decline(Reason.UNSUPPORTED, "selects nothing", place_of(source), rule="lifting"))
    rank = context.shapes.rank(source)
    if rank is not None and dim < 0:
        dim %= rank
    first = dim == 1
    last = dim == -1 or (rank is not None and dim == rank - 1)
    if not first and not last:
        return None
    if not given and context.sure is not None and context.sure.size(source, dim) != total:
        fact = f"selects along an axis of which only the example says that its size is {total}"
        return Opaque(Decline(Reason.UNKNOWN_FACT, fact, place_of(source), rule="lifting"))
    axes = None if rank is None else (rank - 2 if first else 0)

    def build(wanted: int, _: int | None) -> AffineConv | Decline:
        if (wanted == 0) != (last and (not first or rank == 2)):
            return Decline(Reason.NOT_EXACT, "selects along an axis that is not the channel axis here")
        return constructors.select(total, indices, wanted)

    return Affine(source, axes, build)


def _identity(node: fx.Node, *_: object) -> Op | None:
    source = argument(node, 0, "input")
    return Alias(source) if isinstance(source, fx.Node) else None


def _dropout(node: fx.Node, module: Any, context: Context) -> Op | None:
    if module.training and module.p > 0:
        return context.declined(node, "is a dropout in training mode inside an eval model", "call its eval()")
    return _identity(node)


def _dropout_function(node: fx.Node, context: Context) -> Op | None:
    p, training = argument(node, 1, "p", 0.5), argument(node, 2, "training", True)
    if training is False or p == 0:
        return _identity(node)
    return context.declined(node, "drops values at random (training is not False)")


def _no_mask(node: fx.Node, context: Context) -> Op | None:
    """timm's maybe_add_mask(scores, mask) where there is no mask; torch.fx does not look into it."""
    scores, mask = argument(node, 0, "scores"), argument(node, 1, "attn_mask")
    if isinstance(mask, fx.Node) and getattr(mask.target, "__name__", "") == "resolve_self_attn_mask":
        given, causal = argument(mask, 2, "attn_mask"), argument(mask, 3, "is_causal", False)
        mask = None if given is None and causal is False else mask
    return Alias(scores) if isinstance(scores, fx.Node) and mask is None else None


def _contiguous(node: fx.Node, context: Context) -> Op | None:
    if len(node.args) == 1 and not node.kwargs:
        return _identity(node)
    return context.declined(node, "changes the memory format, which is not part of a map")


def _to_own(node: fx.Node, context: Context) -> Op | None:
    """x.to(x.dtype), x.to(x.device), x.to(x), x.type_as(x): what x is already."""
    source, *given = (*node.args, *node.kwargs.values())
    if not isinstance(source, fx.Node) or len(given) != 1:
        return None
    (wanted,) = given
    own = isinstance(wanted, fx.Node) and (
        wanted is source or (wanted.target is getattr and wanted.args in ((source, "dtype"), (source, "device")))
    )
    return Alias(source) if own else None


def _part_of_split(node: fx.Node, source: fx.Node, index: int, context: Context) -> Op | None:
    name = source.target if isinstance(source.target, str) else getattr(source.target, "__name__", "")
    if name not in SPLITS:
        return None
    value = source.args[0] if source.args else source.kwargs.get("input", source.kwargs.get("tensor"))
    if not isinstance(value, fx.Node):
        return None
    dim = split_dim(source, name)
    if not isinstance(dim, int):
        return None
    rank = context.shapes.rank(value)
    if dim < 0 and rank is not None:
        dim %= rank
    total = context.shapes.size(value, dim)
    sizes = part_sizes(source, total)
    if sizes is None or not -len(sizes) <= index < len(sizes):
        if dim != 1:
            return None
        return context.declined(
            node, "splits a value whose channel count is not known", "pass example_inputs", Reason.UNKNOWN_FACT
        )
    index %= len(sizes)
    start = sum(sizes[:index])
    wish = source.args[1] if len(source.args) > 1 else None
    part = np.arange(start, start + sizes[index])
    return selected(value, dim, part, context, sum(sizes), given=isinstance(wish, tuple | list))


def _getitem(node: fx.Node, context: Context) -> Op | None:
    source, item = node.args
    if not isinstance(source, fx.Node):
        return None
    if isinstance(item, int):
        return _part_of_split(node, source, item, context)
    if not isinstance(item, tuple | slice):
        return None
    items = item if isinstance(item, tuple) else (item,)
    rank = context.shapes.rank(source)
    if Ellipsis not in items and sum(isinstance(i, fx.Node | list) for i in items) == 1:
        return _at_indices(node, source, list(items), context)
    if Ellipsis in items:
        if rank is None:
            return None
        place = items.index(Ellipsis)
        items = (*items[:place], *(slice(None),) * (rank - len(items) + 1), *items[place + 1 :])
    if not all(isinstance(i, slice) and all(v is None or isinstance(v, int) for v in _ends(i)) for i in items):
        return None
    slices: tuple[slice, ...] = tuple(i for i in items if isinstance(i, slice))
    used = [
        dim for dim, i in enumerate(slices) if i != slice(None) and i != slice(0, None) and _ends(i) != (0, None, 1)
    ]
    if not used:
        return Alias(source)
    signal = rank == 3 and used == [2] and _certain(context).size(source, 2) is None
    if signal and _certain(context).size(source, 1) is not None:
        return _cropped(source, 1, slices[2:])  # (B, C, L): the axis that is cut has no size of its own
    if used == [1] or (rank is not None and used == [rank - 1] and rank != 4):
        total = context.shapes.size(source, used[0])
        if total is None:
            return context.declined(
                node, "slices a value whose channel count is not known", "pass example_inputs", Reason.UNKNOWN_FACT
            )
        return selected(source, used[0], np.arange(total)[slices[used[0]]], context, total)
    if rank is None or rank < 3 or min(used) < 2:
        return None
    return _cropped(source, rank - 2, slices[2:])


def _certain(context: Context) -> Shapes:
    """Sizes that hold for every input."""
    return context.structure if context.sure is None else context.sure


def _at_indices(node: fx.Node, source: fx.Node, items: list[Any], context: Context) -> Op | None:
    """x[:, index], x[:, [2, 0, 1]]: whole slices and one index."""
    dim = next(i for i, item in enumerate(items) if not isinstance(item, slice))
    if any(item != slice(None) for i, item in enumerate(items) if i != dim):
        return None
    index, total, rank = items[dim], context.shapes.size(source, dim), context.shapes.rank(source)
    if (dim != 1 and (dim == 0 or rank is None or dim != rank - 1)) or (isinstance(index, fx.Node) and is_size(index)):
        return None
    if isinstance(index, fx.Node) and not context.constants.is_constant(index):
        return context.declined(node, "its index depends on the input")
    if total is None:
        return context.declined(
            node, "indexes a value whose channel count is not known", "pass example_inputs", Reason.UNKNOWN_FACT
        )
    if isinstance(index, fx.Node):
        indexed = _indexed(source, dim, index, context, wraps=True)
        return indexed or context.declined(node, "its index is a mask or was computed, and not written in the model")
    if not all(type(i) is int and -total <= i < total for i in index):
        return None
    return selected(source, dim, np.asarray(index, dtype=np.int64) % total, context, total)


def _ends(item: slice) -> tuple[Any, Any, Any]:
    return item.start, item.stop, item.step


def _cropped(source: fx.Node, axes: int, items: tuple[slice, ...]) -> Op | None:
    """x[:, :, a::s, a:-b]: a window of one tap, stride s, negative padding."""
    starts, strides, extents = [], [], []
    for axis in range(axes):
        item = items[axis] if axis < len(items) else slice(None)
        start, stop, step = item.start or 0, item.stop, item.step or 1
        if start < 0 or step < 1 or (stop is not None and stop >= 0):
            return None
        starts.append(start)
        strides.append(step)
        extents.append((stop or 0) - start - 1)

    def build(_: int, channels: int | None) -> AffineConv | Decline:
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        return constructors.crop(channels, starts, strides, extents)

    return Affine(source, axes, build)


def _narrow(node: fx.Node, context: Context) -> Op | None:
    source, dim = argument(node, 0, "input"), argument(node, 1, "dim")
    start, length = argument(node, 2, "start"), argument(node, 3, "length")
    if not isinstance(source, fx.Node) or not all(isinstance(v, int) for v in (dim, start, length)):
        return None
    total = context.shapes.size(source, dim)
    if total is None:
        return None
    return selected(source, dim, np.arange(start, start + length), context, total)


def _index_select(node: fx.Node, context: Context) -> Op | None:
    source, dim, index = argument(node, 0, "input"), argument(node, 1, "dim"), argument(node, 2, "index")
    if not isinstance(source, fx.Node) or not isinstance(dim, int) or not isinstance(index, fx.Node):
        return None
    return _indexed(source, dim, index, context)


def _indexed(source: fx.Node, dim: int, index: fx.Node, context: Context, *, wraps: bool = False) -> Op | None:
    total = context.shapes.size(source, dim)
    if total is None or index.op != "get_attr":
        return None
    values = context.constants.value(index)
    integers = values.dtype in (torch.int64, torch.int32, torch.int16)  # bytes and booleans are masks
    if values.device.type == "meta" or values.dim() != 1 or not integers:
        return None
    indices = values.cpu().numpy().astype(np.int64)
    if len(indices) == 0 or indices.min() < (-total if wraps else 0) or indices.max() >= total:
        return None  # the original raises
    return selected(source, dim, indices % total, context, total)


def _channel_order(node: fx.Node, module: Any, context: Context) -> Op | None:
    source = argument(node, 0, "x")
    total = context.shapes.size(source, module.dim) if isinstance(source, fx.Node) else None
    if total is None or not isinstance(source, fx.Node):
        return None
    return selected(source, module.dim, module.index.cpu().numpy(), context, total)


def _channel_slice(node: fx.Node, module: Any, context: Context) -> Op | None:
    source = argument(node, 0, "x")
    total = context.shapes.size(source, module.dim) if isinstance(source, fx.Node) else None
    if total is None or not isinstance(source, fx.Node):
        return None
    return selected(source, module.dim, np.arange(module.start, module.stop), context, total)


def _channel_shuffle(node: fx.Node, module: Any, context: Context) -> Op | None:
    return _shuffled(argument(node, 0, "input"), module.groups, context)


def _shuffled(source: object, groups: object, context: Context) -> Op | None:
    total = context.shapes.size(source, 1) if isinstance(source, fx.Node) else None
    if total is None or not isinstance(groups, int) or not isinstance(source, fx.Node):
        return None
    return selected(source, 1, np.arange(total).reshape(groups, -1).T.reshape(-1), context, total)


def _flip(node: fx.Node, context: Context) -> Op | None:
    source, dims = argument(node, 0, "input"), argument(node, 1, "dims")
    dim = _single(dims if len(node.args) <= 2 else node.args[1:])
    total = context.shapes.size(source, dim) if isinstance(source, fx.Node) and dim is not None else None
    if total is None or dim is None or not isinstance(source, fx.Node):
        return None
    return selected(source, dim, np.arange(total)[::-1].copy(), context, total)


def _roll(node: fx.Node, context: Context) -> Op | None:
    source = argument(node, 0, "input")
    shift, dim = _single(argument(node, 1, "shifts")), _single(argument(node, 2, "dims"))
    total = context.shapes.size(source, dim) if isinstance(source, fx.Node) and dim is not None else None
    if total is None or dim is None or shift is None or not isinstance(source, fx.Node):
        return None
    return selected(source, dim, np.roll(np.arange(total), shift), context, total)


def _single(value: object) -> int | None:
    """One integer, given as such or in a tuple."""
    items = value if isinstance(value, tuple | list) else (value,)
    return items[0] if len(items) == 1 and isinstance(items[0], int) else None


def _concat(node: fx.Node, context: Context) -> Op | None:
    parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", node.kwargs.get("axis", 0))
    if not isinstance(parts, tuple | list) or not isinstance(dim, int):
        return None
    nodes = tuple(p for p in parts if isinstance(p, fx.Node))
    if len(nodes) != len(parts) or any(context.constants.is_constant(p) for p in nodes):
        return None
    rank = next((r for r in (context.shapes.rank(p) for p in nodes) if r is not None), None)
    if rank is not None:
        dim %= rank
    last = dim == -1 or (rank is not None and dim == rank - 1)
    if dim != 1 and not last:
        return None
    return Concat(nodes, first=dim == 1, last=last)


def _stacked_horizontally(node: fx.Node, context: Context) -> Op | None:
    """torch.hstack: along axis 1 of anything that has one."""
    parts = argument(node, 0, "tensors")
    if not isinstance(parts, tuple | list) or not all(isinstance(p, fx.Node) for p in parts):
        return None
    nodes = tuple(p for p in parts if isinstance(p, fx.Node))
    rank = next((r for r in (context.shapes.rank(p) for p in nodes) if r is not None), None)
    if rank is None or rank < 2 or any(context.constants.is_constant(p) for p in nodes):
        return None
    return Concat(nodes, first=True, last=rank == 2)


_IDENTITY_METHODS = ("contiguous", "clone")  # detach is one for values, and none for gradients
Rule = Callable[[fx.Node, Context], Op | None]

MODULES: dict[type[nn.Module], Callable[[fx.Node, Any, Context], Op | None]] = {
    nn.Identity: _identity,
    nn.modules.dropout._DropoutNd: _dropout,
    nn.ChannelShuffle: _channel_shuffle,
    ChannelOrder: _channel_order,
    ChannelSlice: _channel_slice,
}
FUNCTIONS: dict[Any, Rule] = {
    F.dropout: _dropout_function,
    F.dropout2d: _dropout_function,
    operator.getitem: _getitem,
    "maybe_add_mask": _no_mask,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concat),
    torch.hstack: _stacked_horizontally,
    torch.clone: _contiguous,
    torch.roll: _roll,
    torch.narrow: _narrow,
    torch.index_select: _index_select,
    torch.flip: _flip,
    F.channel_shuffle: lambda node, context: _shuffled(
        argument(node, 0, "input"), argument(node, 1, "groups"), context
    ),
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(_IDENTITY_METHODS, _contiguous),
    **dict.fromkeys(("to", "type", "type_as"), _to_own),
    "narrow": _narrow,
    "index_select": _index_select,
    "flip": _flip,
    "roll": _roll,
}
