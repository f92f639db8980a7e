"""What an answer rests on: the lifted graph as one question reads it, with a note of every node that was looked at."""

from __future__ import annotations

from torch import fx

from repfx.graph import LiftedGraph, Op


class Reader(LiftedGraph):
    """The same graph, over the same tables; whoever asks it leaves a note of which nodes the answer is about.

    It stands for the `LiftedGraph` wherever one is only read: in a pass, in the gate and in the probes.
    """

    def __init__(self, lifted: LiftedGraph) -> None:
        vars(self).update(vars(lifted))  # the tables themselves, no copies: what changes in one changes in both
        self._lifted = lifted
        self.looked_at: set[fx.Node] = set()

    @property
    def plain(self) -> LiftedGraph:
        """The graph that is read."""
        return self._lifted

    def op(self, node: fx.Node) -> Op:
        """What a node computes."""
        self.looked_at.add(node)
        return self._ops[node]

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that use this value: what is asked about is also the node itself."""
        self.looked_at.add(node)
        return super().readers(node)

    def is_live(self, node: fx.Node) -> bool:
        """Whether anything comes of a node."""
        self.looked_at.add(node)
        return super().is_live(node)

    def users(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that are given a value, whatever they make of it."""
        self.looked_at.add(node)
        return super().users(node)

    def given(self, node: fx.Node) -> list[fx.Node]:
        """The values that a node is given, whatever it makes of them."""
        self.looked_at.add(node)
        return super().given(node)
