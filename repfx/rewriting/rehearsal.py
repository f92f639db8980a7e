"""The first of alike blocks are rewritten before all else, as if each were alone; then the others in the same way."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from repfx.graph import LiftedGraph
from repfx.rewriting.isomorphism import alike
from repfx.rewriting.replication import Check, Repetition, effect_on


class Rehearsal:
    """The first stretch of each family, while rewriting goes on in it alone."""

    def __init__(self, lifted: LiftedGraph) -> None:
        self._lifted = lifted
        self._layout = layout = alike(lifted)
        self._home: dict[fx.Node, int] = {}  # the family whose first stretch a node is part of
        self._anchors: dict[fx.Node, fx.Node] = {}  # before which node of its stretch a new one stands
        for index, family in enumerate(layout.families):
            self._home.update(dict.fromkeys(layout.stretch(family, family.starts[0]), index))

    @property
    def stage(self) -> list[fx.Node]:
        """The nodes of all first stretches."""
        return list(self._home)

    def strays(self, node: fx.Node, looked_at: Iterable[fx.Node]) -> bool:
        """Whether an answer about a node of a stretch rests on anything outside it."""
        home = self._home
        own = home.get(node)
        return any(home.get(other) != own for other in looked_at)

    def admit(self, node: fx.Node, sink: fx.Node) -> None:
        """A new node stands in the place of `sink`."""
        if sink not in self._home:
            return
        self._home[node] = self._home[sink]
        self._anchors[node] = self._anchors.get(sink, sink)

    def repeat(self, check: Check | None) -> None:
        """Do to all stretches of each family what was done to its first."""
        made: dict[int, list[fx.Node]] = {}
        for node in self._anchors:
            made.setdefault(self._home[node], []).append(node)
        for index, family in enumerate(self._layout.families):
            effect = effect_on(self._lifted, self._layout, family, made.get(index, []), self._anchors)
            if effect is None:
                continue
            for start in family.starts[1:]:
                Repetition(effect, start).run(check)
