"""What the expressions of a proposal read, hold and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from repfx.algebra import AffineConv
from repfx.rewriting.cost import COST_OF_ATTENTION, Cost, cost_of_map
from repfx.rewriting.proposal import Add, Apply, Attend, Cat, Expr, Plain, Ref, Shared, Then, Through


def values_of(expr: Expr) -> Iterable[fx.Node]:
    """The values that an expression reads."""
    match expr:
        case Ref(node=node) | Apply(value=node) | Shared(value=node):
            yield node
        case Add(values=values) | Cat(values=values) | Attend(values=values):
            for value in values:
                yield from values_of(value)
        case Through(value=value) | Then(value=value):
            yield from values_of(value)
        case Plain(node=node):
            yield from node.all_input_nodes[:1]


def maps_of(expr: Expr) -> Iterable[AffineConv]:
    """The maps in an expression."""
    match expr:
        case Apply(map=map_) | Shared(map=map_):
            yield map_
        case Add(values=values) | Cat(values=values) | Attend(values=values):
            for value in values:
                yield from maps_of(value)
        case Then(map=map_, value=value):
            yield map_
            yield from maps_of(value)
        case Through(value=value):
            yield from maps_of(value)
        case Ref() | Plain():
            return


def cost_of_exprs(exprs: Sequence[Expr]) -> Cost:
    """What executing several expressions costs; what they share is executed once."""
    shared = {id(part.map): part.map for expr in exprs for part in _shared_in(expr)}
    once = sum((cost_of_map(map_) for map_ in shared.values()), Cost())
    seen: set[int] = set()
    return sum((cost_of_expr(expr, seen) for expr in exprs), once)


def _shared_in(expr: Expr) -> Iterable[Shared]:
    match expr:
        case Shared():
            yield expr
        case Add(values=values) | Cat(values=values) | Attend(values=values):
            for value in values:
                yield from _shared_in(value)
        case Through(value=value) | Then(value=value):
            yield from _shared_in(value)
        case Ref() | Apply() | Plain():
            return


def cost_of_expr(expr: Expr, seen: set[int]) -> Cost:
    """What executing an expression costs, per position of its output; `seen`: what is executed already."""
    if id(expr) in seen and isinstance(expr, Through | Plain):
        return Cost()
    seen.add(id(expr))
    match expr:
        case Ref():
            return Cost()
        case Apply(map=map_):
            return cost_of_map(map_)
        case Shared(part=part):
            return cost_of_map(part)
        case Add(values=values):
            return sum((cost_of_expr(v, seen) for v in values), Cost(light=len(values) - 1))
        case Cat(values=values):
            return sum((cost_of_expr(v, seen) for v in values), Cost(light=1))
        case Through(value=value, density=density):
            return Cost(light=1) + cost_of_expr(value, seen).at(density)
        case Then(map=map_, value=value):
            return cost_of_map(map_) + cost_of_expr(value, seen)
        case Plain():
            return Cost()
        case Attend(values=values, bias=bias):
            own = COST_OF_ATTENTION + Cost(light=1 if len(bias) > 1 else 0)
            return sum((cost_of_expr(v, seen) for v in values), own)
