"""Strands: which channels of a value one of its views holds, and how they lie in it.

A view shows its channels, or it may hide how they lie: then its set of channels may only be too large, never
too small.  What a reshape, a transposition or an index makes of a view that shows them is a method of `KnownView`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repfx.algebra import Ints


@dataclass(frozen=True, eq=False)
class LostView:
    """A view that holds no channels but these; how they lie is not known."""

    channels: Ints  # sorted


@dataclass(frozen=True, eq=False)
class KnownView:
    """A view that shows its channels.

    `layout[i]` tells whether axis i runs over channels; `table` lists them along those axes, in order.
    """

    layout: tuple[bool, ...]
    table: Ints  # one axis for each that runs over channels

    @property
    def channels(self) -> Ints:
        """The channels that the view holds, sorted."""
        return np.unique(self.table)

    def lost(self) -> LostView:
        """The same channels, lying in a way that is not followed."""
        return LostView(self.channels)

    def length(self, axis: int) -> int:
        """Number of channels along one axis that runs over them."""
        return int(self.table.shape[self._place(axis)])

    def _place(self, axis: int) -> int:
        """The axis of the table that lies along this axis, or before which it would."""
        return sum(self.layout[:axis])

    def permute(self, order: Sequence[int]) -> KnownView:
        """Axes in another order: axis i is `order[i]` of this view."""
        places = [self._place(axis) for axis in order if self.layout[axis]]
        return KnownView(tuple(self.layout[axis] for axis in order), self.table.transpose(places))

    def take(self, axis: int, indices: Ints | slice) -> KnownView:
        """Some places along one axis that runs over channels."""
        before = (slice(None),) * self._place(axis)
        return KnownView(self.layout, self.table[(*before, indices)])

    def at(self, axis: int, index: int) -> KnownView:
        """One place along any axis, which goes."""
        layout = (*self.layout[:axis], *self.layout[axis + 1 :])
        if not self.layout[axis]:
            return KnownView(layout, self.table)
        return KnownView(layout, np.asarray(self.table.take(index, self._place(axis))))

    def flatten(self, start: int, end: int) -> Strand:
        """The axes from `start` to `end`, included, as one; it shows its channels unless they lie along some only."""
        merged = self.layout[start : end + 1]
        if len(set(merged)) != 1:
            return self.lost()
        layout = (*self.layout[:start], merged[0], *self.layout[end + 1 :])
        if not merged[0]:
            return KnownView(layout, self.table)
        place, shape = self._place(start), self.table.shape
        return KnownView(layout, self.table.reshape(*shape[:place], -1, *shape[place + len(merged) :]))

    def divide(self, axis: int, sizes: Sequence[int]) -> KnownView:
        """One axis that runs over channels as several, of these sizes."""
        place, shape = self._place(axis), self.table.shape
        table = self.table.reshape(*shape[:place], *sizes, *shape[place + 1 :])
        return KnownView((*self.layout[:axis], *(True,) * len(sizes), *self.layout[axis + 1 :]), table)

    def stretch(self, axis: int, count: int) -> KnownView:
        """One axis along which no channels lie as `count` of them."""
        return KnownView((*self.layout[:axis], *(False,) * count, *self.layout[axis + 1 :]), self.table)


Strand = KnownView | LostView


def whole(channels: int, rank: int | None, axis: int) -> Strand:
    """The strand of a value itself, whose channels lie along one axis."""
    every = np.arange(channels)
    return LostView(every) if rank is None else KnownView(tuple(i == axis for i in range(rank)), every)
