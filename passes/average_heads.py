"""average_heads: the average of linear heads over one value is one Linear.

    Given:  y = (linear1(bn1(x)) + linear2(bn2(x))) / 2      Result: y = linear(x)

Exact always: every head is an affine map of the same vector.  A scalar after a sum, a mean over a stack
and 0.5 * a + 0.5 * b are all sums with factors; what is left for this pass is the scalar itself.
Declined where a head's output is also read by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.decline import Decline
from repfx.graph import LiftedGraph, Op, Sum, between, dominators
from repfx.rewriting import Proposal, as_one_map


@dataclass(frozen=True)
class AverageHeads:
    """Collapse a scaled value and everything affine before it, up to where its branches fork."""

    name: str = "average_heads"
    about: tuple[type[Op], ...] = (Sum,)
    last_first: bool = True

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Proposals for a scaled or shifted value, the larger region first."""
        op = lifted.op(node)
        if not isinstance(op, Sum) or len(op.terms) != 1:
            return
        chain = dominators(lifted).chain(node)
        for source in chain[2:3] + chain[1:2]:
            region = between(lifted, source, node)
            if isinstance(region, Decline):
                yield region
            else:
                yield as_one_map(self.name, region)
            if not lifted.alive(node):
                return
