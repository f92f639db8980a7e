"""What a shape rule is: from the partial shapes of what an operation reads to that of its result.

A partial shape is a tuple with an int where a size is known and None where it is not, or None where not even
the number of axes is.  One rule serves a function, a method and a module: what a call is told, a module holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import fx, nn

from repfx.graph.module_traversal import module_at
from repfx.graph.nodes import argument

Shape = tuple[int | None, ...] | None


class KnownShapes(Protocol):
    """What a rule may ask."""

    root: nn.Module

    def of(self, node: fx.Node) -> Shape:
        """Partial shape of a value."""

    def constant(self, node: fx.Node) -> torch.Size | None:
        """Shape of a value that depends on parameters and buffers only."""


ShapeRule = Callable[[fx.Node, KnownShapes], Shape]


def unknown(node: fx.Node, shapes: KnownShapes) -> Shape:
    """Of an operation that has no rule."""
    return None


def same(node: fx.Node, shapes: KnownShapes) -> Shape:
    """As the first argument."""
    return shape_of(node.args[0] if node.args else node.kwargs.get("input"), shapes)


def shape_of(value: object, shapes: KnownShapes) -> Shape:
    """The shape of a value; of an argument that is none, nothing is known."""
    return shapes.of(value) if isinstance(value, fx.Node) else None


def told(node: fx.Node, shapes: KnownShapes, position: int, name: str, default: Any = None) -> Any:
    """What a call is told, or what the module that is called holds under that name."""
    if node.op == "call_module":
        return getattr(module_at(shapes.root, str(node.target)), name, default)
    return argument(node, position, name, default)


def listed(node: fx.Node, *names: str) -> Sequence[object] | None:
    """The sizes or axes that follow the first argument, one by one or as one list: `x.view(2, 3)`, `x.view((2, 3))`."""
    given = node.args[1:] or [node.kwargs[name] for name in names if name in node.kwargs]
    if len(given) == 1 and isinstance(given[0], tuple | list):
        return given[0]
    return given or None


def axis_in(given: Sequence[object], dim: object) -> int | None:
    """An axis counted from the front, or None where it is no axis of that shape."""
    if not isinstance(dim, int) or not -len(given) <= dim < len(given):
        return None
    return dim % len(given)


def axes_in(given: Sequence[object], dims: object) -> list[int] | None:
    """Several axes counted from the front, or None where one is no axis of that shape."""
    wanted = (dims,) if isinstance(dims, int) else dims
    if not isinstance(wanted, tuple | list):
        return None
    axes = [axis_in(given, dim) for dim in wanted]
    return axes if _all_known(axes) else None


def _all_known(axes: list[int | None]) -> TypeGuard[list[int]]:
    return None not in axes


def replaced(given: tuple[int | None, ...], axis: int, *sizes: int | None) -> tuple[int | None, ...]:
    """The shape with other sizes, or none, in place of one axis."""
    return (*given[:axis], *sizes, *given[axis + 1 :])
