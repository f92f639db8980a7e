"""Channel readers: everything that reads a value, behind its views, and which of its channels each view holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from repfx.attention.reshapes import divided, reshaped
from repfx.attention.strands import KnownView, LostView, Strand, whole
from repfx.attention.views import PARTS, axis_order, copied_channels, index_items, part_axis, scalar_factor, viewed
from repfx.graph import Alias, LiftedGraph, argument, is_size, name_of, part_sizes

_STEPS = 64  # views looked at behind one value


@dataclass(frozen=True)
class Readers:
    """Everything that reads a value, behind its views."""

    views: dict[fx.Node, Strand]  # in order of discovery
    ends: tuple[tuple[fx.Node, fx.Node], ...]  # (reader, the view or value it reads)


def readers_of(lifted: LiftedGraph, node: fx.Node, channels: int, axes: int) -> Readers:
    """Everything that reads a value of so many channels, and which of them; `axes` as its map counts them."""
    rank = axes + 2 if axes else lifted.rank(node)
    views = {node: whole(channels, rank, 1 if axes else (rank or 0) - 1)}
    ends: list[tuple[fx.Node, fx.Node]] = []
    work = [node]
    while work:
        value = work.pop()
        for user in lifted.users(value):
            if is_size(user):
                continue
            if len(views) > _STEPS or not is_view_of(lifted, user, value):
                ends.append((user, value))
            elif user not in views:
                views[user] = _step(lifted, user, value, views[value])
                work.append(user)
    return Readers(views, tuple(ends))


def is_view_of(lifted: LiftedGraph, node: fx.Node, value: fx.Node) -> bool:
    """Whether a reader of a value is a view of it."""
    return not lifted.is_output(node) and viewed(lifted, node) is value


# --- one view after another -------------------------------------------------------------------------


def _step(lifted: LiftedGraph, node: fx.Node, source: fx.Node, strand: Strand) -> Strand:
    """The strand of a view, from that of what it views."""
    if isinstance(strand, LostView) or _is_same(lifted, node):
        return strand
    copied = copied_channels(lifted, node)
    if copied is not None and copied.selection is not None:
        axis = 1 if copied.axes else len(strand.layout) - 1
        return strand.take(axis, copied.selection) if strand.layout[axis] else strand.lost()
    rule = _RULES.get(name_of(node))
    return strand.lost() if rule is None else rule(lifted, node, source, strand)


def _is_same(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether a view shows what its source does; the parts of a split are looked at one by one."""
    if isinstance(lifted.op(node), Alias) or scalar_factor(lifted, node) is not None:
        return True
    return name_of(node) in (*PARTS, "contiguous", "clone")


def _transposition(lifted: LiftedGraph, node: fx.Node, source: fx.Node, view: KnownView) -> Strand:
    order = axis_order(node, len(view.layout))
    return view.lost() if order is None or len(order) != len(view.layout) else view.permute(order)


def _index(lifted: LiftedGraph, node: fx.Node, source: fx.Node, view: KnownView) -> Strand:
    if name_of(source) in PARTS:
        return _part(source, node.args[1], view)
    items = _each_axis(node.args[1], len(view.layout))
    if items is None:
        return view.lost()
    for axis, item in reversed(list(enumerate(items))):
        step = _indexed(view, axis, item)
        if isinstance(step, LostView):
            return step
        view = step
    return view


def _each_axis(index: object, rank: int) -> list[object] | None:
    """What an index says of the leading axes, the last one said included; None where it makes new ones."""
    items = list(index_items(index))
    if None in items:
        return None
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = [slice(None)] * (rank - len(items) + 1)
    return items


def _indexed(view: KnownView, axis: int, item: object) -> Strand:
    """What an index of one axis leaves."""
    if isinstance(item, int):
        return view.at(axis, item)
    if not isinstance(item, slice):
        return view.lost()
    if not view.layout[axis]:
        return view
    numbers = [end for end in (item.start, item.stop, item.step) if end is not None]
    return view.take(axis, item) if all(isinstance(end, int) for end in numbers) else view.lost()


def _part(split: fx.Node, index: object, view: KnownView) -> Strand:
    """One part of what a chunk, split or unbind divides."""
    dim = part_axis(split)
    if not isinstance(index, int) or not isinstance(dim, int):
        return view.lost()
    axis = dim % len(view.layout)
    if name_of(split) == "unbind":
        return view.at(axis, index)
    if not view.layout[axis]:
        return view
    sizes = part_sizes(split, view.length(axis))
    if sizes is None or not -len(sizes) <= index < len(sizes):
        return view.lost()
    start = sum(sizes[: index % len(sizes)])
    return view.take(axis, slice(start, start + sizes[index]))


def _flattening(lifted: LiftedGraph, node: fx.Node, source: fx.Node, view: KnownView) -> Strand:
    start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    if not isinstance(start, int) or not isinstance(end, int):
        return view.lost()
    rank = len(view.layout)
    return view.flatten(start % rank, end % rank)


def _reshaping(lifted: LiftedGraph, node: fx.Node, source: fx.Node, view: KnownView) -> Strand:
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    return reshaped(lifted, source, view, sizes)


def _unflattening(lifted: LiftedGraph, node: fx.Node, source: fx.Node, view: KnownView) -> Strand:
    dim, sizes = argument(node, 1, "dim"), argument(node, 2, "sizes")
    if not isinstance(dim, int) or not isinstance(sizes, tuple | list):
        return view.lost()
    axis = dim % len(view.layout)
    if not view.layout[axis]:
        return view.stretch(axis, len(sizes))
    numbers = divided(view.length(axis), [size if isinstance(size, int) else None for size in sizes])
    return view.lost() if numbers is None else view.divide(axis, numbers)


_RULES: dict[str, Callable[[LiftedGraph, fx.Node, fx.Node, KnownView], Strand]] = {
    "getattr": _transposition,  # x.mT
    "transpose": _transposition,
    "swapaxes": _transposition,
    "permute": _transposition,
    "getitem": _index,
    "flatten": _flattening,
    "view": _reshaping,
    "reshape": _reshaping,
    "unflatten": _unflattening,
}
