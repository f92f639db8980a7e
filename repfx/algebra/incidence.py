"""Which output channel reads which input channels: the sparsity of a channel-mixing map.

Outputs that read the same inputs share one *read set*.  A dense map has one set, a map with g groups
has g sets, a depthwise map one single-element set per channel.  Storage is O(channels) for each of
them, and the groups of a convolution are recovered from the sets instead of being carried along.

Structure only: numpy integers, no weights.  Equal incidences compare equal, and what is derived from them is
derived once: a network of many alike blocks asks the same questions again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_REMEMBERED = 4096  # results kept of each derivation


@dataclass(frozen=True, eq=False)
class Incidence:
    """Output `o` reads the inputs `sets[classes[o]]`; -1 pads short sets at the end."""

    classes: Ints  # (O,)
    sets: Ints  # (G, K), each row sorted, -1 padded

    @cached_property
    def _content(self) -> tuple[tuple[int, int], bytes, bytes]:
        return (len(self.classes), self.sets.shape[1]), self.classes.tobytes(), self.sets.tobytes()

    @cached_property
    def _hash(self) -> int:
        return hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Incidence) and self._hash == other._hash and self._content == other._content

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return len(self.classes)

    @property
    def width(self) -> int:
        """The largest number of inputs that one output reads."""
        return self.sets.shape[1]

    @property
    def rows(self) -> Ints:
        """Read set of each output, (O, K); large where the map is dense, so it is not kept."""
        return self.sets[self.classes]

    @cached_property
    def sizes(self) -> Ints:
        """Number of inputs in each set, (G,)."""
        return (self.sets >= 0).sum(axis=1)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output reads at most one input."""
        return self.width <= 1

    @cached_property
    def firsts(self) -> Ints:
        """The first input that each output reads, (O,)."""
        return self.sets[self.classes, 0]

    @cached_property
    def one_to_one(self) -> bool:
        """Whether output c reads input c alone."""
        return self.width == 1 and np.array_equal(self.firsts, np.arange(self.outputs))

    @cached_property
    def reads(self) -> Ints:
        """Sorted distinct inputs that any output reads."""
        flat = np.unique(self.sets)
        return flat[flat >= 0]

    @staticmethod
    def build(classes: Ints, sets: Ints) -> Incidence:
        """Canonical form: equal sets merged, unused sets dropped, no superfluous padding."""
        used, classes = np.unique(classes, return_inverse=True)
        sets = sets[used]
        if len(sets) > 1:
            sets, merged = np.unique(sets, axis=0, return_inverse=True)
            classes = merged.reshape(-1)[classes]
        width = int((sets >= 0).sum(axis=1).max(initial=0))
        return Incidence(classes.astype(np.int64), np.ascontiguousarray(sets[:, :width]))

    @staticmethod
    def grouped(inputs: int, outputs: int, groups: int) -> Incidence:
        """The incidence of a convolution with `groups` groups."""
        return _grouped(inputs, outputs, groups)

    @staticmethod
    def selecting(indices: Ints) -> Incidence:
        """Output `o` reads the one input `indices[o]`."""
        return _selecting(np.ascontiguousarray(indices, dtype=np.int64).tobytes())

    def take(self, outputs: Ints) -> Incidence:
        """Only these outputs, in this order."""
        return _taken(self, np.ascontiguousarray(outputs, dtype=np.int64).tobytes())

    def after(self, inner: Incidence) -> Incidence:
        """What the outputs read through `inner`: the incidence of self(inner(x))."""
        return _after(self, inner)

    def union(self, outputs: Ints) -> Ints:
        """Sorted inputs that any of these outputs reads."""
        distinct = np.unique(self.classes[outputs])
        if len(distinct) == 1:
            row = self.sets[distinct[0]]
            return row[row >= 0]
        flat = np.unique(self.sets[distinct])
        return flat[flat >= 0]

    def joined(self, other: Incidence) -> Incidence:
        """Each output reads what it reads in either: the incidence of a sum."""
        return _joined(self, other)

    @staticmethod
    def stacked(parts: list[Incidence]) -> Incidence:
        """Outputs of all parts one after the other: the incidence of a concatenation."""
        return _stacked(tuple(parts))

    def same(self, other: Incidence) -> bool:
        """Whether every output reads the same inputs in both."""
        return self == other

    def positions(self, other: Incidence) -> Ints:
        """Where the reads of `self` stand in the (wider) reads of `other`: (O, K), -1 where padded."""
        pairs, classes = np.unique(np.stack([self.classes, other.classes], 1), axis=0, return_inverse=True)
        places = np.full((len(pairs), self.width), -1, dtype=np.int64)
        for b in np.unique(pairs[:, 1]):
            theirs = other.sets[b][other.sets[b] >= 0]
            users = np.flatnonzero(pairs[:, 1] == b)
            mine = self.sets[pairs[users, 0]]
            places[users] = np.where(mine >= 0, np.searchsorted(theirs, mine), -1)
        return places[classes.reshape(-1)]

    def restricted(self, start: int, stop: int) -> Incidence:
        """Only the reads in start..stop, counted from start."""
        rows = [row[(row >= start) & (row < stop)] - start for row in self.sets]
        return Incidence.build(self.classes, _padded(rows))

    def places_after_restriction(self, start: int, stop: int) -> Ints:
        """Where each read stands among the kept ones: (O, K), -1 where dropped."""
        kept = (self.sets >= start) & (self.sets < stop)
        return np.where(kept, np.cumsum(kept, axis=1) - 1, -1)[self.classes]


@lru_cache(_REMEMBERED)
def _grouped(inputs: int, outputs: int, groups: int) -> Incidence:
    sets = np.arange(inputs, dtype=np.int64).reshape(groups, inputs // groups)
    return Incidence(np.repeat(np.arange(groups, dtype=np.int64), outputs // groups), sets)


@lru_cache(_REMEMBERED)
def _selecting(indices: bytes) -> Incidence:
    distinct, classes = np.unique(np.frombuffer(indices, np.int64), return_inverse=True)
    return Incidence(classes.reshape(-1).astype(np.int64), distinct.astype(np.int64)[:, None])


@lru_cache(_REMEMBERED)
def _taken(incidence: Incidence, outputs: bytes) -> Incidence:
    return Incidence.build(incidence.classes[np.frombuffer(outputs, np.int64)], incidence.sets)


@lru_cache(_REMEMBERED)
def _after(outer: Incidence, inner: Incidence) -> Incidence:
    if outer.one_to_one and outer.outputs == inner.outputs:
        return inner
    if outer.width == 1:
        return Incidence.build(inner.classes[outer.sets[:, 0]][outer.classes], inner.sets)
    unions = [inner.union(row[row >= 0]) for row in outer.sets]
    return Incidence.build(outer.classes, _padded(unions))


@lru_cache(_REMEMBERED)
def _joined(a: Incidence, b: Incidence) -> Incidence:
    if a == b:
        return a
    pairs, classes = np.unique(np.stack([a.classes, b.classes], 1), axis=0, return_inverse=True)
    unions = []
    for left, right in pairs:
        flat = np.unique(np.concatenate([a.sets[left], b.sets[right]]))
        unions.append(flat[flat >= 0])
    return Incidence.build(classes.reshape(-1), _padded(unions))


@lru_cache(_REMEMBERED)
def _stacked(parts: tuple[Incidence, ...]) -> Incidence:
    width = max(part.width for part in parts)
    sets = np.concatenate([_widened(part.sets, width) for part in parts])
    starts = np.cumsum([0] + [len(part.sets) for part in parts[:-1]])
    classes = np.concatenate([part.classes + start for part, start in zip(parts, starts)])
    return Incidence.build(classes, sets)


def _widened(sets: Ints, width: int) -> Ints:
    if sets.shape[1] == width:
        return sets
    return np.pad(sets, ((0, 0), (0, width - sets.shape[1])), constant_values=-1)


def _padded(rows: list[Ints]) -> Ints:
    width = max((len(row) for row in rows), default=0)
    sets = np.full((len(rows), width), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        sets[i, : len(row)] = row
    return sets
