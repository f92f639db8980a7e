"""Linears and 1x1 convolutions written as products with a constant matrix.

    x @ W                      the last axis, a Linear of weight W^T
    W @ x, x of rank 3         axis 1, a 1x1 convolution over one axis
    einsum("bchw,oc->bohw")    the axis whose letter is replaced; a letter that stays is a scale

Exact always.  Declined: both operands depend on the input (attention), or another axis is summed up.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from repfx.algebra import constructors
from repfx.decline import Reason
from repfx.graph import Affine, Context, Op, Opaque, argument

_Lazy = Callable[[], Tensor]


def _linear(
    node: fx.Node,
    source: object,
    weight: _Lazy,
    shape: tuple[int, int],
    bias: _Lazy | None,
    axes: int,
    context: Context,
) -> Op | None:
    """The map of weight (O, C), over that many spatial axes; with none, channels are last."""
    if not isinstance(source, fx.Node):
        return None
    ones = (1,) * axes
    map_ = constructors.from_conv(
        lambda: weight().reshape(*shape, *ones),
        bias,
        shape=(*shape, *ones),
        stride=ones,
        before=(0,) * axes,
        after=(0,) * axes,
        dilation=ones,
    )
    return Affine(source, axes, lambda _, __: map_)


def _constant_operand(a: object, b: object, context: Context) -> tuple[fx.Node, fx.Node] | None:
    """(value, constant) of two operands of which exactly one is constant."""
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    fixed = [context.constants.is_constant(v) for v in (a, b)]
    if fixed == [False, True]:
        return a, b
    return (b, a) if fixed == [True, False] else None


def _product(node: fx.Node, context: Context) -> Op | None:
    a, b = argument(node, 0, "input"), argument(node, 1, "mat2", argument(node, 1, "other"))
    operands = _constant_operand(a, b, context)
    if operands is None:
        return None
    value, matrix = operands
    shape, read = context.constants.shape(matrix), context.tensor(matrix)
    if shape is None or read is None:
        return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)
    if len(shape) != 2:
        return context.declined(node, f"multiplies by a constant of {len(shape)} axes; that is no single matrix")
    if value is a:
        return _linear(node, value, lambda: read().t(), (shape[1], shape[0]), None, 0, context)
    if context.shapes.rank(value) != 3:
        return context.declined(node, "multiplies an axis that is not the channel axis of a map")
    return _linear(node, value, read, (shape[0], shape[1]), None, 1, context)


def _added(node: fx.Node, context: Context) -> Op | None:
    """addmm(d, x, W): beta d + alpha (x @ W)."""
    d, x, matrix = argument(node, 0, "input"), argument(node, 1, "mat1"), argument(node, 2, "mat2")
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    operands = _constant_operand(x, matrix, context)
    if operands is None or operands[0] is not x or not isinstance(alpha, int | float):
        return context.declined(node, "its weight depends on the input")
    shape, read, shift = context.constants.shape(operands[1]), context.tensor(operands[1]), context.tensor(d)
    size = context.constants.shape(d) if isinstance(d, fx.Node) else None
    if shape is None or read is None or len(shape) != 2:
        return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)
    if shift is None or size is None or not isinstance(beta, int | float):
        return context.declined(node, "adds a value that depends on the input")
    if tuple(size) not in ((shape[1],), (1, shape[1])):
        return context.declined(node, "its bias is no single value per channel")
    return _linear(
        node,
        x,
        lambda: read().t() * alpha,
        (shape[1], shape[0]),
        lambda: shift().reshape(-1) * beta,
        0,
        context,
    )


def _einsum(node: fx.Node, context: Context) -> Op | None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    chosen = _constant_operand(operands[0], operands[1], context)
    if chosen is None:
        return None
    value, constant = chosen
    inputs, output = equation.replace(" ", "").replace("...", ".").split("->")
    letters = inputs.split(",")
    of_value, of_weight = letters if value is operands[0] else reversed(letters)
    shape, read = context.constants.shape(constant), context.tensor(constant)
    if shape is None or read is None:
        return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)
    distinct = all(len(set(part)) == len(part) for part in (of_value, of_weight, output))
    if not distinct or "." in of_weight or len(of_value) != len(output):
        return _no_map(node, context)
    changed = [i for i, (a, b) in enumerate(zip(of_value, output)) if a != b]
    place = changed[0] if len(changed) == 1 else of_value.find(of_weight) if not changed else -1
    axes = _axes_at(of_value, place)
    if axes is None or of_value[place] == ".":
        return _no_map(node, context)
    taken, made = of_value[place], output[place]
    if not changed and len(of_weight) == 1:
        map_ = constructors.pointwise(shape[0], axes, read, None)
        return Affine(value, axes, lambda _, __: map_)
    if not changed or sorted(of_weight) != sorted(taken + made):
        return _no_map(node, context)
    turned = of_weight == taken + made
    size = (shape[1], shape[0]) if turned else (shape[0], shape[1])
    return _linear(node, value, lambda: read().t() if turned else read(), size, None, axes, context)


def _axes_at(letters: str, place: int) -> int | None:
    """Spatial axes of a map along this letter: none along the last, all behind axis 1."""
    if place < 0 or (place == 0 and letters != letters[0]):
        return None
    if place == len(letters) - 1:
        return 0
    return len(letters) - 2 if place == 1 and "." not in letters else None


def _no_map(node: fx.Node, context: Context) -> Opaque:
    return context.declined(node, "contracts other axes than the channels; that is no convolution")


Rule = Callable[[fx.Node, Context], Op | None]
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm), _product),
    torch.addmm: _added,
    torch.einsum: _einsum,
}
METHODS: dict[str, Rule] = {**dict.fromkeys(("matmul", "mm", "__matmul__"), _product), "addmm": _added}
