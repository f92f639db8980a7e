"""fold_norm_affine: the scale and shift of a normalisation goes into all readers.

    Given:  y = layer_norm(x) * gamma + beta; q = linear1(y); k = linear2(mean(y))
    Result: y = layer_norm(x); q = linear1'(y); k = linear2'(mean(y))

What normalises stays as it is.  Exact always: the readers are affine maps, or resamplings (a mean over
tokens, a transposition) that affine maps read.  Declined where one reader is anything else, and where a
reader pads, whose shift would be a border term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.decline import Decline, Reason
from repfx.graph import LiftedGraph, Normalised, Op
from repfx.rewriting import Absorption, Plain, Proposal, absorbed


@dataclass(frozen=True)
class FoldNormAffine:
    """Layer, group and RMS norms without elementwise affine, where that is free."""

    name: str = "fold_norm_affine"
    about: tuple[type[Op], ...] = (Normalised,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a normalisation that has a scale or shift."""
        op = lifted.op(node)
        if not isinstance(op, Normalised) or not lifted.users(node):
            return
        found = _absorbed(lifted, node, op)
        if isinstance(found, Decline):
            yield found.at(lifted.place(node))
        elif found.bordered:
            fact = f"is read by {lifted.place(found.bordered[0])}, which pads it; its shift would be a border term"
            yield Decline(Reason.COST, fact, lifted.place(node))
        else:
            readers = [reader for reader, _ in found.replacements]
            yield Proposal(self.name, tuple(found.replacements), (node, *found.between, *readers))


def _absorbed(lifted: LiftedGraph, node: fx.Node, op: Normalised) -> Absorption | Decline:
    """The scale and shift in all readers, over as many spatial axes as the value may have."""
    refused: Decline | None = None
    for axes in _spatial_axes(lifted, node, op):
        map_ = op.build(axes)
        if map_ is None:
            continue
        found = absorbed(lifted, node, axes, map_, Plain(node))
        if isinstance(found, Absorption):
            return found
        refused = refused or found
    fact = "scales a value whose rank is not known"
    return refused or Decline(Reason.UNKNOWN_FACT, fact, remedy="pass example_inputs")


def _spatial_axes(lifted: LiftedGraph, node: fx.Node, op: Normalised) -> tuple[int, ...]:
    """How many spatial axes the value may have, images first."""
    if not op.first:
        return (0,)
    rank = lifted.rank(node)
    return (2, 1, 3) if rank is None else (max(rank - 2, 0),)
