"""What a lifting rule is, and what it reads of a call: arguments and facts of the kind that it is about.

A rule that is given anything else has nothing to say, and the next one is asked.  So the readers raise
`OtherCallError` where an argument or a fact is missing, and `asked` takes that for the answer `None`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import fx

from repfx.algebra import AffineConv
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Context, Op, argument

FunctionRule = Callable[[fx.Node, Context], Op | None]  # of a function or a method of a tensor
ModuleRule = Callable[[fx.Node, Any, Context], Op | None]  # (call, module, context)
Build = Callable[[int, int | None], AffineConv | Decline]  # of an `Affine`

Found = TypeVar("Found")


class OtherCallError(Exception):
    """The call is none of those that a rule is about."""


def asked(rule: Callable[..., Found], *given: Any, **options: Any) -> Found | None:
    """What a rule says of a call; None where it is not about such calls."""
    try:
        return rule(*given, **options)
    except OtherCallError:
        return None


def known(fact: Found | None) -> Found:
    """A fact that the rule rests on."""
    if fact is None:
        raise OtherCallError
    return fact


def as_value(given: object) -> fx.Node:
    """An argument that is a value of the graph."""
    if not isinstance(given, fx.Node):
        raise OtherCallError
    return given


def as_whole(given: object) -> int:
    """An argument that is a whole number."""
    if not isinstance(given, int):
        raise OtherCallError
    return given


def as_items(given: object) -> list[Any]:
    """The items of an argument that is a tuple or a list."""
    if not isinstance(given, tuple | list):
        raise OtherCallError
    return list(given)


def as_values(given: object) -> tuple[fx.Node, ...]:
    """The items of an argument that is a tuple or a list of values."""
    return tuple(as_value(item) for item in as_items(given))


def as_wholes(given: object) -> list[int]:
    """The items of an argument that is a tuple or a list of whole numbers, or the one whole number that it is."""
    return [given] if isinstance(given, int) else [as_whole(item) for item in as_items(given)]


def source_of(node: fx.Node, name: str = "input") -> fx.Node:
    """The value that a call reads first."""
    return as_value(argument(node, 0, name))


def items_after(node: fx.Node, position: int) -> Sequence[Any]:
    """The numbers of x.view(2, 3) and x.view((2, 3)) alike: what stands at a position and after it."""
    given = node.args[position:]
    return given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given


def spread_ellipsis(items: Sequence[Any], rank: int) -> list[Any]:
    """The items of an index with whole slices in the place of `...`."""
    if Ellipsis not in items:
        return list(items)
    place = list(items).index(Ellipsis)
    named = sum(item is not None for item in items) - 1
    return [*items[:place], *[slice(None)] * (rank - named), *items[place + 1 :]]


def fixed(node: fx.Node, map_: AffineConv) -> Op:
    """An operation on the value that a call reads first, whose map is known already."""
    return Affine(source_of(node), map_.axes, lambda axes, channels: map_)


def per_channel(make: Callable[[int, int], AffineConv]) -> Build:
    """`make(axes, channels)` of an operation that does the same to every channel, however many there are."""

    def build(axes: int, channels: int | None) -> AffineConv | Decline:
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        return make(axes, channels)

    return build
