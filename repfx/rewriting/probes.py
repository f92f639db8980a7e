"""Probes: inputs of a region that are chosen to break its replacement.

Odd, non-square and smaller-than-kernel sizes; random values, and mostly constant ones with impulses here and there,
borders included.  What a value looks like (its rank, its channels) is read from what reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor, fx

from repfx.algebra import AffineConv
from repfx.decline import Decline
from repfx.graph import Affine, LiftedGraph, Normalised
from repfx.rewriting.evaluation import leaves_of, read_by
from repfx.rewriting.proposal import Apply, Attend, Expr, Proposal, Ref, Shared, Then, Through

Probe = Mapping[fx.Node, Tensor]
Sizes = tuple[tuple[int, int, int, int], ...]

_SIZES: Sizes = ((1, 8, 16, 4), (1, 9, 7, 5), (2, 3, 2, 3), (2, 1, 1, 1))  # batch, then spatial sizes
_SMALL_SIZES: Sizes = ((1, 5, 3, 2), (1, 2, 4, 3), (2, 3, 2, 3), (2, 1, 1, 1))  # of the smallest of many resolutions
_RESOLUTIONS = 8  # how much larger an input is than the output for the sizes to be small
_IMPULSES = 1  # the size at which values are mostly constant
_TOKENS = ((5, 3), (1, 1), (4, 7))  # queries and keys of an attention


def probes_of(
    lifted: LiftedGraph, proposal: Proposal, region: Sequence[fx.Node], inputs: Sequence[fx.Node], *, once: bool
) -> Iterable[Probe]:
    """Inputs of a region, several sizes; none where a channel count or rank is not known.

    `once`: the size that tells most comes first, for only one is looked at.
    """
    exprs = [expr for _, expr in proposal.replacements]
    attend = next((expr for expr in exprs if isinstance(expr, Attend)), None)
    if attend is not None:
        return _token_probes(lifted, region, inputs, attend)
    return _image_probes(lifted, region, inputs, _asked(exprs), (1, 0, 2, 3) if once else (0, 1, 2, 3))


def is_last_resort(index: int) -> bool:
    """Whether this probe is only for what accepts no other: one pixel."""
    return index == len(_SIZES) - 1


def _asked(exprs: Iterable[Expr]) -> dict[fx.Node, AffineConv]:
    """What the replacements apply to which value: it tells the value's rank and channels."""
    asked: dict[fx.Node, AffineConv] = {}
    for outer in reversed(list(exprs)):
        expr = outer
        while isinstance(expr, Through | Then):
            expr = expr.value
        if isinstance(expr, Apply):
            asked[expr.value] = expr.map
    return asked


# --- images, and rows of tokens -------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What an input looks like."""

    rank: int
    channels: int
    first: bool  # whether the channels come first, behind the batch; else last

    def shape(self, batch: int, sizes: Sequence[int]) -> tuple[int, ...]:
        """A shape of such a value."""
        if self.rank < 2:
            return (self.channels,)
        spatial = sizes[: self.rank - 2]
        return (batch, self.channels, *spatial) if self.first else (batch, *spatial, self.channels)


def _image_probes(
    lifted: LiftedGraph,
    region: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    asked: Mapping[fx.Node, AffineConv],
    order: Sequence[int],
) -> Iterator[Probe]:
    known: dict[fx.Node, _Facts] = {}
    for node in inputs:
        facts = _facts(lifted, region, node, asked.get(node))
        if facts is None:
            return
        known[node] = facts
    strides = _strides(lifted, region, inputs)
    several = len(inputs) > 1
    small = several and max(strides.values(), default=1) >= _RESOLUTIONS
    generator = torch.Generator().manual_seed(0)
    for index in order:
        batch, *sizes = (_SMALL_SIZES if small else _SIZES)[index]
        probe: dict[fx.Node, Tensor] = {}
        for node, facts in known.items():
            scale = strides.get(node, 1) if several else 1
            shape = facts.shape(batch, [size * scale for size in sizes])
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
            probe[node] = x.round() + 1.0 if index == _IMPULSES else x
        yield probe


def _facts(lifted: LiftedGraph, region: Sequence[fx.Node], node: fx.Node, asked: AffineConv | None) -> _Facts | None:
    """What an input of a region looks like; `asked`: a map that is applied to it.

    A map or a norm that reads it knows best; then the maps around it, then what the replacement asks for.
    """
    shape = lifted.context.shapes.of(node)
    read = _by_a_map(lifted, region, node) or _by_a_norm(lifted, region, node)
    if read is not None:
        return read
    if shape is not None and len(shape) > 2 and _reads_tokens(lifted, region):
        return _of_shape(shape, -1)
    if asked is not None:
        return _of_map(asked, asked.axes, shape)
    known = _of_shape(shape, 1)
    if known is not None:
        return known
    is_read = not node.users.keys().isdisjoint(region)
    return None if is_read else _Facts(4, 1, first=True)  # nothing but a size of it is read


def _of_shape(shape: Sequence[int | None] | None, axis: int) -> _Facts | None:
    """What a partial shape tells, with the channels at this axis."""
    if shape is None or len(shape) < 2:
        return None
    channels = shape[axis]
    return None if channels is None else _Facts(len(shape), channels, first=axis == 1)


def _of_map(map_: AffineConv, axes: int, shape: Sequence[int | None] | None) -> _Facts:
    rank = axes + 2 if shape is None else len(shape)
    return _Facts(rank, map_.in_channels, first=axes > 0 or rank == 2)


def _by_a_map(lifted: LiftedGraph, region: Sequence[fx.Node], node: fx.Node) -> _Facts | None:
    """What the first map that reads a value knows of it."""
    for reader in region:
        op = lifted.op(reader)
        if not isinstance(op, Affine) or op.source is not node or op.axes is None:
            continue
        map_ = lifted.map_of(reader, op.axes)
        if not isinstance(map_, Decline):
            return _of_map(map_, op.axes, lifted.context.shapes.of(node))
    return None


def _by_a_norm(lifted: LiftedGraph, region: Sequence[fx.Node], node: fx.Node) -> _Facts | None:
    """What the first normalisation that reads a value knows of it."""
    for reader in region:
        op = lifted.op(reader)
        if isinstance(op, Normalised) and op.source is node:
            rank = lifted.context.shapes.rank(node) or (4 if op.first else 3)
            return _Facts(rank, op.channels, op.first)
    return None


def _reads_tokens(lifted: LiftedGraph, region: Sequence[fx.Node]) -> bool:
    """Whether there are maps in a region, and all are maps of the last axis."""
    ops = map(lifted.op, region)
    axes = {op.axes for op in ops if isinstance(op, Affine) and op.axes is not None}
    return axes == {0}


def _strides(lifted: LiftedGraph, region: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """How much larger each input is than the region's output, by the strides in between."""
    scale: dict[fx.Node, Fraction] = {}
    for node in sorted(region, reverse=True):
        own = scale.get(node, Fraction(1)) * _stride(lifted, node)
        for source in read_by(lifted, node):
            scale[source] = max(scale.get(source, own), own)
    given = {node: scale[node] for node in inputs if node in scale}
    smallest = min(given.values(), default=Fraction(1))
    return {node: ceil(own / smallest) for node, own in given.items()}


def _stride(lifted: LiftedGraph, node: fx.Node) -> Fraction:
    """How much larger an image is before a node than behind it."""
    op = lifted.op(node)
    map_ = lifted.map_of(node, op.axes) if isinstance(op, Affine) and op.axes else None
    if not isinstance(map_, AffineConv):
        return Fraction(1)
    return Fraction(max((1, *map_.stride)), max((1, *map_.zoom)))


# --- attentions -----------------------------------------------------------------------------------


def _token_probes(
    lifted: LiftedGraph, region: Sequence[fx.Node], inputs: Sequence[fx.Node], expr: Attend
) -> list[Probe]:
    """Inputs of an attention: tokens for projections, or query, key and value as they stand."""
    read_in = next((shape for _, shape in expr.bias), None)
    counts = _TOKENS if read_in is None else ((read_in[-1], read_in[-1]),)
    draw = _Draw()
    channels = _channels(lifted, region, inputs, expr)
    queried = leaves_of(lifted, expr.query)
    probes: list[Probe] = []
    for queries, keys in counts:
        probe: dict[fx.Node, Tensor] = {}
        if not expr.heads:
            probe |= _as_they_stand(expr, queries, keys, lifted.context.shapes.rank(region[-1]), draw)
        for node, size in channels.items():
            if node not in probe and size is not None:
                probe[node] = draw(2, queries if node in queried else keys, size)
        if probe.keys() >= set(inputs):
            probes.append(probe)
    return probes


class _Draw:
    """Random numbers, always the same ones."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64) * 2


def _channels(
    lifted: LiftedGraph, region: Sequence[fx.Node], inputs: Sequence[fx.Node], expr: Attend
) -> dict[fx.Node, int | None]:
    """How many channels the tokens of each input have."""
    asked = {value.value: value.map for value in expr.values if isinstance(value, Apply | Shared)}
    found: dict[fx.Node, int | None] = {}
    for node in inputs:
        if node in asked:
            found[node] = asked[node].in_channels
            continue
        facts = _facts(lifted, region, node, None)
        found[node] = lifted.context.shapes.size(node, -1) if facts is None else facts.channels
    return found


def _as_they_stand(expr: Attend, queries: int, keys: int, rank: int | None, draw: _Draw) -> dict[fx.Node, Tensor]:
    """Query, key and value where they are given divided into heads, or have none."""
    read_in = next((shape for _, shape in expr.bias), None)
    heads: tuple[int, ...] = ()
    if rank != 3:
        heads = (read_in[-3] if read_in is not None and len(read_in) > 2 else 3,)
    given = (
        (expr.query, queries, expr.query_transposed),
        (expr.key, keys, expr.key_transposed),
        (expr.value, keys, expr.value_transposed),
    )
    probe: dict[fx.Node, Tensor] = {}
    for value, tokens, transposed in given:
        if isinstance(value, Ref):
            x = draw(2, *heads, tokens, 4)
            probe[value.node] = x.mT if transposed else x
    return probe
