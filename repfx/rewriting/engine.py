"""The engine: passes are asked about values, and what they propose goes through one gate before the graph changes.

    scheduler: which value is asked about next, and again      (`repfx.rewriting.scheduler`)
    reader:    what an answer rests on                         (`repfx.rewriting.reader`)
    gate:      whether a proposal may change the graph         (`repfx.rewriting.gate`)
    commit:    how the graph changes                           (`repfx.rewriting.commit`)

Alike blocks are asked about once (`repfx.rewriting.isomorphism`, `repfx.rewriting.replication`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import fx

from repfx.decline import Decline, Reason
from repfx.graph import LiftedGraph, Op
from repfx.rewriting.commit import commit
from repfx.rewriting.gate import Gate, Objection
from repfx.rewriting.objective import Objective
from repfx.rewriting.proposal import Pass, Proposal
from repfx.rewriting.reader import Reader
from repfx.rewriting.rehearsal import Rehearsal
from repfx.rewriting.replication import UnlikeError
from repfx.rewriting.scheduler import Scheduler


@dataclass
class Engine:
    """Runs passes over one lifted graph until nothing improves any more."""

    lifted: LiftedGraph
    objective: Objective
    objection: Objection
    verify: bool = True
    progress: Callable[[str, float], None] | None = None
    _schedule: Scheduler = field(default_factory=lambda: Scheduler(()))
    _rehearsal: Rehearsal | None = None  # while the first of alike blocks are rewritten

    def __post_init__(self) -> None:
        self._gate = Gate(self.objective, self.objection)

    @property
    def verify_seconds(self) -> float:
        """How long replacements were compared with what they replace."""
        return self._gate.verify_seconds

    def run(self, passes: Sequence[Pass], limit: int = 1000) -> None:
        """Sweep the passes until a whole sweep changes nothing.

        Every commitment strictly lowers the cost, so this ends; `limit` only guards against our bugs.
        """
        self._rehearsal = Rehearsal(self.lifted)
        if self._rehearsal.stage:
            self._settle(passes, self._rehearsal.stage, limit)
            self._rehearsal.repeat(self._checked if self.verify else None)
        self._rehearsal = None
        self._settle(passes, self.lifted.graph.nodes, limit)

    def declines(self) -> list[Decline]:
        """What was refused about the values that are left, each refusal once."""
        return self._schedule.declines(self.lifted.alive)

    def _settle(self, passes: Sequence[Pass], nodes: Iterable[fx.Node], limit: int) -> None:
        """Ask about these nodes, and what becomes of them, until nothing improves."""
        self._schedule = Scheduler(passes)
        for node in nodes:
            self._schedule.introduce(node, self.lifted.op(node))
        for sweep in range(limit):
            if not self._sweep(passes, sweep):
                self._schedule.close()
                return
        raise AssertionError("passes did not settle")

    def _sweep(self, passes: Sequence[Pass], sweep: int) -> bool:
        """Run the passes in order up to the first that changes something: a later pass sees settled regions."""
        for index, one in enumerate(passes):
            if self.progress is not None:
                self.progress(f"sweep {sweep + 1}: {one.name}", index / len(passes))
            if self._run_pass(index, one):
                return True
        return False

    def _run_pass(self, index: int, one: Pass) -> bool:
        changed = False
        for node in self._schedule.take(index, self.lifted.alive):
            if self.lifted.alive(node):  # those before it may have replaced it
                changed |= self._ask(index, one, node)
        return changed

    def _ask(self, index: int, one: Pass, node: fx.Node) -> bool:
        """Take what a pass proposes about a value through the gate; whether anything was committed."""
        reader = Reader(self.lifted)
        refused: list[Decline] = []
        changed = False
        for item in one.propose(reader, node):
            refusal = item if isinstance(item, Decline) else self._gate.refusal(reader, item)
            if self._rehearsal is not None and self._rehearsal.strays(node, reader.looked_at):
                break
            if refusal is None and isinstance(item, Proposal):
                refusal = self._tried(reader, item)
            if refusal is None:
                changed = True
            elif not _goes_without_saying(item, refusal):
                refused.append(refusal.by(one.name))
        if changed:
            self._schedule.ask_again(index, node)
        else:
            self._schedule.settle(index, node, refused, reader.looked_at)
        return changed

    def _tried(self, reader: Reader, proposal: Proposal) -> Decline | None:
        """Commit a proposal, unless the probes say that it is wrong."""
        error = self._gate.verify(reader, proposal) if self.verify else None
        if isinstance(error, Decline):
            return error
        self._schedule.reopen(commit(self.lifted, proposal, error, self._welcome))
        return None

    def _welcome(self, node: fx.Node, op: Op, sink: fx.Node) -> None:
        """A new node of the graph, in the place of `sink`."""
        self._schedule.introduce(node, op)
        if self._rehearsal is not None:
            self._rehearsal.admit(node, sink)

    def _checked(self, proposal: Proposal) -> float | None:
        """The error of a repetition on the probes; raises `UnlikeError` where it is no rounding error."""
        checked = self._gate.verify(self.lifted, proposal, once=True)
        if isinstance(checked, Decline):
            raise UnlikeError
        return checked


def _goes_without_saying(item: Proposal | Decline, refusal: Decline) -> bool:
    """Whether the refusal of an earlier proposal about the same value says it all."""
    return isinstance(item, Proposal) and item.further and refusal.reason is Reason.COST
