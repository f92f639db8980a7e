"""commute_resampling: per-pixel maps pass resamplings, to where they merge or cost less.

    Given:  y = linear(mean(bn(x)))             Result: y = linear'(mean(x))
            y = bn(upsample(conv(x)))                   y = upsample(conv'(x))
            y = conv1x1(upsample(conv(x)))              y = upsample(conv'(x))
            y = linear(mean(conv1x1(x)))                y = linear'(mean(x))
            y = conv1x1(upsample(x))                    y = upsample(conv1x1(x))

A resampling applies one linear map over positions to every channel; its rows sum to one, so it commutes
with every per-pixel affine map, bias included.  Exact always.  Declined where the value between is read
elsewhere, and where some input size would cost more multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from repfx.algebra import AffineConv, Kind, form_of, over
from repfx.decline import Decline, Reason
from repfx.graph import ANY, Affine, LiftedGraph, Op, Resampling, Resolution, Sum, applied
from repfx.rewriting import Absorption, Apply, Expr, Proposal, Ref, Through, absorbed, map_over

_NOT_MORE = (Resolution.LOWER, Resolution.SAME)
_NOT_FEWER = (Resolution.HIGHER, Resolution.SAME)


@dataclass(frozen=True)
class CommuteResampling:
    """Move per-pixel maps through upsampling, pooling, means and transpositions."""

    name: str = "commute_resampling"
    about: tuple[type[Op], ...] = ANY
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """At a map before resamplings, and at the last resampling of a row."""
        if isinstance(lifted.op(node), Resampling):
            row = _row(lifted, node)
            if row is not None:
                yield from _backward(self.name, lifted, row)
        elif any(_is_resampling(lifted, user) for user in lifted.users(node)):
            yield from _forward(self.name, lifted, node)


def _is_resampling(lifted: LiftedGraph, node: fx.Node) -> bool:
    return lifted.alive(node) and isinstance(lifted.op(node), Resampling)


def _grows(after: int, before: int, place: str) -> Decline:
    fact = f"would grow from {before:,} to {after:,} multiply-accumulates per pixel for some input sizes"
    return Decline(Reason.COST, fact, place)


def _if_per_pixel(map_: AffineConv | Decline) -> AffineConv | None:
    """The map, if it is per-pixel and no copy."""
    if isinstance(map_, Decline) or not map_.is_pointwise or map_.borders or map_.selection is not None:
        return None
    return map_


# --- forward: into all readers behind the resamplings -------------------------------------------------------


def _forward(rule: str, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
    op, moving = lifted.op(node), _moving(lifted, node)
    if moving is None or not isinstance(op, Affine):
        return
    axes, map_ = moving
    found = absorbed(lifted, node, axes, map_, Ref(op.source))
    if isinstance(found, Decline):
        yield found.at(lifted.place(node))
        return
    if _is_better_backward(map_, found):
        return
    allowed = found.macs + (form_of(map_).macs if found.resolution in _NOT_MORE else 0)
    if found.merged_macs > allowed:
        yield _grows(found.merged_macs, allowed, lifted.place(found.replacements[-1][0]))
        return
    readers = [reader for reader, _ in found.replacements]
    yield Proposal(rule, tuple(found.replacements), (node, *found.between, *readers))


def _moving(lifted: LiftedGraph, node: fx.Node) -> tuple[int, AffineConv] | None:
    """(spatial axes, per-pixel map) of a node whose readers are all resamplings or maps."""
    op = lifted.op(node)
    if not isinstance(op, Affine) or not all(_takes_a_map(lifted, user) for user in lifted.users(node)):
        return None
    axes = op.axes if op.axes is not None else _axes(lifted, op.source)
    map_ = None if axes is None else _if_per_pixel(op.build(axes, lifted.channels(op.source, axes)))
    return None if axes is None or map_ is None else (axes, map_)


def _is_better_backward(map_: AffineConv, found: Absorption) -> bool:
    """A map that mixes, of one reader: at a lower resolution it costs less, at the same one it stays where it was."""
    if form_of(map_).kind is Kind.SCALE or found.resolution not in _NOT_FEWER:
        return False
    return found.pointwise and len(found.replacements) == 1


def _takes_a_map(lifted: LiftedGraph, user: fx.Node) -> bool:
    return _is_resampling(lifted, user) or lifted.is_affine(user)


def _axes(lifted: LiftedGraph, node: fx.Node) -> int | None:
    rank = lifted.rank(node)
    return None if rank is None or rank < 2 else rank - 2


# --- backward: into the map before the resamplings, or just before them ----------------------------------------


@dataclass(frozen=True)
class _Row:
    """Resamplings one after the other, each read by the next alone."""

    nodes: Sequence[fx.Node]
    ops: Sequence[Resampling]
    source: fx.Node

    @property
    def last(self) -> fx.Node:
        """The value that the row gives."""
        return self.nodes[-1]

    @property
    def resolution(self) -> Resolution:
        """Whether the last value has more or fewer positions than the source, for every input size."""
        total = Resolution.SAME
        for op in reversed(self.ops):
            total = total.then(op.resolution)
        return total

    def through(self, expr: Expr) -> Expr:
        """The same row on another value."""
        for node, op in zip(self.nodes, self.ops):
            expr = Through(node, expr, op.resolution.density)
        return expr

    def passes(self, map_: AffineConv) -> bool:
        """Whether the whole row accepts what is on the other side of this map."""
        return all(op.passes(map_) for op in self.ops)

    def unseen(self, axes: int) -> int | None:
        """Spatial axes of the source where the last value has `axes`."""
        return _along(axes, [op.unseen for op in reversed(self.ops)])

    def view(self, axes: int) -> int | None:
        """Spatial axes of the last value where the source has `axes`."""
        return _along(axes, [op.view for op in self.ops])


def _along(axes: int, steps: Sequence[Callable[[int], int | None]]) -> int | None:
    """What becomes of a number of axes; None where one step does not know."""
    seen: int | None = axes
    for step in steps:
        seen = None if seen is None else step(seen)
    return seen


def _row(lifted: LiftedGraph, last: fx.Node) -> _Row | None:
    """The row that ends here, as long as it can be; None where it goes on."""
    users = lifted.users(last)
    if len(users) == 1 and _is_resampling(lifted, users[0]):
        return None
    nodes: list[fx.Node] = []
    ops: list[Resampling] = []
    source = last
    while isinstance(op := lifted.op(source), Resampling) and (source is last or len(lifted.users(source)) == 1):
        nodes.append(source)
        ops.append(op)
        source = op.source
    return _Row(nodes[::-1], ops[::-1], source)


@dataclass(frozen=True)
class _Crossing:
    """A row of resamplings, what alone reads it, and that reader's map, which may stand before the row as well."""

    row: _Row
    sink: fx.Node
    outer: AffineConv
    before: int  # spatial axes of the row's source
    inner: Affine | None  # the map that makes the row's source, if it can take the outer one

    @property
    def movable(self) -> bool:
        """Whether the map by itself costs less before the row: it multiplies, and gives no more channels."""
        mixes = form_of(self.outer).macs > 0 and self.outer.out_channels <= self.outer.in_channels
        return self.row.resolution is Resolution.HIGHER and mixes


def _backward(rule: str, lifted: LiftedGraph, row: _Row) -> Iterator[Proposal | Decline]:
    crossing = _crossing(lifted, row)
    if crossing is None or (crossing.inner is None and not crossing.movable):
        return
    sink, outer = crossing.sink, crossing.outer
    if not row.passes(outer):
        fact = "follows a view that names the number of channels, which would change"
        yield Decline(Reason.NOT_EXACT, fact, lifted.place(sink), "flatten instead, or view with -1")
        return
    if crossing.inner is not None:
        yield from _into_the_map_before(rule, lifted, crossing, crossing.inner)
    if crossing.movable and lifted.alive(sink) and lifted.alive(row.last):
        moved = row.through(Apply(over(outer, crossing.before), row.source))
        yield Proposal(rule, ((sink, moved),), (sink, *row.nodes))


def _crossing(lifted: LiftedGraph, row: _Row) -> _Crossing | None:
    """The per-pixel map that alone reads a row; None where there is none."""
    users = lifted.users(row.last)
    if len(users) != 1:
        return None
    (sink,) = users
    first = lifted.op(row.source)
    inner = first if isinstance(first, Affine) else None
    axes = _axes_behind(lifted, row, sink, inner)
    before = None if axes is None else row.unseen(axes)
    if axes is None or before is None:
        return None
    outer = _outer(lifted, sink, row.last, axes, _channels(lifted, row, inner, before, axes))
    if outer is None:
        return None
    mergeable = inner is not None and inner.axes in (None, before)
    return _Crossing(row, sink, outer, before, inner if mergeable else None)


def _axes_behind(lifted: LiftedGraph, row: _Row, sink: fx.Node, inner: Affine | None) -> int | None:
    """Spatial axes of the row's last value: its reader says, or the map before the row."""
    op = lifted.op(sink) if lifted.alive(sink) else None
    if isinstance(op, Affine) and op.source is row.last and op.axes is not None:
        return op.axes
    return None if inner is None or inner.axes is None else row.view(inner.axes)


def _channels(lifted: LiftedGraph, row: _Row, inner: Affine | None, before: int, axes: int) -> int | None:
    """Channels of the row's values, which are all the same."""
    known = lifted.channels(row.last, axes) or lifted.channels(row.source, before)
    if known is not None or inner is None:
        return known
    made = inner.build(before, lifted.channels(inner.source, before))
    return made.out_channels if isinstance(made, AffineConv) else None


def _outer(lifted: LiftedGraph, sink: fx.Node, last: fx.Node, axes: int, channels: int | None) -> AffineConv | None:
    """The map of the row's reader, if it is per-pixel and no copy."""
    op = lifted.op(sink) if lifted.alive(sink) else None
    if not isinstance(op, Affine | Sum):
        return None
    return _if_per_pixel(map_over(lifted, sink, last, axes, channels))


def _into_the_map_before(
    rule: str, lifted: LiftedGraph, crossing: _Crossing, inner: Affine
) -> Iterator[Proposal | Decline]:
    """The reader's map and the map before the row as one, before the row."""
    row, sink, before = crossing.row, crossing.sink, crossing.before
    map_ = inner.build(before, lifted.channels(inner.source, before))
    if isinstance(map_, Decline):
        return
    others = [user for user in lifted.users(row.source) if user is not row.nodes[0]]
    if others:
        fact = f"is read by {lifted.reader_name(others[0])} too, so {lifted.place(sink)} cannot move into it"
        yield Decline(Reason.OUTSIDE_USE, fact, lifted.place(row.source))
        return
    merged = applied(over(crossing.outer, before), map_)
    if isinstance(merged, Decline):
        yield merged.at(lifted.place(sink))
        return
    allowed = form_of(map_).macs + (form_of(crossing.outer).macs if row.resolution in _NOT_FEWER else 0)
    if form_of(merged).macs > allowed:
        yield _grows(form_of(merged).macs, allowed, lifted.place(sink))
        return
    moved = row.through(Apply(merged, inner.source))
    yield Proposal(rule, ((sink, moved),), (sink, *row.nodes, row.source))
