"""The gate: the questions that every proposal is asked before the graph changes.

1. May all of it change?  The user excludes parts, and some weights are better left in one piece.
2. Is nothing inside it used outside?
3. Is everything that the replacement reads still there, and not overwritten meanwhile?
4. Does the objective's cost fall?

and, where rewrites are verified, whether the replacement agrees with what it replaces on hostile inputs
(`repfx.rewriting.comparison`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from repfx.decline import Decline, Reason
from repfx.graph import LiftedGraph, used_outside
from repfx.rewriting.candidate import candidates
from repfx.rewriting.comparison import verify_proposal
from repfx.rewriting.expressions import values_of
from repfx.rewriting.objective import Objective
from repfx.rewriting.proposal import Expr, Proposal, Ref

Objection = Callable[[fx.Node], Decline | None]  # why a node must stay as it is, if so


@dataclass
class Gate:
    """What a proposal has to pass."""

    objective: Objective
    objection: Objection
    verify_seconds: float = 0.0

    def refusal(self, lifted: LiftedGraph, proposal: Proposal) -> Decline | None:
        """Why a proposal must not be committed, if so, by structure alone."""
        return (
            self._must_stay(proposal)
            or _is_used_outside(lifted, proposal)
            or _reads_what_is_lost(lifted, proposal)
            or self._costs_more(lifted, proposal)
        )

    def verify(self, lifted: LiftedGraph, proposal: Proposal, *, once: bool = False) -> float | Decline | None:
        """The error of a replacement on the probes, None where none could be made; the refusal where it is wrong."""
        started = time.perf_counter()
        checked = verify_proposal(lifted, proposal, once=once)
        self.verify_seconds += time.perf_counter() - started
        return checked.at(_place(lifted, proposal)) if isinstance(checked, Decline) else checked

    def _must_stay(self, proposal: Proposal) -> Decline | None:
        objections = map(self.objection, proposal.interior)
        return next((objection for objection in objections if objection is not None), None)

    def _costs_more(self, lifted: LiftedGraph, proposal: Proposal) -> Decline | None:
        refused = self.objective.refuses(*candidates(lifted, proposal))
        return None if refused is None else refused.at(_place(lifted, proposal))


def _sinks(proposal: Proposal) -> list[fx.Node]:
    return [node for node, _ in proposal.replacements]


def _place(lifted: LiftedGraph, proposal: Proposal) -> str:
    """Where a proposal is, for people: at the last value that it replaces."""
    return lifted.place(proposal.replacements[-1][0])


def _is_used_outside(lifted: LiftedGraph, proposal: Proposal) -> Decline | None:
    """Whether a value that would disappear is read by anything that stays.

    A proposal that changes values `across` untouched nodes answers for all readers itself.
    """
    if proposal.across:
        return None
    leak = used_outside(lifted, proposal.interior, _sinks(proposal))
    if leak is None:
        return None
    node, reader = leak
    name = "the output" if reader.op == "output" else lifted.place(reader)
    return Decline(Reason.OUTSIDE_USE, f"is read inside the region and by {name}", lifted.place(node))


def _reads_what_is_lost(lifted: LiftedGraph, proposal: Proposal) -> Decline | None:
    """Whether a replacement reads a value that is gone by then, or that holds something else."""
    lost = set(proposal.interior).difference(_sinks(proposal))
    for _, expr in proposal.replacements:
        for value in values_of(expr):
            if value in lost:
                return Decline(Reason.OUTSIDE_USE, "is read again by what replaces it", lifted.place(value))
            if value.meta.get("aliased"):
                fact = "would read a value that an in-place operation overwrites"
                return Decline(Reason.NOT_EXACT, fact, _place(lifted, proposal))
            if _moves_past_an_overwriter(value, proposal.interior, expr):
                fact = f"would read {lifted.place(value)} behind a module that may overwrite it"
                return Decline(Reason.NOT_EXACT, fact, _place(lifted, proposal))
    return None


def _moves_past_an_overwriter(value: fx.Node, interior: Sequence[fx.Node], expr: Expr) -> bool:
    """Whether some call between the region's first and last node may write into what the replacement reads."""
    if isinstance(expr, Ref) and any(node.meta.get("overwriters") for node in interior):
        return True  # a copy that protects the value it was made from
    first, last = min(interior), max(interior)
    return any(first < call < last for call in value.meta.get("overwriters", ()))
