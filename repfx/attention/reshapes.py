"""Reshapes that divide channels: into which sizes, for every input and not for the example's alone.

A reshape is followed where it keeps all axes before the channels and divides the one axis that they lie along.
The sizes that it is given say so if they are numbers, or are read from what is as large for every input.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import fx

from repfx.attention.strands import KnownView, Strand
from repfx.graph import Affine, Alias, LiftedGraph, Sum, arithmetic, is_size, of_one_shape_before, size_read

_STEPS = 64  # values looked at before one that is reshaped


def reshaped(lifted: LiftedGraph, source: fx.Node, view: KnownView, sizes: Sequence[object]) -> Strand:
    """What a reshape of `source`, a view, to these sizes shows."""
    if sum(view.layout) != 1:
        return view.lost()
    rank, axis = len(view.layout), view.layout.index(True)
    reshape = _Reshape(lifted, source, sizes, axis, rank)
    divided = reshape.of_last_axis(view.table.size) if axis == rank - 1 else reshape.of_inner_axis(view.table.size)
    if divided is None:
        return view.lost()
    behind = len(sizes) - axis - len(divided)
    layout = (*view.layout[:axis], *(True,) * len(divided), *(False,) * behind)
    return KnownView(layout, view.table.reshape(divided))


def divided(total: int, sizes: Sequence[int | None]) -> list[int] | None:
    """The sizes with the one that is open (-1 or not known) filled in, if they divide `total`."""
    given = [size for size in sizes if size is not None and size > 0]
    count_open = len(sizes) - len(given)
    product = prod(given)
    if count_open > 1 or total % product or (not count_open and product != total):
        return None
    return [size if size is not None and size > 0 else total // product for size in sizes]


@dataclass(frozen=True)
class _Reshape:
    """A value of this rank, whose channels lie along one axis, and the sizes that it is given."""

    lifted: LiftedGraph
    source: fx.Node
    sizes: Sequence[object]
    axis: int
    rank: int

    def of_last_axis(self, total: int) -> list[int] | None:
        """The sizes of the last axis, of this many channels, which all trailing sizes divide."""
        numbers = self._numbers()
        # whole trailing sizes that make up all channels divide them, whatever the leading sizes are
        known = _make_up(numbers, total) or self._keeps_leading()
        return divided(total, numbers) if numbers and known else None

    def of_inner_axis(self, total: int) -> list[int] | None:
        """The sizes of the channels' axis; the axes behind it may be merged or divided as well."""
        numbers = self._numbers()
        count = self._count(numbers, total)
        return divided(total, numbers[:count]) if count and self._keeps_leading() else None

    def _count(self, numbers: Sequence[int | None], total: int) -> int:
        """How many sizes the channels are divided into; 0 where that is not known."""
        for count in range(1, len(numbers)):
            if _make_up(numbers[:count], total):
                return count
        behind = range(self.axis + 1, self.rank)
        return len(numbers) - 1 if self._is_area(self.sizes[-1], behind) else 0

    def _numbers(self) -> list[int | None]:
        """The sizes from the channels on, as far as they are numbers."""
        return [self._number(size) for size in self.sizes[self.axis :]]

    def _number(self, size: object) -> int | None:
        """A size that is a number or follows from channel counts; other sizes may be those of the examples only."""
        if isinstance(size, int):
            return size
        if not isinstance(size, fx.Node):
            return None
        read = _size_read(self.lifted, size)
        if read is not None:
            return self._channel_count(*read)
        if size.op != "call_function" or len(size.args) != 2:
            return None
        a, b = map(self._number, size.args)
        return None if a is None or b is None else arithmetic(size.target, a, b)

    def _channel_count(self, value: fx.Node, axis: int) -> int | None:
        """The size of a value along the axis that holds the channels here."""
        if self.lifted.rank(value) != self.rank or axis % self.rank != self.axis:
            return None
        return self.lifted.size(value, axis)

    def _keeps_leading(self) -> bool:
        """Whether the leading sizes are those of the value, read from it or from what it was made of."""
        images, alike = _sized_like(self.lifted, self.source)
        for axis, size in enumerate(self.sizes[: self.axis]):
            read = _size_read(self.lifted, size)
            if read is None or read[1] != axis or read[0] not in (alike if axis else images):
                return False
        return True

    def _is_area(self, size: object, axes: range) -> bool:
        """Whether a size is the product of the value's sizes along these axes, each read from what is as large."""
        _, alike = _sized_like(self.lifted, self.source)
        factors, found = [size], list[int]()
        while factors:
            factor = factors.pop()
            read = _size_read(self.lifted, factor)
            if read is not None and read[0] in alike:
                found.append(read[1])
            elif isinstance(factor, fx.Node) and factor.target is operator.mul:
                factors.extend(factor.args)
            else:
                return False
        return sorted(found) == list(axes)


def _make_up(sizes: Sequence[int | None], total: int) -> bool:
    """Whether all of these are numbers whose product is `total`."""
    numbers = [size for size in sizes if size is not None and size > 0]
    return len(numbers) == len(sizes) and prod(numbers) == total


def _size_read(lifted: LiftedGraph, size: object) -> tuple[fx.Node, int] | None:
    """(value, axis) that a size is read from; what is concluded rests on the reading."""
    work = [size] if isinstance(size, fx.Node) else []
    while work:
        node = work.pop()
        lifted.op(node)
        if is_size(node):
            work.extend(lifted.given(node))
    return size_read(size)


def _sized_like(lifted: LiftedGraph, node: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
    """(values with as many images, values whose other sizes, channels apart, are the same as well).

    An affine map keeps the number of images; one of single tokens or pixels keeps the others too, and so
    does a convolution of stride one that pads as much as it needs, and an activation.
    """
    images, alike = {node}, {node}
    whole = True
    while len(images) <= _STEPS:
        above = _sized_like_before(lifted, node)
        if above is None:
            break
        whole = whole and (not isinstance(lifted.op(node), Affine) or _keeps_sizes(lifted, node))
        node = above
        images.add(node)
        if whole:
            alike.add(node)
    return images, alike


def _sized_like_before(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """What a node reads, if its value has as many images and, where it is no map, every size of it."""
    match lifted.op(node):
        case Affine(source=source) | Alias(source=source) | Sum(terms=((source, _),)):
            return source
        case _:
            return of_one_shape_before(node, lifted.root, lifted.context.whole)


def _keeps_sizes(lifted: LiftedGraph, node: fx.Node) -> bool:
    map_ = lifted.own_map(node)
    return map_ is not None and all(s == 1 and e == -1 for s, e in zip(map_.stride, map_.extent))
