"""Which value a pass is asked about next, and what asks about it again.

Every pass is asked about every value once.  An answer that changes nothing is remembered together with the nodes
that were looked at for it, and stands until one of them changes; so the work is proportional to what changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from torch import fx

from repfx.decline import Decline
from repfx.graph import Op
from repfx.rewriting.proposal import Pass

Alive = Callable[[fx.Node], bool]  # whether a node is still in the graph
_Question = tuple[int, fx.Node]  # a pass, by its place among the passes, and a value


class Scheduler:
    """The questions that are open, and the answers that stand."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._passes = passes
        self._about = [frozenset(one.about) for one in passes]
        self._open: list[set[fx.Node]] = [set() for _ in passes]
        self._refused: dict[_Question, list[Decline]] = {}
        self._resting_on: dict[fx.Node, set[_Question]] = {}  # which answers rest on a node

    def introduce(self, node: fx.Node, op: Op) -> None:
        """A value of the graph: every pass that is about such operations will be asked about it."""
        for values, about in zip(self._open, self._about):
            if type(op) in about:
                values.add(node)

    def take(self, index: int, alive: Alive) -> list[fx.Node]:
        """What this pass has yet to be asked about, in its own order; none of it is open any more."""
        due = sorted(filter(alive, self._open[index]), reverse=self._passes[index].last_first)
        self._open[index].clear()
        return due

    def ask_again(self, index: int, node: fx.Node) -> None:
        """This pass has more to say about a value."""
        self._open[index].add(node)

    def settle(self, index: int, node: fx.Node, refused: list[Decline], looked_at: Collection[fx.Node]) -> None:
        """This pass changes nothing about a value, as long as nothing that was looked at changes."""
        question = (index, node)
        self._refused[question] = refused
        for other in (node, *looked_at):
            known = self._resting_on.get(other)
            if known is None:
                self._resting_on[other] = {question}
            else:
                known.add(question)

    def reopen(self, changed: Iterable[fx.Node]) -> None:
        """Ask again whatever rests on these nodes."""
        for node in changed:
            for question in self._resting_on.pop(node, ()):
                self._refused.pop(question, None)
                index, asked = question
                self._open[index].add(asked)

    def close(self) -> None:
        """Nothing will change any more: what rests on what is of no further use, and it is large."""
        self._resting_on.clear()

    def declines(self, alive: Alive) -> list[Decline]:
        """What was refused about the values that are left, each refusal once."""
        found: dict[tuple[str, str, str], Decline] = {}
        for (_, node), refused in self._refused.items():
            if alive(node):
                found.update(((d.rule, d.subject, d.fact), d) for d in refused)
        return list(found.values())
