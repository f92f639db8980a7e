"""fold_weights: a weight that is computed from parameters in every forward is computed once.

    Given:  y = conv(x, f(p))      # weight standardisation, a mask, a parametrization, weight norm
    Result: y = conv'(x)           # its weight is the value of f(p)

Exact always: parameters and buffers do not change in a forward (those that do are no constants).  Training the
result trains the weight itself, not p.  Declined where the objective sees no gain; a weight that depends on the
input is declined when it is read (`repfx.lifting.table`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.algebra import Kind, form_of
from repfx.decline import Decline
from repfx.graph import Affine, LiftedGraph, Op
from repfx.rewriting import Apply, Proposal, generates_weight


@dataclass(frozen=True)
class FoldWeights:
    """Write down the weight of a convolution or linear that is generated from parameters."""

    name: str = "fold_weights"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a map whose weight is generated."""
        op = lifted.op(node)
        assert isinstance(op, Affine)
        if op.axes is None or not generates_weight(lifted, node):
            return
        map_ = lifted.own_map(node)
        if map_ is None or form_of(map_).kind not in (Kind.CONV, Kind.LINEAR, Kind.TRANSPOSED):
            return
        yield Proposal(self.name, ((node, Apply(map_, op.source)),), (node,))
