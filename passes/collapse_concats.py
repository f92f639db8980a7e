"""collapse_concats: branches of one value, concatenated, are one convolution.

    Given:  a, b, c = chunk(x, 3)              Result: y = conv(x)
            y = cat([a, conv1(b), conv2(c)])
            a, b = chunk(conv1(x), 2)                  y = conv(x)      # where conv(z) alone saves nothing
            y = cat([b, conv2(a)])

Exact when every branch is an affine map of the same value, with equal stride and output size.
Declined where the branches have different origins, where a value inside is read outside, and where
the objective prefers the branches (cheap split branches under "macs").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.decline import Decline
from repfx.graph import Concat, LiftedGraph, Op, around, between, dominators
from repfx.rewriting import Proposal, as_one_map


@dataclass(frozen=True)
class CollapseConcats:
    """Collapse a fork and the concatenation that joins it into one map."""

    name: str = "collapse_concats"
    about: tuple[type[Op], ...] = (Concat,)
    last_first: bool = True

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """A concatenation whose parts have a common fork; then together with the maps before and behind it."""
        source = dominators(lifted).of(node) if isinstance(lifted.op(node), Concat) else None
        if source is None:
            return
        region = between(lifted, source, node)
        if isinstance(region, Decline):
            yield region
            return
        yield as_one_map(self.name, region)
        if lifted.alive(node):
            yield from (as_one_map(self.name, wider, further=True) for wider in around(lifted, source, node))
