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

Rule = Callable[[fx.Node, Context], Op | None]
_SPATIAL = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
_NEAREST = ("nearest", "nearest-exact", "area")


def _resampled(
    source: fx.Node, views: Mapping[int, int], resolution: Resolution, *, first: bool, pinned: bool = False
) -> Resampling | None:
    return Resampling(source, dict(views).get, resolution, first, pinned) if views else None


def _spatial(source: object, axes: int | None, resolution: Resolution) -> Op | None:
    """An operation over all spatial axes, of any number where `axes` is None."""
    if not isinstance(source, fx.Node):
        return None
    return Resampling(source, lambda n: n if n and axes in (None, n) else None, resolution, first=True)


# --- resizing and pooling ---------------------------------------------------------------------------


def _interpolated(source: object, size: object, factor: object, mode: object, context: Context) -> Op | None:
    if mode not in _SPATIAL and mode not in _NEAREST:
        return Opaque()
    factors = factor if isinstance(factor, tuple | list) else (factor,)
    resolution = Resolution.UNKNOWN
    if size is None and all(isinstance(f, int | float) for f in factors):
        if all(f >= 1 for f in factors):
            resolution = Resolution.HIGHER
        elif all(f <= 1 for f in factors):
            resolution = Resolution.LOWER
    rank = context.shapes.rank(source) if isinstance(source, fx.Node) else None
    axes = _SPATIAL.get(str(mode), None if rank is None else rank - 2)
    return _spatial(source, axes, resolution)


def _upsample(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.Upsample.forward:
        return context.declined(node, f"{type(module).__name__} overrides the upsampling's forward")
    return _interpolated(argument(node, 0, "input"), module.size, module.scale_factor, module.mode, context)


def _interpolate(node: fx.Node, context: Context) -> Op | None:
    mode = argument(node, 3, "mode", "nearest")
    return _interpolated(
        argument(node, 0, "input"), argument(node, 1, "size"), argument(node, 2, "scale_factor"), mode, context
    )


def _adaptive(axes: int) -> Callable[[fx.Node, object], Op | None]:
    def rule(node: fx.Node, sizes: object) -> Op | None:
        wanted = sizes if isinstance(sizes, tuple | list) else (sizes,)
        shrinks = all(size in (1, None) for size in wanted)
        return _spatial(argument(node, 0, "input"), axes, Resolution.LOWER if shrinks else Resolution.UNKNOWN)

    return rule


def _adaptive_module(axes: int) -> Callable[[fx.Node, Any, Context], Op | None]:
    plain = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]

    def rule(node: fx.Node, module: Any, context: Context) -> Op | None:
        if type(module).forward is not plain.forward:
            return context.declined(node, f"{type(module).__name__} overrides the pooling's forward")
        return _adaptive(axes)(node, module.output_size)

    return rule


def _adaptive_function(axes: int) -> Rule:
    return lambda node, _: _adaptive(axes)(node, argument(node, 1, "output_size"))


# --- means and selections -----------------------------------------------------------------------------


def _reduced(source: fx.Node, axes: Sequence[int], *, keep: bool, context: Context) -> Op | None:
    """One value per channel of what lies along these axes; not among them: the batch."""
    rank = context.shapes.rank(source)
    if rank is None or not axes or not all(-rank <= a < rank for a in axes):
        return Opaque()
    gone = {a % rank for a in axes}
    if 0 in gone:
        return Opaque()
    views = {}
    if rank - 1 not in gone:
        views[0] = 0  # channels last: tokens
    if 1 not in gone and rank > 2:
        views[rank - 2] = rank - 2 if keep else rank - 2 - len(gone)
    return _resampled(source, views, Resolution.LOWER, first=1 not in gone) or Opaque()


def _mean(node: fx.Node, context: Context) -> Op | None:
    source, dims, keep = argument(node, 0, "input"), argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
    axes = (dims,) if isinstance(dims, int) else dims
    if not isinstance(source, fx.Node) or not isinstance(axes, tuple | list) or node.kwargs.get("dtype") is not None:
        return None
    if not isinstance(keep, bool) or len(node.args) > 3 or not all(isinstance(a, int) for a in axes):
        return None
    return _reduced(source, [int(a) for a in axes], keep=keep, context=context)


def _getitem(node: fx.Node, context: Context) -> Op | None:
    """x[:, 0], one token; x[:, :, 0, 0], one pixel; x[:, :, None, None], a vector as one pixel."""
    source, items = node.args
    if not isinstance(source, fx.Node) or not isinstance(items, tuple):
        return None
    rank = context.shapes.rank(source)
    if rank is None:
        return None
    if Ellipsis in items:
        place = items.index(Ellipsis)
        fill = rank - sum(i is not None for i in items) + 1
        items = (*items[:place], *(slice(None),) * fill, *items[place + 1 :])
    whole = [i for i in items if isinstance(i, slice) and i == slice(None)]
    chosen = [axis for axis, i in enumerate(items) if isinstance(i, int)]
    if chosen and len(whole) + len(chosen) == len(items):
        return _reduced(source, chosen, keep=False, context=context)
    if len(whole) == rank >= 2 and all(i is None for i in items[rank:]):
        return _resampled(source, {rank - 2: len(items) - 2}, Resolution.SAME, first=True)
    return None


def _select(node: fx.Node, context: Context) -> Op | None:
    source, dim = argument(node, 0, "input"), argument(node, 1, "dim")
    if not isinstance(source, fx.Node) or not isinstance(dim, int):
        return None
    return _reduced(source, [dim], keep=False, context=context)


# --- the same positions in another order or under other axes --------------------------------------------


def _permuted(source: object, order: Sequence[int]) -> Op | None:
    rank = len(order)
    if not isinstance(source, fx.Node) or rank < 3:
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
    order = dims if isinstance(dims, tuple | list) else node.args[1:]
    numbers = [d for d in order if isinstance(d, int)]
    return _permuted(node.args[0], numbers) if numbers and len(numbers) == len(order) else None


def _transpose(node: fx.Node, context: Context) -> Op | None:
    source, a, b = argument(node, 0, "input"), argument(node, 1, "dim0"), argument(node, 2, "dim1")
    rank = context.shapes.rank(source) if isinstance(source, fx.Node) else None
    if rank is None or not isinstance(a, int) or not isinstance(b, int):
        return None
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return _permuted(source, order)


def _flattened(source: object, start: object, end: object, context: Context) -> Op | None:
    rank = context.shapes.rank(source) if isinstance(source, fx.Node) else None
    if rank is None or not isinstance(source, fx.Node) or not isinstance(start, int) or not isinstance(end, int):
        return None
    start, end = start % rank, end % rank
    if start == end:
        return Alias(source)
    if (start, end) == (1, rank - 1):
        views = {rank - 2: 0} if _one_pixel(source, context) else {}
        return _resampled(source, views, Resolution.SAME, first=True)
    if (start, end) == (2, rank - 1):
        return _resampled(source, {rank - 2: 1}, Resolution.SAME, first=True)
    return _resampled(source, {0: 0} if end == rank - 2 else {}, Resolution.SAME, first=False)


def _one_pixel(source: fx.Node, context: Context) -> bool:
    """Whether a value is (B, C, 1, ..., 1) for every input."""
    shape = context.structure.of(source)
    return shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])


def _flatten(node: fx.Node, context: Context) -> Op | None:
    end = argument(node, 2, "end_dim", -1)
    return _flattened(argument(node, 0, "input"), argument(node, 1, "start_dim", 0), end, context)


def _flatten_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    return _flattened(argument(node, 0, "input"), module.start_dim, module.end_dim, context)


def _squeeze(node: fx.Node, context: Context) -> Op | None:
    source, dims = argument(node, 0, "input"), argument(node, 1, "dim")
    axes = (dims,) if isinstance(dims, int) else dims
    shape = context.structure.of(source) if isinstance(source, fx.Node) else None
    if shape is None or not isinstance(source, fx.Node) or not isinstance(axes, tuple | list):
        return None
    if not all(isinstance(a, int) and -len(shape) <= a < len(shape) and shape[a] == 1 for a in axes):
        return None  # squeezing an axis of another size does nothing
    return _reduced(source, [int(a) for a in axes], keep=False, context=context)


def _unsqueeze(node: fx.Node, context: Context) -> Op | None:
    source, dim = argument(node, 0, "input"), argument(node, 1, "dim")
    rank = context.shapes.rank(source) if isinstance(source, fx.Node) else None
    if rank is None or rank < 2 or not isinstance(source, fx.Node) or not isinstance(dim, int):
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
    source = node.args[0]
    sizes = node.args[1:] if len(node.args) != 2 or not isinstance(node.args[1], tuple | list) else node.args[1]
    rank = context.shapes.rank(source) if isinstance(source, fx.Node) else None
    if rank is None or rank < 2 or not isinstance(source, fx.Node) or not isinstance(sizes, tuple | list):
        return None
    if len(sizes) < 2:
        return None
    batch = _keeps(sizes[0], source, 0, context)
    vectors = len(sizes) == 2 and _one_pixel(source, context)
    pinned = list(sizes[1:]) != [-1]
    if vectors and (batch or (sizes[0] == -1 and _keeps(sizes[1], source, 1, context))):
        return _resampled(source, {rank - 2: 0}, Resolution.SAME, first=True, pinned=pinned)
    views = {}
    if batch and _keeps(sizes[1], source, 1, context):
        views[rank - 2] = len(sizes) - 2
    if rank > 2 and (batch or sizes[0] == -1) and _keeps(sizes[-1], source, rank - 1, context):
        views[0] = 0
    return _resampled(source, views, Resolution.SAME, first=rank - 2 in views, pinned=True)


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
