"""What a pass may propose, what it costs, and the engine and its gate: the only code that changes a lifted graph."""

from repfx.rewriting.candidate import Candidate, Step
from repfx.rewriting.cost import generates_weight
from repfx.rewriting.depthwise import FastDepthwise
from repfx.rewriting.engine import Engine
from repfx.rewriting.objective import MACS, OBJECTIVES, SINGLE_BRANCH, Objective, objective_of
from repfx.rewriting.propagation import Absorption, absorbed, map_over
from repfx.rewriting.proposal import (
    Add,
    Apply,
    Attend,
    Cat,
    Expr,
    Pass,
    Plain,
    Proposal,
    Ref,
    Shared,
    Then,
    Through,
    as_one_map,
)

__all__ = [
    "MACS",
    "OBJECTIVES",
    "SINGLE_BRANCH",
    "Absorption",
    "Add",
    "Apply",
    "Attend",
    "Candidate",
    "Cat",
    "Engine",
    "Expr",
    "FastDepthwise",
    "Objective",
    "Pass",
    "Plain",
    "Proposal",
    "Ref",
    "Shared",
    "Step",
    "Then",
    "Through",
    "absorbed",
    "as_one_map",
    "generates_weight",
    "map_over",
    "objective_of",
]
