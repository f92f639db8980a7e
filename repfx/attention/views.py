"""Views: what only moves the elements of a value, takes a part of them, or scales all of them by one number.

`viewed` is the value behind a view, `axis_order` and `transposed_last` say which axes a view moves.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from repfx.algebra import AffineConv
from repfx.decline import Decline
from repfx.graph import SPLITS, Affine, Alias, LiftedGraph, Sum, argument, is_size, name_of, split_dim

PARTS = (*SPLITS, "unbind")
RESHAPES = ("view", "reshape", "flatten", "unflatten")
_SWAPS = ("transpose", "swapaxes")
MOVES = (*RESHAPES, *_SWAPS, "permute")
_VIEWS = (*MOVES, *PARTS, "contiguous", "clone", "squeeze", "unsqueeze")


def viewed(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The value that a node only moves, takes a part of, or scales by one number."""
    op = lifted.op(node)
    if isinstance(op, Alias):
        return op.source
    if isinstance(op, Affine) and copied_channels(lifted, node) is not None:
        return op.source
    factor = scalar_factor(lifted, node)
    return _moved(lifted, node) if factor is None else factor


def views_of(lifted: LiftedGraph, node: fx.Node) -> list[fx.Node]:
    """A view, all that it is a view of, and last what is no view."""
    found = [node]
    while (above := viewed(lifted, found[-1])) is not None:
        found.append(above)
    return found


def _moved(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The value that an operation which is lifted as no map only moves, or takes a part of."""
    source = argument(node, 0, "input", node.kwargs.get("tensor"))
    if not isinstance(source, fx.Node) or lifted.context.constants.is_constant(source) or is_size(node):
        return None
    return source if _is_view(node) else None


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _is_basic(node.args[1])
    if node.target is getattr:
        return bool(node.args[1] == "mT")
    return name_of(node) in _VIEWS and not _is_of_another_dtype(node)


def _is_basic(index: object) -> bool:
    """Whether an index is made of integers, slices and the like: no gathering by a tensor."""
    return all(isinstance(item, int | slice) or item in (None, Ellipsis) for item in index_items(index))


def _is_of_another_dtype(node: fx.Node) -> bool:
    """Whether a node is `x.view(dtype)`."""
    if name_of(node) != "view" or len(node.args) != 2:
        return False
    return not isinstance(node.args[1], int | tuple | list | fx.Node)


def index_items(index: object) -> tuple[object, ...]:
    """What an index says axis by axis."""
    return index if isinstance(index, tuple) else (index,)


def is_split(node: fx.Node) -> bool:
    """Whether a node is a chunk, split or unbind, which gives several values."""
    return name_of(node) in PARTS


def part_axis(node: fx.Node) -> object:
    """The axis along which a chunk, split or unbind takes its parts."""
    name = name_of(node)
    return argument(node, 1, "dim", 0) if name == "unbind" else split_dim(node, name)


def selection(lifted: LiftedGraph, node: fx.Node) -> AffineConv | None:
    """The map of a node that copies channels, or None."""
    map_ = lifted.own_map(node)
    return map_ if map_ is not None and map_.selection is not None and map_.is_pointwise else None


def copied_channels(lifted: LiftedGraph, node: fx.Node) -> AffineConv | None:
    """The selection of a node that is no index: what an earlier rewrite left, a narrowing, a channel order."""
    return None if node.target is operator.getitem else selection(lifted, node)


def scalar_factor(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """What a node multiplies by one number (a Python number, or a constant of one element)."""
    match lifted.op(node):
        case Sum(terms=((source, _),), shift=0.0):
            return source
        case Affine(source=source, axes=None, build=build):
            return source if _is_scaling(build(0, 2)) else None
        case _:
            return None


def _is_scaling(two_channels: AffineConv | Decline) -> bool:
    """Whether an operation of no axes of its own is a factor, from what it is of two channels."""
    if isinstance(two_channels, Decline) or two_channels.biased:
        return False
    return two_channels.selection is None and two_channels.in_channels == 2


def transposed_last(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The value whose last two axes a node swaps, or None."""
    lifted.op(node)  # what is concluded from its arguments rests on it
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    return source if _swaps_last(node, lifted.rank(source)) else None


def _swaps_last(node: fx.Node, rank: int | None) -> bool:
    if name_of(node) in _SWAPS:
        swapped = swapped_axes(node, rank)
        return swapped is not None and set(swapped) == {-2, -1}
    order = axis_order(node, rank)
    return order is not None and len(order) >= 2 and order == _last_two_swapped(len(order))


def axis_order(node: fx.Node, rank: int | None) -> tuple[int, ...] | None:
    """Which axis of its source, of this rank, each axis of a transposition is; None where a node is none."""
    name = name_of(node)
    if name == "permute":
        return permuted_dims(node)
    if name == "getattr" and node.args[1] == "mT":
        return _last_two_swapped(2 if rank is None else rank)
    swapped = swapped_axes(node, rank) if name in _SWAPS else None
    if swapped is None or rank is None:
        return None
    a, b = swapped
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _last_two_swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def swapped_axes(node: fx.Node, rank: int | None) -> tuple[int, int] | None:
    """The axes that a `transpose` swaps, counted from the end where the rank is known; None if they are no numbers."""
    a, b = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    return (a, b) if rank is None else (a % rank - rank, b % rank - rank)


def permuted_dims(node: fx.Node) -> tuple[int, ...] | None:
    """The axes of a `permute`, counted from the front, or None where they are no numbers."""
    given = argument(node, 1, "dims", ()) if len(node.args) <= 2 else node.args[1:]
    dims: Sequence[object] = given if isinstance(given, tuple | list) else (given,)
    numbers = tuple(d for d in dims if isinstance(d, int))
    if not numbers or len(numbers) < len(dims):
        return None
    return tuple(d % len(numbers) for d in numbers)
