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

from torch import fx

from repfx.decline import Decline
from repfx.graph import Concat, LiftedGraph, Op, between, dominators
from repfx.rewriting import Apply, Proposal


@dataclass(frozen=True)
class CollapseConcats:
    """Collapse a fork and the concatenation that joins it into one map."""

    name: str = "collapse_concats"
    about: tuple[type[Op], ...] = (Concat,)
    last_first: bool = True

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a concatenation whose parts have a common fork."""
        source = dominators(lifted).of(node) if isinstance(lifted.op(node), Concat) else None
        if source is None:
            return
        region = between(lifted, source, node)
        if isinstance(region, Decline):
            yield region
            return
        yield Proposal(self.name, ((node, Apply(region.map, source)),), region.nodes)
