"""average_heads: the average of linear heads over one value is one Linear.

    Given:  y = (linear1(bn1(x)) + linear2(bn2(x))) / 2      Result: y = linear(x)

Exact always: every head is an affine map of the same vector.  A scalar after a sum, a mean over a stack
and 0.5 * a + 0.5 * b are all sums with factors; what is left for this pass is the scalar itself.
Declined where a head's output is also read by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from repfx.decline import Decline
from repfx.graph import LiftedGraph
from repfx.ops import Sum
from repfx.protocol import Apply, Proposal
from repfx.regions import Dominators, between


@dataclass(frozen=True)
class AverageHeads:
    """Collapse a scaled value and everything affine before it, up to where its branches fork."""

    name: str = "average_heads"

    def propose(self, lifted: LiftedGraph) -> Iterator[Proposal | Decline]:
        """One proposal per scaled or shifted value."""
        dominators = Dominators(lifted)
        for node in reversed(lifted.nodes()):
            if not lifted.alive(node):
                continue
            op = lifted.op(node)
            if not isinstance(op, Sum) or len(op.terms) != 1:
                continue
            chain = dominators.chain(node)
            for source in chain[2:3] + chain[1:2]:
                region = between(lifted, source, node)
                if isinstance(region, Decline):
                    yield region
                elif lifted.alive(node):
                    yield Proposal(self.name, ((node, Apply(region.map, source)),), region.nodes)
                if not lifted.alive(node):
                    break
