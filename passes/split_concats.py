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

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.algebra import AffineConv, Kind, form_of, linear_part, restrict, select
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Concat, LiftedGraph, Op, applied
from repfx.rewriting import Add, Apply, Expr, Proposal


@dataclass(frozen=True)
class SplitConcats:
    """Distribute a map that mixes all channels over the branches of the concatenation it reads."""

    name: str = "split_concats"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """At most one proposal, where at least one branch takes its slice."""
        op = lifted.op(node)
        if not isinstance(op, Affine) or op.axes is None:
            return
        joined = lifted.op(op.source)
        if not isinstance(joined, Concat) or not (joined.first if op.axes else joined.last):
            return
        map_ = lifted.map_of(node, op.axes)
        if isinstance(map_, Decline) or form_of(map_).kind not in (Kind.CONV, Kind.LINEAR):
            return
        if joined.order is not None:
            reordered = applied(map_, select(map_.in_channels, joined.order, map_.axes))
            if isinstance(reordered, Decline):
                return
            map_ = reordered
        sizes = [lifted.channels(part, map_.axes) for part in joined.parts]
        known = [size for size in sizes if size is not None]
        if len(joined.parts) < 2 or len(known) < len(sizes) or sum(known) != map_.in_channels:
            return
        slices = _slices(map_, known)
        if slices is None:
            return
        branches = [_absorbed(lifted, part, own) for part, own in zip(joined.parts, slices)]
        thin = [None if branch is not None and branch.grows else branch for branch in branches]
        for chosen in (branches, thin) if thin != branches else (branches,):
            heavy = sum(branch is not None and branch.heavy for branch in chosen)
            if not lifted.alive(node) or not heavy:
                continue
            if heavy < len(known) and map_.out_channels > map_.in_channels:
                fact = f"as many convolutions, and a sum of {map_.out_channels} channels for {map_.in_channels} joined"
                yield Decline(Reason.COST, fact, lifted.place(node))
            else:
                yield _split(self.name, node, op.source, joined.parts, slices, chosen)


@dataclass(frozen=True, eq=False)
class _Branch:
    """A slice of the map inside the map that makes its branch."""

    map: AffineConv
    source: fx.Node
    heavy: bool  # whether the branch is a convolution or linear now
    grows: bool  # whether one map has more multiply-accumulates than the two


def _slices(map_: AffineConv, sizes: list[int]) -> list[AffineConv] | None:
    """The part of the map that reads each branch, its constants in the first; None unless all outputs read all."""
    slices: list[AffineConv] = []
    start = 0
    for size in sizes:
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
    inner = lifted.map_of(part, op.axes)
    merged = inner if isinstance(inner, Decline) else applied(own, inner)
    if isinstance(inner, Decline) or isinstance(merged, Decline):
        return None
    before, after = form_of(inner), form_of(merged)
    grows = after.macs > before.macs + form_of(own).macs
    return _Branch(merged, op.source, before.kind in (Kind.CONV, Kind.LINEAR), grows)


def _split(
    rule: str,
    node: fx.Node,
    joined: fx.Node,
    parts: tuple[fx.Node, ...],
    slices: list[AffineConv],
    branches: list[_Branch | None],
) -> Proposal:
    interior = {node, joined}
    values: list[Expr] = []
    for part, own, branch in zip(parts, slices, branches):
        if branch is None:
            values.append(Apply(own, part))
            continue
        interior.add(part)
        values.append(Apply(branch.map, branch.source, (part,)))
    return Proposal(rule, ((node, Add(tuple(values))),), tuple(sorted(interior)), "concatenation became a sum")
