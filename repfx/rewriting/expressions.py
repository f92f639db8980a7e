"""What the expressions of a proposal read, hold and cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from repfx.algebra import AffineConv
from repfx.rewriting.cost import COST_OF_ATTENTION, Cost, cost_of_map
from repfx.rewriting.proposal import Add, Apply, Attend, Cat, Expr, Plain, Ref, Shared, Then, Through


def parts_of(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that an expression is made of."""
    match expr:
        case Add(values=values) | Cat(values=values) | Attend(values=values):
            return values
        case Through(value=value) | Then(value=value):
            return (value,)
        case Ref() | Apply() | Shared() | Plain():
            return ()


def within(expr: Expr) -> Iterator[Expr]:
    """An expression and all those inside it, the outer ones first."""
    yield expr
    for part in parts_of(expr):
        yield from within(part)


def values_of(expr: Expr) -> Iterator[fx.Node]:
    """The values that an expression reads."""
    for part in within(expr):
        match part:
            case Ref(node=node) | Apply(value=node) | Shared(value=node):
                yield node
            case Plain(node=node):
                yield from node.all_input_nodes[:1]


def maps_of(expr: Expr) -> Iterator[AffineConv]:
    """The maps in an expression."""
    for part in within(expr):
        if isinstance(part, Apply | Shared | Then):
            yield part.map


def cost_of_exprs(exprs: Sequence[Expr]) -> Cost:
    """What executing several expressions costs; what they share is executed once."""
    shared = {id(part.map): part.map for expr in exprs for part in within(expr) if isinstance(part, Shared)}
    once = sum(map(cost_of_map, shared.values()), Cost())
    seen: set[int] = set()
    return sum((_cost_of_expr(expr, seen) for expr in exprs), once)


def _cost_of_expr(expr: Expr, seen: set[int]) -> Cost:
    """What executing an expression costs, per position of its output; `seen`: what is executed already."""
    if isinstance(expr, Through | Plain) and id(expr) in seen:
        return Cost()
    seen.add(id(expr))
    inner = sum((_cost_of_expr(part, seen) for part in parts_of(expr)), Cost())
    if isinstance(expr, Through):
        inner = inner.at(expr.density)
    return _own_cost(expr) + inner


def _own_cost(expr: Expr) -> Cost:
    """What an expression costs but for the expressions inside it."""
    match expr:
        case Ref() | Plain():
            return Cost()
        case Apply(map=map_) | Then(map=map_) | Shared(part=map_):
            return cost_of_map(map_)
        case Add(values=values):
            return Cost(light=len(values) - 1)
        case Cat() | Through():
            return Cost(light=1)
        case Attend(bias=bias):
            return COST_OF_ATTENTION + Cost(light=1 if len(bias) > 1 else 0)
