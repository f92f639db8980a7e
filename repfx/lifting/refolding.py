"""Tokens folded and unfolded: a map of the last axis between a reshape to (tokens, C) and the way back.

    bn(x.reshape(B * N, C)).reshape(B, N, C)        bn(x.flatten(0, 1)).reshape_as(x)

A per-pixel map between a rearrangement of the axes and its inverse is a map of the axis that was moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from repfx.algebra import AffineConv, over
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Context, Op, argument, name_of
from repfx.lifting import norms
from repfx.lifting.equal_sizes import are_sizes_of, is_size_of, known_size
from repfx.lifting.rules import FunctionRule, as_value, items_after, known, source_of


def _reshape_as(node: fx.Node, context: Context) -> Op | None:
    """bn(x.flatten(0, 1)).reshape_as(x): a map of the last axis, token by token."""
    inner, original = source_of(node), as_value(argument(node, 1, "other"))
    if inner.op != "call_module":
        return None
    flat, module = as_value(inner.args[0]), context.module(inner)
    if flat.target != "flatten" or flat.args != (original, 0, 1) or not isinstance(module, nn.BatchNorm1d):
        return None
    lifted = norms.MODULES[nn.modules.batchnorm._BatchNorm](inner, module, context)
    if not isinstance(lifted, Affine):
        return None
    context.shapes.set(node, context.shapes.of(original))
    return Affine(original, 0, lambda axes, channels: lifted.build(0, channels))


def _reshape(node: fx.Node, context: Context) -> Op | None:
    """A map of the last axis between x.reshape(-1, C) and the reshape back to x's own sizes."""
    between, sizes = source_of(node), items_after(node, 1)
    op = _lifted(between, context)
    if not isinstance(op, Affine) or op.axes not in (0, None):
        return None
    flat = op.source
    original = as_value(flat.args[0] if flat.args else None)
    rank = known(context.shapes.rank(original))
    if rank < 3 or not _is_folded(flat, original, rank, context) or not _unfolds(sizes, original, rank, context):
        return None
    return Affine(original, 0, lambda _, channels: _per_token(op.build(0, channels)))


def _is_folded(flat: fx.Node, original: fx.Node, rank: int, context: Context) -> bool:
    """Whether `flat` is `original` with all axes but the last one merged."""
    match name_of(flat):
        case "flatten":
            start, end = argument(flat, 1, "start_dim", 0), argument(flat, 2, "end_dim", -1)
            return (start, end) in ((0, rank - 2), (0, -2))
        case "view" | "reshape":
            sizes = items_after(flat, 1)
            return len(sizes) == 2 and is_size_of(sizes[1], original, rank - 1, context)
    return False


def _unfolds(sizes: Sequence[object], original: fx.Node, rank: int, context: Context) -> bool:
    """Whether these are all sizes of the original."""
    if len(sizes) != rank or not are_sizes_of(sizes[:-1], original, 0, context):
        return False
    return known_size(sizes[-1], context) == -1 or is_size_of(sizes[-1], original, rank - 1, context)


def _per_token(map_: AffineConv | Decline) -> AffineConv | Decline:
    if isinstance(map_, Decline):
        return map_
    if not map_.is_pointwise or map_.borders:
        return Decline(Reason.NOT_EXACT, "slides along an axis that is moved away again")
    return over(map_, 0)


def _lifted(node: fx.Node, context: Context) -> Op:
    from repfx.lifting import lift

    return lift(node, context)


FUNCTIONS: dict[Any, FunctionRule] = {torch.reshape: _reshape}
METHODS: dict[str, FunctionRule] = {
    **dict.fromkeys(("view", "reshape"), _reshape),
    "reshape_as": _reshape_as,
}
