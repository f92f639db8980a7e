"""Operations that do the same to every channel: upsampling, pooling, means, selecting, transposing, flattening.

y_c = R x_c with one linear map R over positions whose rows sum to one.  Bilinear and bicubic weights sum
to one, averages divide by what they see, the others copy.  What depends on a size that structure does not
give (flattening (B, C, H, W) to vectors of C, which takes H = W = 1) is left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from repfx.graph import Alias, Context, Op, Opaque, Resampling, Resolution, argument, batches, size_read
from repfx.lifting.rules import (
    as_value,
    as_whole,
    as_wholes,
    items_after,
    known,
    source_of,
    spread_ellipsis,
)

Rule = Callable[[fx.Node, Context], Op | None]
_SPATIAL = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
_NEAREST = ("nearest", "nearest-exact", "area")


def _resampled(
    source: fx.Node, views: Mapping[int, int], resolution: Resolution, *, first: bool, pinned: bool = False
) -> Resampling | None:
    return Resampling(source, dict(views).get, resolution, first, pinned) if views else None


def _over_all_axes(source: fx.Node, axes: int | None, resolution: Resolution) -> Op:
    """An operation over all spatial axes, of any number where `axes` is None."""
    return Resampling(source, lambda n: n if n and axes in (None, n) else None, resolution, first=True)


# --- resizing and pooling ---------------------------------------------------------------------------


def _interpolated(node: fx.Node, size: object, factor: object, mode: object, context: Context) -> Op | None:
    if mode not in _SPATIAL and mode not in _NEAREST:
        return Opaque()
    source = source_of(node)
    rank = context.shapes.rank(source)
    axes = _SPATIAL.get(str(mode), None if rank is None else rank - 2)
    return _over_all_axes(source, axes, Resolution.UNKNOWN if size is not None else _resolution_of(factor))


def _resolution_of(factor: object) -> Resolution:
    """How many positions a resize by this factor, or these, makes of one."""
    factors = factor if isinstance(factor, tuple | list) else (factor,)
    if not all(isinstance(f, int | float) for f in factors):
        return Resolution.UNKNOWN
    if all(f >= 1 for f in factors):
        return Resolution.HIGHER
    return Resolution.LOWER if all(f <= 1 for f in factors) else Resolution.UNKNOWN


def _upsample(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.Upsample.forward:
        return context.declined(node, f"{type(module).__name__} overrides the upsampling's forward")
    return _interpolated(node, module.size, module.scale_factor, module.mode, context)


def _interpolate(node: fx.Node, context: Context) -> Op | None:
    size, factor = argument(node, 1, "size"), argument(node, 2, "scale_factor")
    return _interpolated(node, size, factor, argument(node, 3, "mode", "nearest"), context)


def _adaptive(node: fx.Node, axes: int, sizes: object) -> Op:
    wanted = sizes if isinstance(sizes, tuple | list) else (sizes,)
    shrinks = all(size in (1, None) for size in wanted)
    return _over_all_axes(source_of(node), axes, Resolution.LOWER if shrinks else Resolution.UNKNOWN)


def _adaptive_module(axes: int) -> Callable[[fx.Node, Any, Context], Op | None]:
    plain = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]

    def rule(node: fx.Node, module: Any, context: Context) -> Op | None:
        if type(module).forward is not plain.forward:
            return context.declined(node, f"{type(module).__name__} overrides the pooling's forward")
        return _adaptive(node, axes, module.output_size)

    return rule


def _adaptive_function(axes: int) -> Rule:
    return lambda node, _: _adaptive(node, axes, argument(node, 1, "output_size"))


# --- means and selections -----------------------------------------------------------------------------


def _reduced(source: fx.Node, axes: Sequence[int], *, keep: bool, context: Context) -> Op:
    """One value per channel of what lies along these axes; not among them: the batch."""
    rank = context.shapes.rank(source)
    gone = _positions(axes, rank)
    if rank is None or not gone or 0 in gone:
        return Opaque()
    views = {}
    if rank - 1 not in gone:
        views[0] = 0  # channels last: tokens
    if 1 not in gone and rank > 2:
        views[rank - 2] = rank - 2 if keep else rank - 2 - len(gone)
    return _resampled(source, views, Resolution.LOWER, first=1 not in gone) or Opaque()


def _positions(axes: Sequence[int], rank: int | None) -> set[int]:
    """Axes counted from the front; none where one of them is none of the value's."""
    if rank is None or not all(-rank <= axis < rank for axis in axes):
        return set()
    return {axis % rank for axis in axes}


def _mean(node: fx.Node, context: Context) -> Op | None:
    source, axes, keep = source_of(node), as_wholes(argument(node, 1, "dim")), argument(node, 2, "keepdim", False)
    plain = isinstance(keep, bool) and node.kwargs.get("dtype") is None and len(node.args) <= 3
    return _reduced(source, axes, keep=keep, context=context) if plain else None


def _getitem(node: fx.Node, context: Context) -> Op | None:
    """x[:, 0], one token; x[:, :, 0, 0], one pixel; x[:, :, None, None], a vector as one pixel."""
    source, given = as_value(node.args[0]), node.args[1]
    if not isinstance(given, tuple):
        return None
    rank = known(context.shapes.rank(source))
    items = spread_ellipsis(given, rank)
    chosen = [axis for axis, item in enumerate(items) if isinstance(item, int)]
    if chosen and _are_whole([item for item in items if not isinstance(item, int)]):
        return _reduced(source, chosen, keep=False, context=context)
    if not _adds_axes_behind(items, rank):
        return None
    return _resampled(source, {rank - 2: len(items) - 2}, Resolution.SAME, first=True)


def _adds_axes_behind(items: Sequence[object], rank: int) -> bool:
    """Whether an index keeps all axes of a value, and adds some of size one."""
    kept, more = items[:rank], items[rank:]
    return len(kept) == rank >= 2 and _are_whole(kept) and all(item is None for item in more)


def _are_whole(items: Sequence[object]) -> bool:
    """Whether an index keeps everything along these axes."""
    return all(isinstance(item, slice) and item == slice(None) for item in items)


def _select(node: fx.Node, context: Context) -> Op | None:
    return _reduced(source_of(node), [as_whole(argument(node, 1, "dim"))], keep=False, context=context)


# --- the same positions in another order or under other axes --------------------------------------------


def _permuted(source: fx.Node, order: Sequence[int]) -> Op | None:
    rank = len(order)
    if rank < 3:
        return None
    order = [d % rank for d in order]
    if order == list(range(rank)):
        return Alias(source)
    if order[0] != 0:
        return None
    views = {}
    for before, channel in ((rank - 2, 1), (0, rank - 1)):  # channels first, channels last
        if order[1] == channel:
            views[before] = rank - 2
        elif order[-1] == channel:
            views[before] = 0
    return _resampled(source, views, Resolution.SAME, first=order[1] == 1)


def _permute(node: fx.Node, context: Context) -> Op | None:
    dims = argument(node, 1, "dims")
    return _permuted(as_value(node.args[0]), as_wholes(dims if isinstance(dims, tuple | list) else node.args[1:]))


def _transpose(node: fx.Node, context: Context) -> Op | None:
    source, a, b = source_of(node), as_whole(argument(node, 1, "dim0")), as_whole(argument(node, 2, "dim1"))
    order = list(range(known(context.shapes.rank(source))))
    order[a], order[b] = order[b], order[a]
    return _permuted(source, order)


def _flattened(source: fx.Node, start: object, end: object, context: Context) -> Op | None:
    rank = known(context.shapes.rank(source))
    merged = as_whole(start) % rank, as_whole(end) % rank
    if merged[0] == merged[1]:
        return Alias(source)
    if merged == (1, rank - 1):
        views = {rank - 2: 0} if _one_pixel(source, context) else {}
        return _resampled(source, views, Resolution.SAME, first=True)
    if merged == (2, rank - 1):
        return _resampled(source, {rank - 2: 1}, Resolution.SAME, first=True)
    return _resampled(source, {0: 0} if merged[1] == rank - 2 else {}, Resolution.SAME, first=False)


def _one_pixel(source: fx.Node, context: Context) -> bool:
    """Whether a value is (B, C, 1, ..., 1) for every input."""
    shape = context.structure.of(source)
    return shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])


def _flatten(node: fx.Node, context: Context) -> Op | None:
    start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    return _flattened(source_of(node), start, end, context)


def _flatten_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    return _flattened(source_of(node), module.start_dim, module.end_dim, context)


def _squeeze(node: fx.Node, context: Context) -> Op | None:
    source, axes = source_of(node), as_wholes(argument(node, 1, "dim"))
    shape = known(context.structure.of(source))
    if not all(-len(shape) <= axis < len(shape) and shape[axis] == 1 for axis in axes):
        return None  # squeezing an axis of another size does nothing
    return _reduced(source, axes, keep=False, context=context)


def _unsqueeze(node: fx.Node, context: Context) -> Op | None:
    source, dim = source_of(node), as_whole(argument(node, 1, "dim"))
    rank = known(context.shapes.rank(source))
    if rank < 2:
        return None
    place = dim % (rank + 1)
    views = {}
    if place >= 2:
        views[rank - 2] = rank - 1
    if 1 <= place < rank:
        views[0] = 0
    return _resampled(source, views, Resolution.SAME, first=place >= 2)


def _reshape(node: fx.Node, context: Context) -> Op | None:
    """A view that keeps the channel axis where it is, and whatever order the positions have."""
    source, sizes = as_value(node.args[0]), items_after(node, 1)
    rank = known(context.shapes.rank(source))
    if rank < 2 or len(sizes) < 2:
        return None
    if _leaves_vectors(source, sizes, context):
        return _resampled(source, {rank - 2: 0}, Resolution.SAME, first=True, pinned=sizes[1] != -1)
    batch = _keeps(sizes[0], source, 0, context)
    views = {}
    if batch and _keeps(sizes[1], source, 1, context):
        views[rank - 2] = len(sizes) - 2
    if rank > 2 and (batch or sizes[0] == -1) and _keeps(sizes[-1], source, rank - 1, context):
        views[0] = 0
    return _resampled(source, views, Resolution.SAME, first=rank - 2 in views, pinned=True)


def _leaves_vectors(source: fx.Node, sizes: Sequence[object], context: Context) -> bool:
    """Whether (B, C, 1, ..., 1) becomes (B, C): one of the two is named, and the other one follows."""
    if len(sizes) != 2 or not _one_pixel(source, context):
        return False
    if _keeps(sizes[0], source, 0, context):
        return True
    return sizes[0] == -1 and _keeps(sizes[1], source, 1, context)


def _keeps(size: object, source: fx.Node, axis: int, context: Context) -> bool:
    """Whether `size` is source.shape[axis] for every input."""
    if isinstance(size, int):
        return size > 0 and size == context.structure.size(source, axis)
    read = size_read(size)
    if read is None or read[1] != axis:
        return False
    if axis > 0 or read[0] is source:
        return read[0] is source
    same = batches(source, context.root, context.whole)
    return any(value in same for value in batches(read[0], context.root, context.whole))


MODULES: dict[type[nn.Module], Callable[[fx.Node, Any, Context], Op | None]] = {
    nn.Upsample: _upsample,
    nn.AdaptiveAvgPool1d: _adaptive_module(1),
    nn.AdaptiveAvgPool2d: _adaptive_module(2),
    nn.AdaptiveAvgPool3d: _adaptive_module(3),
    nn.Flatten: _flatten_module,
}
FUNCTIONS: dict[Any, Rule] = {
    F.interpolate: _interpolate,
    F.adaptive_avg_pool1d: _adaptive_function(1),
    F.adaptive_avg_pool2d: _adaptive_function(2),
    F.adaptive_avg_pool3d: _adaptive_function(3),
    operator.getitem: _getitem,
    torch.mean: _mean,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.squeeze: _squeeze,
    torch.unsqueeze: _unsqueeze,
}
METHODS: dict[str, Rule] = {
    "mean": _mean,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    "select": _select,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
}
