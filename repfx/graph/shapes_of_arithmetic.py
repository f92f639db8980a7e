"""Shapes of sums, products, reductions and concatenations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from repfx.graph.nodes import argument
from repfx.graph.shape_rules import (
    KnownShapes,
    Shape,
    ShapeRule,
    axes_in,
    axis_in,
    replaced,
    same,
    shape_of,
    told,
)
from repfx.graph.sizes import is_size


def broadcast(node: fx.Node, shapes: KnownShapes) -> Shape:
    """Of an elementwise operation: all tensors that it reads, with their last axes side by side.

    Numbers that are read from shapes have no axes.
    """
    known: list[tuple[int | None, ...]] = []
    for operand in node.all_input_nodes:
        shape = shapes.of(operand)
        if shape is not None:
            known.append(shape)
        elif not is_size(operand):
            return None
    if not known:
        return None
    rank = max(len(shape) for shape in known)
    return tuple(_wider([shape[i] for shape in known if -i <= len(shape)]) for i in range(-rank, 0))


def _wider(sizes: Sequence[int | None]) -> int | None:
    """The size that these are broadcast to; one that is not known may be one."""
    if len(set(sizes)) == 1:
        return sizes[0]
    wide = [size for size in sizes if size != 1]
    return next((size for size in wide if size is not None), None)


def product(first: int) -> ShapeRule:
    """Rows by columns, the factors being the argument `first` and the next.

    Known where one factor is a matrix, or both are of one rank; leading axes of size one broadcast.
    """
    names = (("mat1",), ("mat2",)) if first else (("input", "tensor1"), ("other", "mat2", "tensor2"))

    def rule(node: fx.Node, shapes: KnownShapes) -> Shape:
        left, right = (_factor(node, first + i, names[i], shapes) for i in range(2))
        if left is None or right is None or len(left) < 2 or len(right) < 2:
            return None
        if len(right) == 2:
            return (*left[:-1], right[-1])
        if len(left) == 2:
            return (*right[:-2], left[-2], right[-1])
        if len(left) != len(right):
            return None
        return (*map(_lead, left[:-2], right[:-2]), left[-2], right[-1])

    return rule


def _factor(node: fx.Node, position: int, names: Sequence[str], shapes: KnownShapes) -> Shape:
    named = next((node.kwargs[name] for name in names if name in node.kwargs), None)
    return shape_of(node.args[position] if len(node.args) > position else named, shapes)


def _lead(a: int | None, b: int | None) -> int | None:
    """One leading axis of a product."""
    if a not in (1, None):
        return a
    return a if b == 1 else b


def einsum(node: fx.Node, shapes: KnownShapes) -> Shape:
    """Each letter has one size, wherever it stands."""
    equation, *operands = node.args
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    sizes: dict[str, int] = {}
    for letters, operand in zip(inputs.split(","), operands):
        for letter, size in zip(letters, shape_of(operand, shapes) or ()):
            if size is not None:
                sizes[letter] = size
    return tuple(sizes.get(letter) for letter in output)


def reduced(node: fx.Node, shapes: KnownShapes) -> Shape:
    """Some axes go, or stay with one entry."""
    dims, keep = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
    if len(node.args) + len(node.kwargs) == 1:
        return ()  # one number, of whatever
    given = same(node, shapes)
    if given is None:
        return None
    if dims is None:
        return ()
    gone = axes_in(given, dims)
    if gone is None:
        return None
    if keep:
        return tuple(1 if i in gone else size for i, size in enumerate(given))
    return tuple(size for i, size in enumerate(given) if i not in gone)


def concatenated(node: fx.Node, shapes: KnownShapes) -> Shape:
    """The sizes along one axis add up."""
    return _joined(node, shapes, argument(node, 1, "dim", node.kwargs.get("axis", 0)))


def stacked_horizontally(node: fx.Node, shapes: KnownShapes) -> Shape:
    """Along axis 1 of anything that has one."""
    return _joined(node, shapes, 1)


def _joined(node: fx.Node, shapes: KnownShapes, dim: object) -> Shape:
    parts = _part_shapes(node, shapes)
    known = _first_known(parts)
    axis = None if known is None else axis_in(known, dim)
    if known is None or axis is None:
        return None
    total: int | None = 0
    for shape in parts:
        size = None if shape is None else shape[axis]
        total = None if total is None or size is None else total + size
    return replaced(known, axis, total)


def stacked(node: fx.Node, shapes: KnownShapes) -> Shape:
    """A new axis, with one entry for each part."""
    parts = _part_shapes(node, shapes)
    known = _first_known(parts)
    if known is None:
        return None
    place = axis_in((*known, None), told(node, shapes, 1, "dim", 0))
    return None if place is None else (*known[:place], len(parts), *known[place:])


def _first_known(parts: Sequence[Shape]) -> Shape:
    return next((shape for shape in parts if shape is not None), None)


def _part_shapes(node: fx.Node, shapes: KnownShapes) -> list[Shape]:
    parts = argument(node, 0, "tensors")
    if not isinstance(parts, tuple | list):
        return []
    return [shapes.of(part) for part in parts if isinstance(part, fx.Node)]
