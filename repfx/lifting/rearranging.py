"""Copies: identities, permutations and selections of channels, concatenations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from repfx.algebra import AffineConv, Ints, constructors
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Alias, Concat, Context, Op, Opaque, argument, place_of
from repfx.layers import ChannelOrder, ChannelSlice
from repfx.lifting.rules import (
    FunctionRule,
    ModuleRule,
    OtherCallError,
    as_value,
    as_values,
    as_whole,
    as_wholes,
    known,
    source_of,
)


def selected(
    source: fx.Node, dim: int, indices: Ints, context: Context, total: int, *, given: bool = False
) -> Op | None:
    """source.index_select(dim, indices), where that is the channel axis of some map.

    `total`, the size along `dim`, must hold for every input; it does where the code itself has `given` it.
    """
    if not len(indices):
        return Opaque(Decline(Reason.UNSUPPORTED, "selects nothing", place_of(source), rule="lifting"))
    rank = context.shapes.rank(source)
    dim = _counted_from_the_front(dim, rank)
    first, last = dim == 1, _is_last(dim, rank)
    if not first and not last:
        return None
    if not given and context.sure is not None and context.sure.size(source, dim) != total:
        fact = f"selects along an axis of which only the example says that its size is {total}"
        return Opaque(Decline(Reason.UNKNOWN_FACT, fact, place_of(source), rule="lifting"))

    def build(wanted: int, _: int | None) -> AffineConv | Decline:
        vectors = last and (not first or rank == 2)  # whether it is the channel axis of vectors, not of images
        if (wanted == 0) != vectors:
            return Decline(Reason.NOT_EXACT, "selects along an axis that is not the channel axis here")
        return constructors.select(total, indices, wanted)

    return Affine(source, _axes_behind(first, rank), build)


def _counted_from_the_front(dim: int, rank: int | None) -> int:
    return dim % rank if rank is not None and dim < 0 else dim


def _is_last(dim: int, rank: int | None) -> bool:
    """Whether an axis is certainly the last one."""
    return dim == -1 or (rank is not None and dim == rank - 1)


def _axes_behind(first: bool, rank: int | None) -> int | None:
    """Spatial axes of a value whose channels are axis 1, or the last axis."""
    if rank is None:
        return None
    return rank - 2 if first else 0


def unknown_count(node: fx.Node, verb: str, context: Context) -> Opaque:
    """The refusal of what splits, slices or indexes channels of which nobody knows how many there are."""
    fact = f"{verb} a value whose channel count is not known"
    return context.declined(node, fact, "pass example_inputs", Reason.UNKNOWN_FACT)


# --- the same value ---------------------------------------------------------------------------------


def _identity(node: fx.Node, *_: object) -> Op | None:
    return Alias(source_of(node))


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
    mask = argument(node, 1, "attn_mask")
    if mask is not None and not _resolves_to_none(mask):
        return None
    return Alias(source_of(node, "scores"))


def _resolves_to_none(mask: object) -> bool:
    """Whether a mask is timm's resolve_self_attn_mask of none."""
    if not isinstance(mask, fx.Node) or getattr(mask.target, "__name__", "") != "resolve_self_attn_mask":
        return False
    return argument(mask, 2, "attn_mask") is None and argument(mask, 3, "is_causal", False) is False


def _contiguous(node: fx.Node, context: Context) -> Op | None:
    if len(node.args) == 1 and not node.kwargs:
        return _identity(node)
    return context.declined(node, "changes the memory format, which is not part of a map")


def _to_own(node: fx.Node, context: Context) -> Op | None:
    """x.to(x.dtype), x.to(x.device), x.to(x), x.type_as(x): what x is already."""
    first, *others = (*node.args, *node.kwargs.values())
    source = as_value(first)
    if len(others) != 1:
        return None
    wanted = as_value(others[0])
    is_own = wanted.target is getattr and wanted.args in ((source, "dtype"), (source, "device"))
    return Alias(source) if wanted is source or is_own else None


# --- some channels, in some order -------------------------------------------------------------------


def _narrow(node: fx.Node, context: Context) -> Op | None:
    source, dim = source_of(node), as_whole(argument(node, 1, "dim"))
    start, length = as_whole(argument(node, 2, "start")), as_whole(argument(node, 3, "length"))
    total = known(context.shapes.size(source, dim))
    return selected(source, dim, np.arange(start, start + length), context, total)


def _index_select(node: fx.Node, context: Context) -> Op | None:
    dim, index = as_whole(argument(node, 1, "dim")), as_value(argument(node, 2, "index"))
    return indexed(source_of(node), dim, index, context)


def indexed(source: fx.Node, dim: int, index: fx.Node, context: Context, *, wraps: bool = False) -> Op | None:
    """A selection by a constant that is written in the model; with `wraps`, indices may count from the end."""
    total = known(context.shapes.size(source, dim))
    if index.op != "get_attr":
        return None
    values = context.constants.value(index)
    integers = values.dtype in (torch.int64, torch.int32, torch.int16)  # bytes and booleans are masks
    if values.device.type == "meta" or values.dim() != 1 or not integers:
        return None
    indices = values.cpu().numpy().astype(np.int64)
    least = -total if wraps else 0
    if len(indices) == 0 or indices.min() < least or indices.max() >= total:
        return None  # the original raises
    return selected(source, dim, indices % total, context, total)


def _channel_order(node: fx.Node, module: Any, context: Context) -> Op | None:
    source = source_of(node, "x")
    total = known(context.shapes.size(source, module.dim))
    return selected(source, module.dim, module.index.cpu().numpy(), context, total)


def _channel_slice(node: fx.Node, module: Any, context: Context) -> Op | None:
    source = source_of(node, "x")
    total = known(context.shapes.size(source, module.dim))
    return selected(source, module.dim, np.arange(module.start, module.stop), context, total)


def _channel_shuffle(node: fx.Node, module: Any, context: Context) -> Op | None:
    return _shuffled(source_of(node), module.groups, context)


def _channel_shuffle_function(node: fx.Node, context: Context) -> Op | None:
    return _shuffled(source_of(node), argument(node, 1, "groups"), context)


def _shuffled(source: fx.Node, given: object, context: Context) -> Op | None:
    total, groups = known(context.shapes.size(source, 1)), as_whole(given)
    return selected(source, 1, np.arange(total).reshape(groups, -1).T.reshape(-1), context, total)


def _flip(node: fx.Node, context: Context) -> Op | None:
    source = source_of(node)
    dim = _single(argument(node, 1, "dims") if len(node.args) <= 2 else node.args[1:])
    total = known(context.shapes.size(source, dim))
    return selected(source, dim, np.arange(total)[::-1].copy(), context, total)


def _roll(node: fx.Node, context: Context) -> Op | None:
    source = source_of(node)
    shift, dim = _single(argument(node, 1, "shifts")), _single(argument(node, 2, "dims"))
    total = known(context.shapes.size(source, dim))
    return selected(source, dim, np.roll(np.arange(total), shift), context, total)


def _single(value: object) -> int:
    """One whole number, given as such or in a tuple."""
    numbers = as_wholes(value)
    if len(numbers) != 1:
        raise OtherCallError
    return numbers[0]


# --- concatenations ---------------------------------------------------------------------------------


def _concat(node: fx.Node, context: Context) -> Op | None:
    parts = _values_joined(node, context)
    dim = as_whole(argument(node, 1, "dim", node.kwargs.get("axis", 0)))
    rank = _rank_of_any(parts, context)
    dim = dim if rank is None else dim % rank
    first, last = dim == 1, _is_last(dim, rank)
    return Concat(parts, first=first, last=last) if first or last else None


def _stacked_horizontally(node: fx.Node, context: Context) -> Op | None:
    """torch.hstack: along axis 1 of anything that has one."""
    parts = _values_joined(node, context)
    rank = known(_rank_of_any(parts, context))
    return Concat(parts, first=True, last=rank == 2) if rank >= 2 else None


def _values_joined(node: fx.Node, context: Context) -> tuple[fx.Node, ...]:
    """The parts of a concatenation, none of which is constant."""
    parts = as_values(argument(node, 0, "tensors"))
    if any(context.constants.is_constant(part) for part in parts):
        raise OtherCallError
    return parts


def _rank_of_any(parts: tuple[fx.Node, ...], context: Context) -> int | None:
    ranks = (context.shapes.rank(part) for part in parts)
    return next((rank for rank in ranks if rank is not None), None)


_IDENTITY_METHODS = ("contiguous", "clone")  # detach is one for values, and none for gradients

MODULES: dict[type[nn.Module], ModuleRule] = {
    nn.Identity: _identity,
    nn.modules.dropout._DropoutNd: _dropout,
    nn.ChannelShuffle: _channel_shuffle,
    ChannelOrder: _channel_order,
    ChannelSlice: _channel_slice,
}
FUNCTIONS: dict[Any, FunctionRule] = {
    F.dropout: _dropout_function,
    F.dropout2d: _dropout_function,
    "maybe_add_mask": _no_mask,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concat),
    torch.hstack: _stacked_horizontally,
    torch.clone: _contiguous,
    torch.roll: _roll,
    torch.narrow: _narrow,
    torch.index_select: _index_select,
    torch.flip: _flip,
    F.channel_shuffle: _channel_shuffle_function,
}
METHODS: dict[str, FunctionRule] = {
    **dict.fromkeys(_IDENTITY_METHODS, _contiguous),
    **dict.fromkeys(("to", "type", "type_as"), _to_own),
    "narrow": _narrow,
    "index_select": _index_select,
    "flip": _flip,
    "roll": _roll,
}
