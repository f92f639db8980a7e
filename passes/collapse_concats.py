"""collapse_concats: branches of one value, concatenated, are one convolution.

    Given:  a, b, c = chunk(x, 3)              Result: y = conv(x)
            y = cat([a, conv1(b), conv2(c)])

Exact when every branch is an affine map of the same value, with equal stride and output size.
Declined where the branches have different origins, where a value inside is read outside, and where
the objective prefers the branches (cheap split branches under "macs").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from repfx.decline import Decline
from repfx.graph import LiftedGraph
from repfx.ops import Concat
from repfx.protocol import Apply, Proposal
from repfx.regions import Dominators, between


@dataclass(frozen=True)
class CollapseConcats:
    """Collapse a fork and the concatenation that joins it into one map."""

    name: str = "collapse_concats"

    def propose(self, lifted: LiftedGraph) -> Iterator[Proposal | Decline]:
        """One proposal per concatenation with a common fork, the last one first."""
        dominators = Dominators(lifted)
        for node in reversed(lifted.nodes()):
            if not lifted.alive(node) or not isinstance(lifted.op(node), Concat):
                continue
            source = dominators.of(node)
            if source is None:
                continue
            region = between(lifted, source, node)
            if isinstance(region, Decline):
                yield region
                continue
            yield Proposal(self.name, ((node, Apply(region.map, source)),), region.nodes)
