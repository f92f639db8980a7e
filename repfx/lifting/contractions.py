"""Linears and 1x1 convolutions written as products with a constant matrix.

    x @ W                      the last axis, a Linear of weight W^T
    W @ x, x of rank 3         axis 1, a 1x1 convolution over one axis
    einsum("bchw,oc->bohw")    the axis whose letter is replaced; a letter that stays is a scale

Exact always.  Declined: both operands depend on the input (attention), or another axis is summed up.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from repfx.algebra import constructors
from repfx.decline import Reason
from repfx.graph import Affine, Context, Op, Opaque, argument
from repfx.lifting.rules import FunctionRule, OtherCallError, as_value, items_after

_Lazy = Callable[[], Tensor]


def _linear(source: fx.Node, weight: _Lazy, shape: tuple[int, int], bias: _Lazy | None, axes: int) -> Op:
    """The map of weight (O, C), over that many spatial axes; with none, channels are last."""
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


def _value_and_constant(a: object, b: object, context: Context) -> tuple[fx.Node, fx.Node]:
    """(value, constant) of two operands of which exactly one is constant."""
    left, right = as_value(a), as_value(b)
    match context.constants.is_constant(left), context.constants.is_constant(right):
        case False, True:
            return left, right
        case True, False:
            return right, left
    raise OtherCallError


@dataclass(frozen=True)
class _Constant:
    """A constant operand: its numbers, and its shape."""

    read: _Lazy
    shape: tuple[int, ...]


def _constant(node: fx.Node, context: Context) -> _Constant | None:
    """What a product multiplies by; None where its shape is not known."""
    shape, read = context.constants.shape(node), context.tensor(node)
    return None if shape is None or read is None else _Constant(read, tuple(shape))


def _unknown(node: fx.Node, context: Context) -> Opaque:
    return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)


def _product(node: fx.Node, context: Context) -> Op | None:
    a, b = argument(node, 0, "input"), argument(node, 1, "mat2", argument(node, 1, "other"))
    value, matrix = _value_and_constant(a, b, context)
    constant = _constant(matrix, context)
    if constant is None:
        return _unknown(node, context)
    read, shape = constant.read, constant.shape
    if len(shape) != 2:
        return context.declined(node, f"multiplies by a constant of {len(shape)} axes; that is no single matrix")
    if value is a:
        return _linear(value, lambda: read().t(), (shape[1], shape[0]), None, axes=0)
    if context.shapes.rank(value) != 3:
        return context.declined(node, "multiplies an axis that is not the channel axis of a map")
    return _linear(value, read, (shape[0], shape[1]), None, axes=1)


def _added(node: fx.Node, context: Context) -> Op | None:
    """addmm(d, x, W): beta d + alpha (x @ W)."""
    d, x, w = argument(node, 0, "input"), argument(node, 1, "mat1"), argument(node, 2, "mat2")
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    matrix = _matrix_of(x, w, context)
    if matrix is None or not isinstance(alpha, int | float):
        return context.declined(node, "its weight depends on the input")
    constant = _constant(matrix, context)
    if constant is None or len(constant.shape) != 2:
        return _unknown(node, context)
    inputs, outputs = constant.shape
    shift = _constant(d, context) if isinstance(d, fx.Node) else None
    if shift is None or not isinstance(beta, int | float):
        return context.declined(node, "adds a value that depends on the input")
    if shift.shape not in ((outputs,), (1, outputs)):
        return context.declined(node, "its bias is no single value per channel")
    weight, bias = constant.read, shift.read
    return _linear(
        as_value(x), lambda: weight().t() * alpha, (outputs, inputs), lambda: bias().reshape(-1) * beta, axes=0
    )


def _matrix_of(x: object, w: object, context: Context) -> fx.Node | None:
    """The constant of x @ w, if it is w and x is none."""
    if not isinstance(x, fx.Node) or not isinstance(w, fx.Node):
        return None
    known = context.constants
    return w if known.is_constant(w) and not known.is_constant(x) else None


# --- einsum -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Letters:
    """einsum("value,weight->output"): a letter is an axis, a dot all that are not named."""

    value: str
    weight: str
    output: str

    @property
    def is_of_one_axis(self) -> bool:
        """Whether no axis occurs twice, the weight's are all named, and the output has as many as the value."""
        distinct = all(len(set(part)) == len(part) for part in (self.value, self.weight, self.output))
        return distinct and "." not in self.weight and len(self.value) == len(self.output)

    @property
    def changed(self) -> list[int]:
        """Places where the output has another letter than the value."""
        return [place for place, (a, b) in enumerate(zip(self.value, self.output)) if a != b]

    @property
    def place(self) -> int:
        """The place of the axis that the weight is about; -1 where there is no single one."""
        match self.changed:
            case []:
                return self.value.find(self.weight)
            case [place]:
                return place
        return -1

    @property
    def taken(self) -> str:
        """The letter that the weight replaces."""
        return self.value[self.place]

    @property
    def made(self) -> str:
        """The letter that it puts there."""
        return self.output[self.place]

    @property
    def axes(self) -> int | None:
        """Spatial axes of a map along that axis: none along the last, all behind axis 1."""
        place, count = self.place, len(self.value)
        if not 0 <= place < count or self.value[place] == "." or (place == 0 and count > 1):
            return None
        if place == count - 1:
            return 0
        return count - 2 if place == 1 and "." not in self.value else None


def _letters(equation: object, constant_first: bool) -> _Letters:
    if not isinstance(equation, str) or "->" not in equation:
        raise OtherCallError
    inputs, output = equation.replace(" ", "").replace("...", ".").split("->")
    first, second = inputs.split(",")
    return _Letters(second, first, output) if constant_first else _Letters(first, second, output)


def _operands(node: fx.Node) -> tuple[object, object]:
    """The two that are multiplied: einsum(equation, a, b), einsum(equation, [a, b])."""
    operands = items_after(node, 1)
    if len(operands) != 2:
        raise OtherCallError
    return operands[0], operands[1]


def _einsum(node: fx.Node, context: Context) -> Op | None:
    first, second = _operands(node)
    value, weight = _value_and_constant(first, second, context)
    letters = _letters(node.args[0], constant_first=weight is first)
    constant = _constant(weight, context)
    if constant is None:
        return _unknown(node, context)
    axes = letters.axes if letters.is_of_one_axis else None
    if axes is None:
        return _no_map(node, context)
    read, shape = constant.read, constant.shape
    if not letters.changed and len(letters.weight) == 1:
        map_ = constructors.pointwise(shape[0], axes, read, None)
        return Affine(value, axes, lambda _, __: map_)
    if letters.weight == letters.taken + letters.made:
        return _linear(value, lambda: read().t(), (shape[1], shape[0]), None, axes)
    if letters.weight == letters.made + letters.taken:
        return _linear(value, read, (shape[0], shape[1]), None, axes)
    return _no_map(node, context)


def _no_map(node: fx.Node, context: Context) -> Opaque:
    return context.declined(node, "contracts other axes than the channels; that is no convolution")


FUNCTIONS: dict[Any, FunctionRule] = {
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm), _product),
    torch.addmm: _added,
    torch.einsum: _einsum,
}
METHODS: dict[str, FunctionRule] = {**dict.fromkeys(("matmul", "mm", "__matmul__"), _product), "addmm": _added}
