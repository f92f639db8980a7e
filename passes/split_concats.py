"""split_concats: a convolution of a concatenation is the sum of its slices, each inside its own branch.

    Given:  y = conv1x1(cat([f(a), g(b)]))      Result: y = conv_f(a) + conv_g(b)

where conv_f is the slice of the 1x1 that reads f(a), after f.  The branches may have any origins; a branch
that is no affine map, or that is read elsewhere too, keeps a convolution of its own slice.  Exact when each
slice composes with its branch (EXACTNESS, "Serial"); a slice that does not stays beside the branch.  The
constants of the convolution are added once.  Declined where the concatenation is read elsewhere, and where
the objective sees no gain: the sum must need fewer convolutions, or as many, fewer multiply-accumulates and
no more channels than the concatenation; nothing dense may grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from repfx.algebra import AffineConv, Kind, form_of, linear_part, restrict, select
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Concat, LiftedGraph, Op, applied
from repfx.rewriting import Add, Apply, Expr, Proposal

_DENSE = (Kind.CONV, Kind.LINEAR)


@dataclass(frozen=True)
class SplitConcats:
    """Distribute a map that mixes all channels over the branches of the concatenation it reads."""

    name: str = "split_concats"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """At most one accepted proposal, where at least one branch takes its slice; those that grow stay if need be."""
        split = _split_of(lifted, node)
        if split is None:
            return
        for branches in split.choices():
            if not lifted.alive(node):
                return
            refused = split.refused(branches)
            yield split.proposal(self.name, branches) if refused is None else refused.at(lifted.place(node))


@dataclass(frozen=True, eq=False)
class _Branch:
    """A slice of the map inside the map that makes its branch."""

    map: AffineConv
    source: fx.Node
    heavy: bool  # whether the branch is a convolution or linear now
    grows: bool  # whether one map has more multiply-accumulates than the two


@dataclass(frozen=True, eq=False)
class _Split:
    """A map of a concatenation, the slice of it that reads each part, and that slice inside the part's own map."""

    node: fx.Node
    map: AffineConv
    joined: fx.Node
    parts: Sequence[fx.Node]
    slices: Sequence[AffineConv]
    branches: Sequence[_Branch | None]

    def choices(self) -> Iterator[Sequence[_Branch | None]]:
        """All branches take their slices; all that do not grow do.  At least one of them is a convolution."""
        if _heavy(self.branches):
            yield self.branches
        thin = [branch if branch is None or not branch.grows else None for branch in self.branches]
        if thin != self.branches and _heavy(thin):
            yield thin

    def refused(self, branches: Sequence[_Branch | None]) -> Decline | None:
        """Why the sum is not worth it, if these branches take their slices."""
        if _heavy(branches) == len(self.parts) or self.map.out_channels <= self.map.in_channels:
            return None
        sizes = f"a sum of {self.map.out_channels} channels for {self.map.in_channels} joined"
        return Decline(Reason.COST, f"as many convolutions, and {sizes}")

    def proposal(self, rule: str, branches: Sequence[_Branch | None]) -> Proposal:
        """The sum of all slices, each inside its branch, or beside it where there is none."""
        interior = {self.node, self.joined}
        values: list[Expr] = []
        for part, own, branch in zip(self.parts, self.slices, branches):
            if branch is None:
                values.append(Apply(own, part))
                continue
            interior.add(part)
            values.append(Apply(branch.map, branch.source, (part,)))
        replacement = (self.node, Add(tuple(values)))
        return Proposal(rule, (replacement,), tuple(sorted(interior)), "concatenation became a sum")


def _heavy(branches: Sequence[_Branch | None]) -> int:
    """How many branches that take a slice are convolutions."""
    return sum(branch is not None and branch.heavy for branch in branches)


def _split_of(lifted: LiftedGraph, node: fx.Node) -> _Split | None:
    """The slices of a convolution or linear that reads a concatenation; None where a node is none."""
    op = lifted.op(node)
    joined = lifted.op(op.source) if isinstance(op, Affine) and op.axes is not None else None
    if not isinstance(op, Affine) or not isinstance(joined, Concat):
        return None
    map_ = _mixing(lifted, node, joined)
    slices = None if map_ is None else _slices(map_, [lifted.channels(part, map_.axes) for part in joined.parts])
    if map_ is None or slices is None:
        return None
    branches = [_absorbed(lifted, part, own) for part, own in zip(joined.parts, slices)]
    return _Split(node, map_, op.source, joined.parts, slices, branches)


def _mixing(lifted: LiftedGraph, node: fx.Node, joined: Concat) -> AffineConv | None:
    """The convolution or linear of a node over the parts in the order in which they are given."""
    map_ = lifted.own_map(node)
    if map_ is None or not (joined.first if map_.axes else joined.last) or form_of(map_).kind not in _DENSE:
        return None
    if joined.order is None:
        return map_
    reordered = applied(map_, select(map_.in_channels, joined.order, map_.axes))
    return None if isinstance(reordered, Decline) else reordered


def _slices(map_: AffineConv, sizes: Sequence[int | None]) -> list[AffineConv] | None:
    """The part of the map that reads each branch, its constants in the first; None unless all outputs read all."""
    known = [size for size in sizes if size is not None]
    if len(sizes) < 2 or len(known) < len(sizes) or sum(known) != map_.in_channels:
        return None
    slices: list[AffineConv] = []
    start = 0
    for size in known:
        own = restrict(map_, start, start + size)
        if (own.incidence.rows < 0).all(axis=1).any():
            return None  # a group, no mixture of all branches
        slices.append(linear_part(own) if slices else own)
        start += size
    return slices


def _absorbed(lifted: LiftedGraph, part: fx.Node, own: AffineConv) -> _Branch | None:
    """own(part) as one map, where that is exact and nothing else reads the part."""
    op = lifted.op(part)
    if not isinstance(op, Affine) or op.axes != own.axes or len(lifted.readers(part)) != 1:
        return None
    inner = lifted.map_of(part, own.axes)
    if isinstance(inner, Decline):
        return None
    merged = applied(own, inner)
    if isinstance(merged, Decline):
        return None
    before, after = form_of(inner), form_of(merged)
    grows = after.macs > before.macs + form_of(own).macs
    return _Branch(merged, op.source, before.kind in _DENSE, grows)
