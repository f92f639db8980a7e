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

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from repfx.algebra import AffineConv, Kind, form_of, over
from repfx.decline import Decline, Reason
from repfx.graph import ANY, Affine, LiftedGraph, Op, Resampling, Resolution, Sum, applied
from repfx.rewriting import Apply, Expr, Proposal, Ref, Through, absorbed, map_over

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
        elif any(_is_resampling(lifted, user) for user in node.users):
            yield from _forward(self.name, lifted, node)


# --- forward: into all readers behind the resamplings -------------------------------------------------------


def _forward(rule: str, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
    op = lifted.op(node)
    if not isinstance(op, Affine) or not all(_is_resampling(lifted, u) or lifted.is_affine(u) for u in node.users):
        return
    axes = op.axes if op.axes is not None else _axes(lifted, op.source)
    if axes is None:
        return
    map_ = op.build(axes, lifted.channels(op.source, axes))
    if isinstance(map_, Decline) or not map_.is_pointwise or map_.borders or map_.selection is not None:
        return
    found = absorbed(lifted, node, axes, map_, Ref(op.source))
    if isinstance(found, Decline):
        yield found.at(lifted.place(node))
        return
    dense = form_of(map_).kind is not Kind.SCALE
    if dense and found.resolution in _NOT_FEWER and found.pointwise and len(found.replacements) == 1:
        return  # better backward: at a lower resolution it costs less, at the same one it stays where it was
    allowed = found.macs + (form_of(map_).macs if found.resolution in _NOT_MORE else 0)
    if found.merged_macs > allowed:
        yield _grows(found.merged_macs, allowed, lifted.place(found.replacements[-1][0]))
        return
    readers = [reader for reader, _ in found.replacements]
    yield Proposal(rule, tuple(found.replacements), (node, *found.between, *readers))


# --- backward: into the map before the resamplings, or just before them ----------------------------------------


@dataclass(frozen=True)
class _Row:
    """Resamplings one after the other, each read by the next alone."""

    nodes: Sequence[fx.Node]
    source: fx.Node
    resolution: Resolution

    def through(self, expr: Expr, lifted: LiftedGraph) -> Expr:
        """The same row on another value."""
        for node in self.nodes:
            op = lifted.op(node)
            assert isinstance(op, Resampling)
            expr = Through(node, expr, op.resolution.density)
        return expr

    def passes(self, map_: AffineConv, lifted: LiftedGraph) -> bool:
        """Whether the whole row accepts what is on the other side of this map."""
        return all(isinstance(op := lifted.op(node), Resampling) and op.passes(map_) for node in self.nodes)

    def unseen(self, axes: int, lifted: LiftedGraph) -> int | None:
        """Spatial axes of the source where the last value has `axes`."""
        seen: int | None = axes
        for node in reversed(self.nodes):
            op = lifted.op(node)
            assert isinstance(op, Resampling)
            seen = None if seen is None else op.unseen(seen)
        return seen

    def view(self, axes: int, lifted: LiftedGraph) -> int | None:
        """Spatial axes of the last value where the source has `axes`."""
        seen: int | None = axes
        for node in self.nodes:
            op = lifted.op(node)
            assert isinstance(op, Resampling)
            seen = None if seen is None else op.view(seen)
        return seen


def _row(lifted: LiftedGraph, last: fx.Node) -> _Row | None:
    """The row that ends here, as long as it can be; None where it goes on."""
    if len(last.users) == 1 and _is_resampling(lifted, next(iter(last.users))):
        return None
    nodes: list[fx.Node] = []
    source, resolution = last, Resolution.SAME
    while isinstance(op := lifted.op(source), Resampling) and (source is last or len(source.users) == 1):
        nodes.append(source)
        source, resolution = op.source, resolution.then(op.resolution)
    return _Row(nodes[::-1], source, resolution)


def _backward(rule: str, lifted: LiftedGraph, row: _Row) -> Iterator[Proposal | Decline]:
    last = row.nodes[-1]
    sink = next(iter(last.users), None)
    if sink is None or len(last.users) > 1:
        return
    first = lifted.op(row.source)
    own = first.axes if isinstance(first, Affine) else None
    axes = _asked(lifted, sink, last)
    if axes is None and own is not None:
        axes = row.view(own, lifted)
    before = None if axes is None else row.unseen(axes, lifted)
    if axes is None or before is None:
        return
    channels = lifted.channels(last, axes) or lifted.channels(row.source, before)
    if channels is None and isinstance(first, Affine):
        made = first.build(before, lifted.channels(first.source, before))
        channels = made.out_channels if isinstance(made, AffineConv) else None
    outer = _pointwise(lifted, sink, last, axes, channels)
    mergeable = isinstance(first, Affine) and first.axes in (None, before)
    movable = row.resolution is Resolution.HIGHER and outer is not None and _mixes(outer)
    if outer is None or not (mergeable or movable):
        return
    if not row.passes(outer, lifted):
        fact = "follows a view that names the number of channels, which would change"
        yield Decline(Reason.NOT_EXACT, fact, lifted.place(sink), "flatten instead, or view with -1")
        return
    if mergeable:
        assert isinstance(first, Affine)
        merged = yield from _merged(lifted, row, sink, outer, before)
        if merged is not None:
            expr = row.through(Apply(merged, first.source), lifted)
            yield Proposal(rule, ((sink, expr),), (sink, *row.nodes, row.source))
    if movable and lifted.alive(sink) and lifted.alive(last):
        moved = Apply(over(outer, before), row.source)
        yield Proposal(rule, ((sink, row.through(moved, lifted)),), (sink, *row.nodes))


def _merged(
    lifted: LiftedGraph, row: _Row, sink: fx.Node, outer: AffineConv, before: int
) -> Generator[Decline, None, AffineConv | None]:
    """The map before the row with `outer` behind it; None where that is refused."""
    op = lifted.op(row.source)
    assert isinstance(op, Affine)
    inner = op.build(before, lifted.channels(op.source, before))
    if isinstance(inner, Decline):
        return None
    if len(row.source.users) > 1:
        other = next(u for u in row.source.users if u is not row.nodes[0])
        reader = "the output" if other.op == "output" else lifted.place(other)
        fact = f"is read by {reader} too, so {lifted.place(sink)} cannot move into it"
        yield Decline(Reason.OUTSIDE_USE, fact, lifted.place(row.source))
        return None
    merged = applied(over(outer, before), inner)
    if isinstance(merged, Decline):
        yield merged.at(lifted.place(sink))
        return None
    allowed = form_of(inner).macs + (form_of(outer).macs if row.resolution in _NOT_FEWER else 0)
    if form_of(merged).macs > allowed:
        yield _grows(form_of(merged).macs, allowed, lifted.place(sink))
        return None
    return merged


def _asked(lifted: LiftedGraph, node: fx.Node, source: fx.Node) -> int | None:
    """Number of spatial axes that a map says it has."""
    op = lifted.op(node) if lifted.alive(node) else None
    return op.axes if isinstance(op, Affine) and op.source is source else None


def _pointwise(
    lifted: LiftedGraph, node: fx.Node, source: fx.Node, axes: int, channels: int | None
) -> AffineConv | None:
    """The map of a node, if it is per-pixel and no copy."""
    op = lifted.op(node) if lifted.alive(node) else None
    if not isinstance(op, Affine | Sum):
        return None
    map_ = map_over(lifted, node, source, axes, channels)
    if isinstance(map_, Decline) or not map_.is_pointwise or map_.borders or map_.selection is not None:
        return None
    return map_


def _mixes(map_: AffineConv) -> bool:
    """Whether a map multiplies and gives no more channels than it reads: worth a lower resolution by itself."""
    return form_of(map_).macs > 0 and map_.out_channels <= map_.in_channels


def _is_resampling(lifted: LiftedGraph, node: fx.Node) -> bool:
    return lifted.alive(node) and isinstance(lifted.op(node), Resampling)


def _axes(lifted: LiftedGraph, node: fx.Node) -> int | None:
    rank = lifted.context.shapes.rank(node)
    return None if rank is None or rank < 2 else rank - 2


def _grows(after: int, before: int, place: str) -> Decline:
    fact = f"would grow from {before:,} to {after:,} multiply-accumulates per pixel for some input sizes"
    return Decline(Reason.COST, fact, place)
