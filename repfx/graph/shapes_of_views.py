"""Shapes of views and selections: axes that move, merge, part, go or get fewer entries."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from repfx.graph.module_traversal import attribute
from repfx.graph.nodes import argument, name_of
from repfx.graph.shape_rules import (
    KnownShapes,
    Shape,
    axes_in,
    axis_in,
    listed,
    replaced,
    same,
    shape_of,
    told,
)
from repfx.graph.splits import SPLITS, part_sizes, split_dim

# --- the same numbers under other axes -------------------------------------------------------------


def viewed(node: fx.Node, shapes: KnownShapes) -> Shape:
    """view and reshape: the sizes that are written."""
    sizes = listed(node, "shape", "size")
    if sizes is None or not all(isinstance(size, int | fx.Node) for size in sizes):
        return None  # a view of another dtype
    if len(sizes) == 1 and isinstance(sizes[0], fx.Node):
        return None  # a whole shape, or one number: the rank is not written here
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in sizes)


def permuted(node: fx.Node, shapes: KnownShapes) -> Shape:
    """permute."""
    given, order = same(node, shapes), listed(node, "dims")
    if order is None:
        return None
    if given is None:
        return (None,) * len(order)
    axes = axes_in(given, list(order))
    return None if axes is None else tuple(given[axis] for axis in axes)


def transposed(node: fx.Node, shapes: KnownShapes) -> Shape:
    """transpose: two axes change places."""
    given = same(node, shapes)
    if given is None:
        return None
    axes = axes_in(given, [argument(node, 1, "dim0"), argument(node, 2, "dim1")])
    if axes is None:
        return None
    sizes = list(given)
    sizes[axes[0]], sizes[axes[1]] = given[axes[1]], given[axes[0]]
    return tuple(sizes)


def flattened(node: fx.Node, shapes: KnownShapes) -> Shape:
    """flatten: some axes in a row become one."""
    given = same(node, shapes)
    if given is None:
        return None
    axes = axes_in(given, [told(node, shapes, 1, "start_dim", 0), told(node, shapes, 2, "end_dim", -1)])
    if axes is None:
        return None
    start, end = axes
    total: int | None = 1
    for size in given[start : end + 1]:
        total = None if size is None or total is None else total * size
    return (*given[:start], total, *given[end + 1 :])


def unflattened(node: fx.Node, shapes: KnownShapes) -> Shape:
    """unflatten: one axis becomes several."""
    given, sizes = same(node, shapes), argument(node, 2, "sizes")
    if given is None or not isinstance(sizes, tuple | list):
        return None
    axis = axis_in(given, argument(node, 1, "dim"))
    if axis is None:
        return None
    return replaced(given, axis, *(size if isinstance(size, int) and size >= 0 else None for size in sizes))


def squeezed(node: fx.Node, shapes: KnownShapes) -> Shape:
    """squeeze: axes of one entry go."""
    given = same(node, shapes)
    axes = None if given is None else axes_in(given, argument(node, 1, "dim"))
    if given is None or axes is None or any(given[axis] is None for axis in axes):
        return None
    return tuple(size for axis, size in enumerate(given) if axis not in axes or size != 1)


def unsqueezed(node: fx.Node, shapes: KnownShapes) -> Shape:
    """unsqueeze: a new axis of one entry."""
    given = same(node, shapes)
    place = None if given is None else axis_in((*given, None), argument(node, 1, "dim", 0))
    return None if given is None or place is None else (*given[:place], 1, *given[place:])


# --- some of the numbers ---------------------------------------------------------------------------


def selected(node: fx.Node, shapes: KnownShapes) -> Shape:
    """select: one entry along an axis, which goes."""
    given = same(node, shapes)
    axis = None if given is None else axis_in(given, argument(node, 1, "dim"))
    return None if given is None or axis is None else replaced(given, axis)


def narrowed(node: fx.Node, shapes: KnownShapes) -> Shape:
    """narrow: some entries in a row along an axis."""
    return _shortened(node, shapes, argument(node, 3, "length"))


def index_selected(node: fx.Node, shapes: KnownShapes) -> Shape:
    """index_select: the entries along an axis that an index names."""
    index = argument(node, 2, "index")
    entries = shapes.constant(index) if isinstance(index, fx.Node) else None
    return _shortened(node, shapes, entries[0] if entries is not None and len(entries) == 1 else None)


def _shortened(node: fx.Node, shapes: KnownShapes, length: object) -> Shape:
    """Axis `dim` has that many entries left."""
    given = same(node, shapes)
    axis = None if given is None else axis_in(given, argument(node, 1, "dim"))
    if given is None or axis is None:
        return None
    return replaced(given, axis, length if isinstance(length, int) else None)


def item(node: fx.Node, shapes: KnownShapes) -> Shape:
    """x[...], or one part of a chunk, split or unbind."""
    source, index = node.args
    if not isinstance(source, fx.Node):
        return None
    if isinstance(index, int):
        return _part(source, index, shapes)
    given = shapes.of(source)
    if given is None or not isinstance(index, tuple | slice):
        return None
    return _indexed(given, index if isinstance(index, tuple) else (index,), shapes)


def _indexed(given: tuple[int | None, ...], items: tuple[object, ...], shapes: KnownShapes) -> Shape:
    """One axis after the other: a slice shortens it, a number takes it away, None makes a new one."""
    gathers = sum(isinstance(index, fx.Node | list) for index in items)
    out: list[int | None] = []
    sizes = iter(given)
    for index in _spelled_out(items, len(given)):
        if index is None:
            out.append(1)
            continue
        size = next(sizes)
        if isinstance(index, slice):
            out.append(_sliced(size, index))
        elif isinstance(index, fx.Node | list):
            length = _length(index, shapes)
            if gathers != 1 or length is None:
                return None
            out.append(length)
        elif not isinstance(index, int):
            return None
    return (*out, *sizes)


def _spelled_out(items: tuple[object, ...], rank: int) -> tuple[object, ...]:
    """The items with whole slices in place of `...`."""
    if Ellipsis not in items:
        return items
    place = items.index(Ellipsis)
    missing = rank - sum(index is not None for index in items) + 1
    return (*items[:place], *(slice(None),) * missing, *items[place + 1 :])


def _sliced(size: int | None, index: slice) -> int | None:
    """How many entries a slice of one axis leaves."""
    if index == slice(None):
        return size
    plain = all(bound is None or isinstance(bound, int) for bound in (index.start, index.stop, index.step))
    return len(range(size)[index]) if size is not None and plain else None


def _length(index: fx.Node | list[object], shapes: KnownShapes) -> int | None:
    """Entries of an index along one axis; None for masks and for what has several axes."""
    if isinstance(index, list):
        return len(index) if all(type(i) is int for i in index) else None
    shape = shapes.constant(index)
    tensor = attribute(shapes.root, str(index.target)) if index.op == "get_attr" else None
    integers = isinstance(tensor, Tensor) and tensor.dtype in (torch.int64, torch.int32, torch.int16)
    return shape[0] if integers and shape is not None and len(shape) == 1 else None


def _part(source: fx.Node, index: int, shapes: KnownShapes) -> Shape:
    """One part of a chunk, split or unbind."""
    name = name_of(source)
    given = shape_of(source.args[0] if source.args else _named_source(source), shapes)
    if given is None or name not in (*SPLITS, "unbind"):
        return None
    axis = axis_in(given, argument(source, 1, "dim", 0) if name == "unbind" else split_dim(source, name))
    if axis is None:
        return None
    if name == "unbind":
        return replaced(given, axis)
    sizes = part_sizes(source, given[axis]) or ()
    return replaced(given, axis, sizes[index] if -len(sizes) <= index < len(sizes) else None)


def _named_source(split: fx.Node) -> object:
    return split.kwargs.get("input", split.kwargs.get("tensor"))
