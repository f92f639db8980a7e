"""The two ways to compute what a proposal replaces, for an objective to compare: as it is, and as it would be.

The `cost` counts, and is all that our own objectives read.  An objective that knows what operations take on some
target reads the `steps`: every map in its executed form, and at which resolution.  Passes over memory that are no maps
(sums, concatenations, activations) are counted in `cost.light` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial

from torch import fx

from repfx.algebra import AffineConv, Form, form_of
from repfx.graph import LiftedGraph
from repfx.rewriting.cost import Cost, cost_of_nodes, densities, map_at
from repfx.rewriting.expressions import cost_of_exprs, maps_of
from repfx.rewriting.proposal import Add, Apply, Attend, Cat, Expr, Proposal, Shared, Then, Through

Shape = tuple[int | None, ...] | None


@dataclass(frozen=True, eq=False)
class Step:
    """One map as it is executed."""

    form: Form  # which convolution, linear, copy or scale
    density: Fraction | int  # positions of its output for one position of the candidate's


@dataclass(frozen=True, eq=False)
class Candidate:
    """One of two equal ways to compute a value, or several at once."""

    cost: Cost
    _shape: Callable[[], Shape]
    _steps: Callable[[], Iterator[Step]]

    @cached_property
    def shape(self) -> Shape:
        """Of the (last) value: (B, C, H, W) as far as sizes are known.  Read it while you are asked."""
        return self._shape()

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Its maps.  Read them while you are asked: they are found in the graph as it is then."""
        return tuple(self._steps())


def candidates(lifted: LiftedGraph, proposal: Proposal) -> tuple[Candidate, Candidate]:
    """What a proposal replaces, and what it replaces it by."""
    sinks = [node for node, _ in proposal.replacements]
    exprs = [expr for _, expr in proposal.replacements]
    axes = next((map_.axes for expr in exprs for map_ in maps_of(expr)), 0)
    shape = partial(lifted.context.shapes.of, sinks[-1])
    replaced = cost_of_nodes(lifted, proposal.interior, sinks, axes)
    before = Candidate(replaced, shape, partial(_steps_of_nodes, lifted, proposal.interior, sinks, axes))
    return before, Candidate(cost_of_exprs(exprs), shape, partial(_steps_of_exprs, exprs))


def _steps_of_nodes(
    lifted: LiftedGraph, nodes: Sequence[fx.Node], sinks: Sequence[fx.Node], axes: int
) -> Iterator[Step]:
    for node, density in densities(lifted, nodes, sinks, axes):
        map_ = map_at(lifted, node, axes)
        if isinstance(map_, AffineConv):
            yield Step(form_of(map_), density)


def _steps_of_exprs(exprs: Sequence[Expr]) -> Iterator[Step]:
    """The maps of several expressions; what they share is executed once."""
    seen: set[int] = set()
    for expr in exprs:
        yield from _steps_of_expr(expr, 1, seen)


def _steps_of_expr(expr: Expr, density: Fraction | int, seen: set[int]) -> Iterator[Step]:
    """The maps of an expression; a value as it is, `Ref` or `Plain`, has none."""
    match expr:
        case Apply(map=map_):
            yield Step(form_of(map_), density)
        case Shared(map=whole, part=part):
            if _is_new(whole, seen):
                yield Step(form_of(whole), density)
            yield Step(form_of(part), density)
        case Then(map=map_, value=value):
            yield Step(form_of(map_), density)
            yield from _steps_of_expr(value, density, seen)
        case Through(value=value, density=own):
            if _is_new(expr, seen):
                yield from _steps_of_expr(value, density * own, seen)
        case Add(values=values) | Cat(values=values) | Attend(values=values):
            for value in values:
                yield from _steps_of_expr(value, density, seen)


def _is_new(part: object, seen: set[int]) -> bool:
    """Whether something that several expressions hold is met for the first time."""
    known = id(part) in seen
    seen.add(id(part))
    return not known
