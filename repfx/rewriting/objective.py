"""What "better" means: each objective is a guard and a strictly descending key.

A rewrite is accepted iff the guard allows it and the key falls; that is also why compiling ends.
"""

from __future__ import annotations

from typing import final

from repfx.decline import Decline, Reason
from repfx.errors import UserError
from repfx.plugins import Registry
from repfx.rewriting.candidate import Candidate


class Objective:
    """A named preference among exactly equal networks; subclass it and give it a name.

    Its answers depend on the two candidates alone, never on the values of weights, and the name says all that they
    depend on: a file of fused weights records the name, and the same decisions are taken again when it is loaded.
    """

    name: str = ""
    about: str = ""  # one line for the help
    stores_once: bool = False  # a weight that several calls share is not folded where it would be stored once more

    def guard(self, before: Candidate, after: Candidate) -> str:
        """Why `after` may not replace `before`, in words that follow a module path; "" if it may."""
        return ""

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """What has to fall, first entry first; by default convolutions, then passes over memory, then size.

        Compiling ends because it falls with every rewrite.  So each entry has to be a sum over what is executed,
        of terms that are never negative; a time measured per form is one.
        """
        cost = candidate.cost
        return cost.heavy, cost.light, cost.macs, cost.parameters

    @final
    def refuses(self, before: Candidate, after: Candidate) -> Decline | None:
        """Why `after` is no improvement on `before`, or None if it is one."""
        objection = self.guard(before, after)
        if objection:
            return Decline(Reason.COST, objection)
        if self.key(after) < self.key(before):
            return None
        return Decline(Reason.COST, "would not make the network smaller or shorter")


class SingleBranch(Objective):
    """The fewest convolutions."""

    name = "single-branch"
    about = "the fewest convolutions; kernels may grow where each output channel reads one input channel"

    def guard(self, before: Candidate, after: Candidate) -> str:
        """A dense convolution never grows."""
        old, new = before.cost.macs, after.cost.macs
        if after.cost.dense and new > old:
            return f"a dense convolution would grow from {old:,} to {new:,} multiply-accumulates per pixel"
        return ""


class Macs(Objective):
    """Nothing grows."""

    name = "macs"
    about = "no merge increases multiply-accumulates or parameters"
    stores_once = True

    def guard(self, before: Candidate, after: Candidate) -> str:
        """Neither multiply-accumulates nor parameters grow."""
        old, new = before.cost, after.cost
        if new.macs > old.macs:
            return f"would grow from {old.macs:,} to {new.macs:,} multiply-accumulates per pixel"
        if new.parameters > old.parameters:
            return f"would grow from {old.parameters:,} to {new.parameters:,} parameters"
        return ""


OBJECTIVES = Registry("objective", "repfx.objectives", Objective, lambda objective: objective.name)
SINGLE_BRANCH, MACS = SingleBranch(), Macs()
OBJECTIVES.add(SINGLE_BRANCH)
OBJECTIVES.add(MACS)


def objective_of(wanted: str | Objective) -> Objective:
    """The objective that is given or named.  Raises `UserError`."""
    if isinstance(wanted, Objective):
        return _named(wanted)
    if not isinstance(wanted, str):
        raise UserError(f"objective: takes a name or an instance of a subclass of Objective, not {wanted!r}.")
    found = OBJECTIVES.find(wanted)
    if found is None:
        raise UserError(f"objective {wanted!r} is not known; choose one of {', '.join(OBJECTIVES.names())}")
    return found


def _named(objective: Objective) -> Objective:
    """The objective itself, where its name says which it is."""
    kind = type(objective).__name__
    if not objective.name:
        raise UserError(f"{kind}: has no name; give the class one, under which a report and a saved file show it.")
    other = OBJECTIVES.own.get(objective.name)
    if other is not None and type(other) is not type(objective):
        raise UserError(f"{kind}: its name {objective.name!r} is that of {type(other).__name__}; choose another.")
    return objective
