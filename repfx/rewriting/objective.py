"""What "better" means: each objective is a guard and a strictly descending key.

A rewrite is accepted iff the guard allows it and the key falls; that is also why compiling ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from repfx.decline import Decline, Reason
from repfx.rewriting.cost import Cost


@dataclass(frozen=True)
class Objective:
    """A named preference among exactly equal networks."""

    name: str
    guard: Callable[[Cost, Cost], str]  # (before, after) -> why not, or ""
    about: str

    def refuses(self, before: Cost, after: Cost) -> Decline | None:
        """Why `after` is no improvement on `before`, or None if it is one."""
        objection = self.guard(before, after)
        if objection:
            return Decline(Reason.COST, objection)
        if _key(after) < _key(before):
            return None
        return Decline(Reason.COST, "would not make the network smaller or shorter")


def _key(cost: Cost) -> tuple[int, int, int, int]:
    return cost.heavy, cost.light, cost.macs, cost.parameters


def _single_branch(before: Cost, after: Cost) -> str:
    if after.dense and after.macs > before.macs:
        return f"a dense convolution would grow from {before.macs:,} to {after.macs:,} multiply-accumulates per pixel"
    return ""


def _macs(before: Cost, after: Cost) -> str:
    if after.macs > before.macs:
        return f"would grow from {before.macs:,} to {after.macs:,} multiply-accumulates per pixel"
    if after.parameters > before.parameters:
        return f"would grow from {before.parameters:,} to {after.parameters:,} parameters"
    return ""


SINGLE_BRANCH = Objective(
    "single-branch",
    _single_branch,
    "the fewest convolutions; kernels may grow where each output channel reads one input channel",
)
MACS = Objective("macs", _macs, "no merge increases multiply-accumulates or parameters")
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in (SINGLE_BRANCH, MACS)}
