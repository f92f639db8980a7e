"""Biases: which constants may be added to scores inside one call, and how they are laid beside it.

The call does not widen its scores as a sum does.  A bias is therefore refused where queries, keys and values
may be different tokens, and where its shape is none of scores.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from repfx.attention.channel_readers import readers_of
from repfx.attention.recognition import Attention
from repfx.attention.strands import KnownView
from repfx.attention.views import index_items, is_split, part_axis, selection, viewed, views_of
from repfx.decline import Decline, Reason
from repfx.graph import LiftedGraph, name_of

Bias = tuple[tuple[fx.Node, tuple[int, ...]], ...]  # constants, and the shapes to read them in


def usable_bias(lifted: LiftedGraph, bias: fx.Node, sources: set[fx.Node]) -> torch.Size | Decline:
    """Shape of a constant that may be added to the scores of these queries, keys and values inside the call."""
    shape = lifted.context.constants.shape(bias)
    if shape is None:
        return Decline(Reason.UNKNOWN_FACT, "adds a constant of unknown shape to its scores")
    if len(shape) == 0 or len(shape) > 4:
        return Decline(Reason.NOT_EXACT, f"adds a constant of shape {tuple(shape)} to its scores")
    dtype = lifted.context.constants.dtype(bias)
    if dtype not in {p.dtype for p in lifted.root.parameters() if p.is_floating_point()}:
        return Decline(Reason.NOT_EXACT, f"adds a constant of {dtype} to its scores, which is not the weights' type")
    rows = shape[-2] if len(shape) > 1 else 1
    if len(sources) > 1 or rows not in (1, shape[-1]):
        fact = "adds a bias to scores whose queries, keys and values are different tokens; it may widen them"
        return Decline(Reason.NOT_EXACT, fact)
    return shape


def bias_of_all(lifted: LiftedGraph, heads: Sequence[Attention], sources: set[fx.Node]) -> Bias | Decline:
    """The constants of all heads, one for all or one for each; () where there are none."""
    known = [head.bias for head in heads if head.bias is not None]
    if not known:
        return ()
    if len(known) < len(heads):
        return Decline(Reason.NOT_EXACT, "has heads with and heads without a bias")
    shapes: list[tuple[int, ...]] = []
    for bias in known:
        shape = _matrix(lifted, bias, sources)
        if isinstance(shape, Decline):
            return shape
        shapes.append(shape)
    if len(set(shapes)) > 1:
        return Decline(Reason.NOT_EXACT, "adds biases of different shapes to the scores of its heads")
    return _beside(lifted, known, shapes[0], lead=(1,) if lifted.rank(heads[0].out) == 3 else ())


def _matrix(lifted: LiftedGraph, bias: fx.Node, sources: set[fx.Node]) -> tuple[int, ...] | Decline:
    """The shape of the bias of one head, as rows and columns."""
    shape = usable_bias(lifted, bias, sources)
    if isinstance(shape, Decline):
        return shape
    if any(size != 1 for size in shape[:-2]):
        return Decline(Reason.NOT_EXACT, f"adds a bias of shape {tuple(shape)} to the scores of one head")
    return (1,) * (2 - len(shape)) + tuple(shape)[-2:]


def _beside(lifted: LiftedGraph, biases: Sequence[fx.Node], shape: tuple[int, ...], lead: tuple[int, ...]) -> Bias:
    """Biases of one shape, as one where they are one or are all rows of one."""
    if len(set(biases)) == 1:
        return ((biases[0], shape),)
    whole = _rows_of(lifted, biases)
    if whole is not None:
        return ((whole, (*lead, len(biases), *shape)),)
    return tuple((bias, (*lead, 1, *shape)) for bias in biases)


def _rows_of(lifted: LiftedGraph, biases: Sequence[fx.Node]) -> fx.Node | None:
    """The constant whose first axis the biases go through, one by one, or None."""
    whole = biases[0].args[0] if biases[0].args else None
    if not isinstance(whole, fx.Node):
        return None
    shape, own = lifted.context.constants.shape(whole), lifted.context.constants.shape(biases[0])
    if shape is None or own is None or tuple(shape) != (len(biases), *own):
        return None
    rows = all(bias.target is operator.getitem and bias.args == (whole, i) for i, bias in enumerate(biases))
    return whole if rows else None


# --- tokens -----------------------------------------------------------------------------------------


def tokens_of(lifted: LiftedGraph, node: fx.Node) -> fx.Node:
    """The value whose tokens these are, all of them: back through views that drop none."""
    while (above := viewed(lifted, node)) is not None and _keeps_tokens(lifted, node, above):
        node = above
    return node


def _keeps_tokens(lifted: LiftedGraph, node: fx.Node, source: fx.Node) -> bool:
    if name_of(node) != "getitem" or selection(lifted, node) is not None:
        return True
    if is_split(source):
        return name_of(source) == "unbind" or _divides_channels(lifted, source)
    return all(isinstance(item, int) or item in (None, Ellipsis, slice(None)) for item in index_items(node.args[1]))


def _divides_channels(lifted: LiftedGraph, split: fx.Node) -> bool:
    """Whether a chunk or split goes along channels of the map behind it: then all parts have all tokens."""
    axis, source = part_axis(split), viewed(lifted, split)
    if source is None or not isinstance(axis, int):
        return False
    made = views_of(lifted, source)[-1]
    map_ = lifted.own_map(made)
    if map_ is None:
        return False
    strand = readers_of(lifted, made, map_.out_channels, map_.axes).views.get(source)
    return isinstance(strand, KnownView) and strand.layout[axis]
