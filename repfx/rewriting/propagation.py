"""Absorbing: a per-pixel map of a value goes into everything that reads the value, through resamplings.

    Given:  y = A(x); every reader of y is an affine map B, or a resampling R whose readers are
    Result: B(y) = (B A)(x), B(R y) = (B A)(R x)

R A = A R because the rows of R sum to one.  Refused where one reader is anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from repfx.algebra import AffineConv, form_of, identity, over, scaled
from repfx.decline import Decline, Reason
from repfx.graph import Affine, LiftedGraph, Resampling, Resolution, Sum, applied, shifted_by
from repfx.rewriting.proposal import Apply, Expr, Ref, Then, Through


@dataclass(frozen=True)
class _Way:
    """A value on the way to the readers."""

    node: fx.Node
    axes: int  # the spatial axes over which the map goes here
    expr: Expr  # what it will be


@dataclass
class Absorption:
    """What the readers of a value become, and the resamplings between."""

    replacements: list[tuple[fx.Node, Expr]] = field(default_factory=list)
    between: list[fx.Node] = field(default_factory=list)
    resolution: Resolution = Resolution.SAME
    macs: int = 0  # of all readers, as they are
    merged_macs: int = 0
    bordered: list[fx.Node] = field(default_factory=list)  # readers that get a border term
    pointwise: bool = True  # whether all readers are per-pixel

    def take(self, reader: fx.Node, outer: AffineConv, merged: AffineConv, given: Expr) -> None:
        """A reader, which was the map `outer`, is `merged` over what stands before it now."""
        self.replacements.append((reader, Apply(merged, given.node) if isinstance(given, Ref) else Then(merged, given)))
        self.macs += form_of(outer).macs
        self.merged_macs += form_of(merged).macs
        self.pointwise &= outer.is_pointwise
        if len(merged.borders) > len(outer.borders):
            self.bordered.append(reader)

    def pass_through(self, node: fx.Node, op: Resampling, way: _Way, map_: AffineConv) -> _Way | None:
        """The way goes on behind a resampling; None where the map cannot pass it."""
        after = op.view(way.axes)
        if after is None or not op.passes(map_):
            return None
        self.between.append(node)
        self.resolution = self.resolution.then(op.resolution)
        return _Way(node, after, Through(node, way.expr, op.resolution.density))


def absorbed(lifted: LiftedGraph, value: fx.Node, axes: int, map_: AffineConv, base: Expr) -> Absorption | Decline:
    """`map_`, over `axes` spatial axes, goes into all readers of `value`, which `base` replaces."""
    found = Absorption()
    work = [_Way(value, axes, base)]
    while work:
        way = work.pop()
        for user in way.node.users:
            op = lifted.op(user) if lifted.alive(user) and user.op != "output" else None
            if isinstance(op, Resampling) and op.source is way.node:
                behind = found.pass_through(user, op, way, map_)
                if behind is None:
                    fact = f"is read by {lifted.place(user)}, which mixes the channels or names their number"
                    return Decline(Reason.NOT_EXACT, fact)
                work.append(behind)
                continue
            outer = map_over(lifted, user, way.node, way.axes, map_.out_channels)
            if isinstance(outer, Decline):
                return outer
            merged = applied(outer, over(map_, way.axes))
            if isinstance(merged, Decline):
                return merged.at(lifted.place(user))
            found.take(user, outer, merged, way.expr)
    found.replacements.sort(key=lambda pair: pair[0])
    return found


def map_over(
    lifted: LiftedGraph, node: fx.Node, source: fx.Node, axes: int, channels: int | None
) -> AffineConv | Decline:
    """The map that `node` is of `source`, over this many spatial axes."""
    match lifted.op(node) if lifted.alive(node) and node.op != "output" else None:
        case Affine(source=read, axes=own, build=build) if read is source and own in (None, axes):
            map_ = build(axes, channels)
            return map_.at(lifted.place(node)) if isinstance(map_, Decline) else map_
        case Sum(terms=((read, factor),), shift=shift) if read is source:
            if channels is None:
                return lifted.unknown_channels(node)
            map_ = scaled(identity(channels, axes), factor)
            return shifted_by(map_, shift) if shift else map_
        case _:
            return _stuck(lifted, node)


def _stuck(lifted: LiftedGraph, reader: fx.Node) -> Decline:
    name = "the output" if reader.op == "output" else lifted.place(reader)
    return Decline(Reason.NOT_EXACT, f"is read by {name}, which takes no scale and shift into itself")
