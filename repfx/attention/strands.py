"""Strands: which channels of a value each of its views holds.

A value is viewed by what only moves its elements (a reshape, a transposition, a split, a part of a split)
or multiplies all of them by one number.  A strand is the set of channels that such a view holds, and, where
the view still shows them, the axes along which they lie.  Where a view hides them the set is kept whole:
it may only be too large, never too small.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import fx

from repfx.algebra import AffineConv, Ints
from repfx.attention.recognition import name_of, permuted_dims, scalar_factor, transposed_last
from repfx.graph import Affine, Alias, LiftedGraph, Sum, argument, arithmetic, is_size, part_sizes, size_read

_SPLITS = ("chunk", "split", "split_with_sizes", "unbind")
_MOVES = (
    "view", "reshape", "flatten", "unflatten", "transpose", "swapaxes", "permute", "contiguous", "clone", "squeeze",
    "unsqueeze",
)  # fmt: skip
_STEPS = 64  # views looked at behind one value


@dataclass(frozen=True, eq=False)
class Strand:
    """A view of a value: the channels it holds, and how they lie.

    `layout[i]` tells whether axis i runs over channels; `table` lists them along those axes, in order.
    """

    channels: Ints  # sorted
    layout: tuple[bool, ...] | None = None
    table: Ints | None = None


@dataclass(frozen=True)
class Readers:
    """Everything that reads a value, behind its views."""

    views: dict[fx.Node, Strand]  # in order of discovery
    ends: tuple[tuple[fx.Node, fx.Node], ...]  # (reader, the view or value it reads)


def viewed(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The value that a node only moves, takes a part of, or scales by one number."""
    op = lifted.op(node)
    if isinstance(op, Alias):
        return op.source
    if isinstance(op, Affine) and node.target is not operator.getitem and selection(lifted, node) is not None:
        return op.source
    factor = scalar_factor(lifted, node)
    if factor is not None:
        return factor
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensor"))
    if not isinstance(first, fx.Node) or lifted.context.constants.is_constant(first) or is_size(node):
        return None
    if node.target is operator.getitem:
        return first if _basic(node.args[1]) else None
    if node.target is getattr:
        return first if node.args[1] == "mT" else None
    name = name_of(node)
    if name == "view" and len(node.args) == 2 and not isinstance(node.args[1], int | tuple | list | fx.Node):
        return None  # a view of another dtype
    return first if name in _MOVES or name in _SPLITS else None


def _basic(item: object) -> bool:
    """Whether an index is made of integers, slices and the like: no gathering by a tensor."""
    items = item if isinstance(item, tuple) else (item,)
    return all(isinstance(i, int | slice) or i is None or i is Ellipsis for i in items)


def selection(lifted: LiftedGraph, node: fx.Node) -> AffineConv | None:
    """The map of a node that copies channels, or None."""
    op = lifted.op(node)
    if not isinstance(op, Affine) or op.axes is None:
        return None
    map_ = lifted.map_of(node, op.axes)
    return map_ if isinstance(map_, AffineConv) and map_.selection is not None and map_.is_pointwise else None


def readers_of(lifted: LiftedGraph, node: fx.Node, channels: int, axes: int) -> Readers:
    """Everything that reads a value of so many channels, and which of them; `axes` as its map counts them."""
    rank = axes + 2 if axes else lifted.context.shapes.rank(node)
    every = np.arange(channels)
    if rank is None:
        strand = Strand(every)
    else:
        place = 1 if axes else rank - 1
        strand = Strand(every, tuple(i == place for i in range(rank)), every)
    views: dict[fx.Node, Strand] = {node: strand}
    ends: list[tuple[fx.Node, fx.Node]] = []
    work = [node]
    while work:
        value = work.pop()
        for user in value.users:
            if is_size(user):
                continue
            if len(views) <= _STEPS and user.op != "output" and viewed(lifted, user) is value:
                if user not in views:
                    views[user] = _step(lifted, user, value, views)
                    work.append(user)
            else:
                ends.append((user, value))
    return Readers(views, tuple(ends))


def _step(lifted: LiftedGraph, node: fx.Node, source: fx.Node, views: dict[fx.Node, Strand]) -> Strand:
    """The strand of a view, from that of what it views."""
    strand = views[source]
    if strand.layout is None or strand.table is None:
        return Strand(strand.channels)
    layout, table = strand.layout, strand.table
    if isinstance(lifted.op(node), Alias) or scalar_factor(lifted, node) is not None:
        return strand
    if name_of(node) in _SPLITS:
        return strand  # its parts are looked at one by one
    copied = selection(lifted, node) if node.target is not operator.getitem else None
    if copied is not None:  # a slice that an earlier rewrite left, a narrowing, a channel order
        axis = 1 if copied.axes else len(layout) - 1
        assert copied.selection is not None
        return _taken(strand, axis, copied.selection) if layout[axis] else Strand(strand.channels)
    if transposed_last(lifted, node) is not None:
        return _permuted(strand, (*range(len(layout) - 2), len(layout) - 1, len(layout) - 2))
    name = name_of(node)
    if name == "getitem":
        return _item(lifted, node, source, strand)
    if name in ("transpose", "swapaxes"):
        a, b = argument(node, 1, "dim0"), argument(node, 2, "dim1")
        if isinstance(a, int) and isinstance(b, int):
            order = list(range(len(layout)))
            order[a], order[b] = order[b], order[a]
            return _permuted(strand, order)
    if name == "permute":
        dims = permuted_dims(node)
        if dims is not None and len(dims) == len(layout):
            return _permuted(strand, dims)
    if name in ("contiguous", "clone"):
        return strand
    if name == "flatten":
        return _flattened(strand, argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))
    if name in ("view", "reshape"):
        sizes = node.args[1:] if len(node.args) != 2 or not isinstance(node.args[1], tuple | list) else node.args[1]
        return _reshaped(lifted, source, strand, list(sizes))
    if name == "unflatten":
        dim, sizes = argument(node, 1, "dim"), argument(node, 2, "sizes")
        if isinstance(dim, int) and isinstance(sizes, tuple | list):
            return _unflattened(strand, dim % len(layout), [s if isinstance(s, int) else None for s in sizes])
    return Strand(np.unique(table))


def _made(layout: Sequence[bool], table: Ints) -> Strand:
    return Strand(np.unique(table), tuple(layout), table)


def _permuted(strand: Strand, order: Sequence[int]) -> Strand:
    assert strand.layout is not None
    assert strand.table is not None
    place = {axis: i for i, axis in enumerate(a for a, own in enumerate(strand.layout) if own)}
    layout = [strand.layout[axis] for axis in order]
    return _made(layout, strand.table.transpose([place[axis] for axis in order if strand.layout[axis]]))


def _taken(strand: Strand, axis: int, indices: Ints | int | slice) -> Strand:
    """Some places along one axis that runs over channels; the axis goes where `indices` is one number."""
    assert strand.layout is not None
    assert strand.table is not None
    place = sum(strand.layout[:axis])
    table = strand.table[(*(slice(None),) * place, indices)]
    layout = list(strand.layout)
    if isinstance(indices, int):
        del layout[axis]
    return _made(layout, table)


def _item(lifted: LiftedGraph, node: fx.Node, source: fx.Node, strand: Strand) -> Strand:
    assert strand.layout is not None
    assert strand.table is not None
    index = node.args[1]
    name = name_of(source)
    if name in _SPLITS and isinstance(index, int):
        dim = argument(source, 1 if name == "unbind" else 2, "dim", 0)
        if not isinstance(dim, int):
            return Strand(strand.channels)
        dim %= len(strand.layout)
        if not strand.layout[dim]:
            layout = list(strand.layout)
            if name == "unbind":
                del layout[dim]
            return _made(layout, strand.table)
        if name == "unbind":
            return _taken(strand, dim, index)
        sizes = part_sizes(source, strand.table.shape[sum(strand.layout[:dim])])
        if sizes is None or not -len(sizes) <= index < len(sizes):
            return Strand(strand.channels)
        start = sum(sizes[: index % len(sizes)])
        return _taken(strand, dim, slice(start, start + sizes[index]))
    items = list(index) if isinstance(index, tuple) else [index]
    if None in items:
        return Strand(strand.channels)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = [slice(None)] * (len(strand.layout) - len(items) + 1)
    for axis in reversed(range(len(items))):
        item = items[axis]
        if not isinstance(item, int | slice):
            return Strand(strand.channels)
        now = strand.layout
        assert now is not None
        if now[axis]:
            if isinstance(item, slice) and not all(
                v is None or isinstance(v, int) for v in (item.start, item.stop, item.step)
            ):
                return Strand(strand.channels)
            strand = _taken(strand, axis, item)
        elif isinstance(item, int):
            strand = Strand(strand.channels, (*now[:axis], *now[axis + 1 :]), strand.table)
    return strand


def _flattened(strand: Strand, start: object, end: object) -> Strand:
    assert strand.layout is not None
    assert strand.table is not None
    if not isinstance(start, int) or not isinstance(end, int):
        return Strand(strand.channels)
    rank = len(strand.layout)
    start, end = start % rank, end % rank
    merged = strand.layout[start : end + 1]
    if len(set(merged)) != 1:
        return Strand(strand.channels)
    layout = (*strand.layout[:start], merged[0], *strand.layout[end + 1 :])
    if not merged[0]:
        return Strand(strand.channels, layout, strand.table)
    place = sum(strand.layout[:start])
    shape = strand.table.shape
    return _made(layout, strand.table.reshape(*shape[:place], -1, *shape[place + len(merged) :]))


def _unflattened(strand: Strand, axis: int, sizes: Sequence[int | None]) -> Strand:
    assert strand.layout is not None
    assert strand.table is not None
    layout: tuple[bool, ...] = strand.layout
    layout = (*layout[:axis], *(layout[axis],) * len(sizes), *layout[axis + 1 :])
    if not strand.layout[axis]:
        return _made(layout, strand.table)
    place = sum(strand.layout[:axis])
    split = _divided(strand.table.shape[place], sizes)
    if split is None:
        return Strand(strand.channels)
    shape = strand.table.shape
    return _made(layout, strand.table.reshape(*shape[:place], *split, *shape[place + 1 :]))


def _divided(total: int, sizes: Sequence[int | None]) -> list[int] | None:
    """The sizes with the one that is open (-1 or not known) filled in, if they divide `total`."""
    known = prod(s for s in sizes if s is not None and s > 0)
    open_ = [i for i, s in enumerate(sizes) if s is None or s < 0]
    if not known or len(open_) > 1 or total % known or (not open_ and known != total):
        return None
    return [s if s is not None and s > 0 else total // known for s in sizes]


def _reshaped(lifted: LiftedGraph, source: fx.Node, strand: Strand, sizes: list[object]) -> Strand:
    """A reshape that keeps all axes before the channels and divides the one axis they lie along."""
    assert strand.layout is not None
    assert strand.table is not None
    layout = strand.layout
    lost = Strand(strand.channels)
    if sum(layout) != 1:
        return lost
    axis = layout.index(True)
    total = strand.table.size
    rest = [_number(lifted, size, axis, len(layout)) for size in sizes[axis:]]
    if axis == len(layout) - 1:
        # whole trailing sizes that make up all channels divide them, whatever the leading sizes are
        keeps = _whole(rest, total) or _keeps(lifted, source, sizes[:axis])
        split = _divided(total, rest) if keeps and rest else None
    else:  # the axes behind the channels may be merged or divided as well
        counts = [n for n in range(1, len(rest)) if _whole(rest[:n], total)]
        if not counts and _is_area(lifted, source, sizes[-1], range(axis + 1, len(layout))):
            counts = [len(rest) - 1]
        split = _divided(total, rest[: counts[0]]) if counts and _keeps(lifted, source, sizes[:axis]) else None
    if split is None:
        return lost
    tail = len(rest) - len(split)
    return _made((*layout[:axis], *(True,) * len(split), *(False,) * tail), strand.table.reshape(split))


def _number(lifted: LiftedGraph, size: object, axis: int, rank: int) -> int | None:
    """A size that is a number or follows from channel counts; other sizes may be those of the examples only."""
    if isinstance(size, int):
        return size
    if not isinstance(size, fx.Node):
        return None
    read = _size_read(lifted, size)
    if read is not None:
        base, place = read
        known = lifted.context.shapes.rank(base)
        return lifted.context.shapes.size(base, place) if known == rank and place % rank == axis else None
    if size.op == "call_function" and len(size.args) == 2:
        a, b = (_number(lifted, arg, axis, rank) for arg in size.args)
        return None if a is None or b is None else arithmetic(size.target, a, b)
    return None


def _size_read(lifted: LiftedGraph, size: object) -> tuple[fx.Node, int] | None:
    """(value, axis) that a size is read from; what is concluded rests on the reading."""
    work = [size] if isinstance(size, fx.Node) else []
    while work:
        node = work.pop()
        lifted.op(node)
        if is_size(node):
            work.extend(node.all_input_nodes)
    return size_read(size)


def _keeps(lifted: LiftedGraph, source: fx.Node, sizes: Sequence[object]) -> bool:
    """Whether these are the leading sizes of a value, read from it or from what it was made of."""
    images, alike = _sized_like(lifted, source)
    reads = [_size_read(lifted, size) for size in sizes]
    return all(
        read is not None and read[1] == i and read[0] in (alike if i else images) for i, read in enumerate(reads)
    )


def _is_area(lifted: LiftedGraph, source: fx.Node, size: object, axes: range) -> bool:
    """Whether a size is the product of a value's sizes along these axes, each read from what is as large."""
    _, alike = _sized_like(lifted, source)
    factors, found = [size], []
    while factors:
        factor = factors.pop()
        read = _size_read(lifted, factor)
        if read is not None and read[0] in alike:
            found.append(read[1])
        elif isinstance(factor, fx.Node) and factor.target is operator.mul:
            factors.extend(factor.args)
        else:
            return False
    return sorted(found) == list(axes)


def _sized_like(lifted: LiftedGraph, node: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
    """(values with as many images, values whose other sizes, channels apart, are the same as well).

    An affine map keeps the number of images; one of single tokens or pixels keeps the others too, and so
    does a convolution of stride one that pads as much as it needs.
    """
    images, alike = {node}, {node}
    whole = True
    while len(images) <= _STEPS:
        match lifted.op(node):
            case Affine(source=above):
                whole = whole and _keeps_sizes(lifted, node)
            case Alias(source=above) | Sum(terms=((above, _),)):
                pass
            case _:
                break
        node = above
        images.add(node)
        if whole:
            alike.add(node)
    return images, alike


def _keeps_sizes(lifted: LiftedGraph, node: fx.Node) -> bool:
    op = lifted.op(node)
    assert isinstance(op, Affine)
    map_ = None if op.axes is None else lifted.map_of(node, op.axes)
    if not isinstance(map_, AffineConv):
        return False
    return all(s == 1 and e == -1 for s, e in zip(map_.stride, map_.extent))


def _whole(sizes: Sequence[int | None], total: int) -> bool:
    return all(s is not None and s > 0 for s in sizes) and prod(s for s in sizes if s is not None) == total
