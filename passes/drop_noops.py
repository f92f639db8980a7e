"""drop_noops: values that are other values.

    Given:  y = dropout(x)      # eval mode; Identity, contiguous, a whole slice, a pad by nothing
    Result: x

Exact when the operation returns its argument in eval mode.  Declines nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.algebra import AffineConv
from repfx.decline import Decline
from repfx.graph import Affine, Alias, LiftedGraph, Op
from repfx.rewriting import Proposal, Ref


@dataclass(frozen=True)
class DropNoops:
    """Remove operations that return their argument."""

    name: str = "drop_noops"
    about: tuple[type[Op], ...] = (Affine, Alias)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a no-op."""
        match lifted.op(node):
            case Alias(source=source):
                yield Proposal(self.name, ((node, Ref(source)),), (node,))
            case Affine(source=source, axes=int(axes)):
                map_ = lifted.map_of(node, axes)
                if isinstance(map_, AffineConv) and map_.is_identity:
                    yield Proposal(self.name, ((node, Ref(source)),), (node,))
