"""Sums, differences, scalings, means, in every spelling; and the operations that act channel by channel.

`a + b`, `torch.add`, `a += b`, `sum([a, b])` (which begins with 0 +), `torch.stack(xs).sum(0)`,
`(a + b) / 2`, `0.5 * a + 0.5 * b`, `torch.mean(torch.stack(xs), 0)`, `torch.lerp(a, b, 0.5)` are one thing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from repfx.algebra import constructors
from repfx.decline import Reason
from repfx.graph import Affine, Context, Op, Opaque, OpKind, Sum, argument, name_of, operation_of
from repfx.lifting.rules import (
    OtherCallError,
    as_value,
    as_values,
    as_whole,
    as_wholes,
    asked,
    known,
    per_channel,
    source_of,
)

_Lazy = Callable[[], Tensor]


def _is_value(x: object, context: Context) -> TypeGuard[fx.Node]:
    """Whether an operand depends on the input."""
    return isinstance(x, fx.Node) and not context.constants.is_constant(x)


def _number(x: object) -> float:
    if not isinstance(x, int | float):
        raise OtherCallError
    return float(x)


# --- two operands -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Formula:
    """What a constant c does to a value x: factor x + sign c, or x c, or x / c."""

    factor: float = 1.0
    sign: float = 1.0
    multiplies: bool = False
    divides: bool = False

    def by_number(self, constant: float) -> tuple[float, float]:
        """(scale, shift) for a constant that is a number."""
        if self.divides:
            return 1.0 / constant, 0.0
        return (constant, 0.0) if self.multiplies else (self.factor, self.sign * constant)

    def by_tensor(self, read: _Lazy) -> tuple[_Lazy | None, _Lazy | None]:
        """(scale, shift) for a constant tensor, of one value or one per channel."""
        if self.divides:
            return (lambda: 1.0 / read().reshape(-1)), None
        if self.multiplies:
            return (lambda: read().reshape(-1)), None
        scale = None if self.factor == 1.0 else (lambda: torch.tensor(self.factor, dtype=torch.float64))
        return scale, (lambda: read().reshape(-1) * self.sign)


def _sum(node: fx.Node, context: Context, sign: float) -> Op | None:
    a, b = argument(node, 0, "input"), argument(node, 1, "other")
    factor = sign * _number(argument(node, 2, "alpha", 1))
    if _is_value(a, context) and _is_value(b, context):
        if not _same_shape(a, b, context):
            return Opaque(inputs=_channelwise_operands(a, b, context))
        return Sum(((a, 1.0), (b, factor)))
    if _is_value(a, context):
        return _with_constant(node, a, b, _Formula(sign=factor), context)
    return _with_constant(node, _value(b, context), a, _Formula(factor=factor), context)


def _product(node: fx.Node, context: Context, *, divide: bool) -> Op | None:
    a, b = argument(node, 0, "input"), argument(node, 1, "other")
    if argument(node, 2, "rounding_mode") is not None:
        return None
    if _is_value(a, context) and _is_value(b, context):
        return Opaque(inputs=_channelwise_operands(a, b, context))
    if divide:
        return None if b == 0 else _with_constant(node, _value(a, context), b, _Formula(divides=True), context)
    value, constant = (a, b) if _is_value(a, context) else (b, a)
    return _with_constant(node, _value(value, context), constant, _Formula(multiplies=True), context)


def _value(x: object, context: Context) -> fx.Node:
    """An operand that depends on the input."""
    if not _is_value(x, context):
        raise OtherCallError
    return x


def _reversed_difference(node: fx.Node, context: Context) -> Op | None:
    """torch.rsub(a, b, alpha) = b - alpha a."""
    a, b, alpha = source_of(node), argument(node, 1, "other"), _number(argument(node, 2, "alpha", 1))
    if not _is_value(b, context):
        return _with_constant(node, a, b, _Formula(factor=-alpha), context)
    if context.constants.is_constant(a) or not _same_shape(a, b, context):
        return Opaque()
    return Sum(((b, 1.0), (a, -alpha)))


def _interpolated(node: fx.Node, context: Context) -> Op | None:
    """torch.lerp(a, b, w) = (1 - w) a + w b, for a number w; a tensor is written out by `repfx.capture.spelling`."""
    a, b, w = source_of(node), as_value(argument(node, 1, "end")), argument(node, 2, "weight")
    if not isinstance(w, int | float):
        return context.declined(node, "its weight is no number, and what it mixes cannot take it up")
    if not _is_value(a, context) or not _is_value(b, context) or not _same_shape(a, b, context):
        return context.declined(node, "mixes a value with something of another shape")
    return Sum(((a, 1.0 - float(w)), (b, float(w))))


def _accumulated(node: fx.Node, context: Context) -> Op | None:
    """torch.addcmul and addcdiv: where they fold, `repfx.capture.spelling` has written them out."""
    return context.declined(node, "multiplies two values, or one that cannot take the factor up")


def _same_shape(a: fx.Node, b: fx.Node, context: Context) -> bool:
    """Whether an elementwise operation on a and b broadcasts nothing, as far as channels and rank tell."""
    left, right = context.shapes.of(a), context.shapes.of(b)
    if left is None or right is None:
        return True  # checked again by the algebra: channel counts and output sizes must agree
    if len(left) != len(right):
        return False
    agree = all(x == y or x is None or y is None for x, y in zip(left, right))
    return agree and all((x == 1) == (y == 1) for x, y in zip(left[1:], right[1:]))


def _channelwise_operands(a: fx.Node, b: fx.Node, context: Context) -> tuple[fx.Node, ...]:
    """Which operands a channel order may pass through to: those with channels of their own."""
    left, right = context.shapes.size(a, 1), context.shapes.size(b, 1)
    if left is None or right is None or context.shapes.rank(a) != context.shapes.rank(b):
        return ()
    if left == right:
        return (a, b)
    if right == 1:
        return (a,)
    return (b,) if left == 1 else ()


# --- a value and a constant -------------------------------------------------------------------------

_VARIES = "its constant varies over the image; that is no single value per channel"


def _with_constant(node: fx.Node, value: fx.Node, constant: object, formula: _Formula, context: Context) -> Op | None:
    """A formula of a value and a constant: a number, or a tensor with one value for each channel or for all."""
    if isinstance(constant, int | float):
        scale, shift = formula.by_number(float(constant))
        return Sum(((value, scale),), shift=shift)
    return _with_tensor(node, value, as_value(constant), formula, context)  # else sizes put together, not values


def _with_tensor(node: fx.Node, value: fx.Node, constant: fx.Node, formula: _Formula, context: Context) -> Op:
    shape, read = tuple(known(context.constants.shape(constant))), known(context.tensor(constant))
    rank = context.shapes.rank(value)
    if _spreads(value, shape, context):
        return context.declined(node, "spreads a value over a constant of more axes or larger size")
    if sum(size != 1 for size in shape) > 1:
        return context.declined(node, _VARIES)
    channels = max(shape, default=1)
    if rank is None and len(shape) > 1 and (channels == 1 or shape[-1] != 1):
        fact = f"its constant has {len(shape)} axes; whether its value has as many is not known"
        return context.declined(node, fact, "pass example_inputs", Reason.UNKNOWN_FACT)
    parts = formula.by_tensor(read)
    if channels == 1:
        return Affine(value, None, per_channel(lambda axes, count: constructors.pointwise(count, axes, *parts)))
    axes = _axes_scaled(shape, rank)
    if axes is None:
        return context.declined(node, _VARIES)
    map_ = constructors.pointwise(channels, axes, *parts)
    return Affine(value, axes, lambda _, __: map_)


def _spreads(value: fx.Node, shape: Sequence[int], context: Context) -> bool:
    """Whether a constant is certainly larger than the value along some axis, so that it broadcasts the value."""
    rank, sizes = context.shapes.rank(value), context.shapes.of(value) or ()
    longer = any(own == 1 != wanted for own, wanted in zip(reversed(sizes), reversed(shape)))
    return rank is not None and (longer or len(shape) > rank)


def _axes_scaled(shape: Sequence[int], rank: int | None) -> int | None:
    """Spatial axes of a value whose channels a constant varies over; None where it varies over other axes."""
    behind = next(place for place, size in enumerate(reversed(shape)) if size != 1)
    return behind if rank is None or behind in (0, rank - 2) else None


# --- sums and means of a stack ----------------------------------------------------------------------


def _reduced(node: fx.Node, context: Context, *, mean: bool) -> Op | None:
    """sum or mean: over a stack of values; a sum over the spatial axes is channel by channel."""
    source, dims = source_of(node), argument(node, 1, "dim")
    if argument(node, 3, "dtype") is not None:
        return None
    stack = asked(_stacked, source)
    if stack is not None and stack.is_along(dims):
        keep = argument(node, 2, "keepdim", False)
        return None if keep else stack.reduced(mean=mean)
    if mean:
        return None  # over positions: see resampling
    return Opaque(inputs=(source,) if _is_spatial(dims, context.shapes.rank(source)) else ())


def _is_spatial(dims: object, rank: int | None) -> bool:
    """Whether these are axes behind the channels."""
    axes = asked(as_wholes, dims)
    return axes is not None and rank is not None and all(axis % rank >= 2 for axis in axes)


@dataclass(frozen=True)
class _Stack:
    """Values stacked along a new axis, for a reduction alone."""

    values: tuple[fx.Node, ...]
    axis: int

    def is_along(self, dims: object) -> bool:
        """Whether a reduction over these axes takes the stack away."""
        return dims == self.axis or dims in ((self.axis,), [self.axis])

    def reduced(self, *, mean: bool) -> Sum:
        """The sum or mean of the values."""
        weight = 1.0 / len(self.values) if mean else 1.0
        return Sum(tuple((value, weight) for value in self.values))


def _stacked(node: fx.Node) -> _Stack:
    if node.op != "call_function" or name_of(node) != "stack" or len(node.users) != 1:
        raise OtherCallError
    return _Stack(as_values(argument(node, 0, "tensors")), as_whole(argument(node, 1, "dim", 0)))


def _negated(node: fx.Node, context: Context) -> Op | None:
    source = argument(node, 0, "input")
    return Sum(((source, -1.0),)) if isinstance(source, fx.Node) else None


def channelwise(node: fx.Node, context: Context) -> Op | None:
    """What computes each channel from the same channel alone, all channels alike; by the table of operations."""
    info = operation_of(node, context.root)
    source = argument(node, 0, "input")
    if info is None or not isinstance(source, fx.Node) or len(node.all_input_nodes) > 1:
        return None  # clamp(x, low): a bound may differ from channel to channel
    rank = context.shapes.rank(source)
    pools = info.channelwise and info.axes is not None and rank == info.axes + 2  # of fewer axes it pools channels
    resizes = info.kind is OpKind.RESIZING
    return Opaque(inputs=(source,)) if info.elementwise or pools or resizes else None


def _prelu(node: fx.Node, module: Any, context: Context) -> Op | None:
    """One slope for all channels; with several, PReLU tells channels apart."""
    source = argument(node, 0, "input")
    alike = module.num_parameters == 1 and isinstance(source, fx.Node)
    return Opaque(inputs=(source,)) if alike else Opaque()


Rule = Callable[[fx.Node, Context], Op | None]
_add: Rule = lambda node, context: _sum(node, context, 1.0)  # noqa: E731
_sub: Rule = lambda node, context: _sum(node, context, -1.0)  # noqa: E731
_mul: Rule = lambda node, context: _product(node, context, divide=False)  # noqa: E731
_div: Rule = lambda node, context: _product(node, context, divide=True)  # noqa: E731
_total: Rule = lambda node, context: _reduced(node, context, mean=False)  # noqa: E731
_mean: Rule = lambda node, context: _reduced(node, context, mean=True)  # noqa: E731

MODULES: dict[type[nn.Module], Callable[[fx.Node, Any, Context], Op | None]] = {
    nn.PReLU: _prelu,
}
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract), _sub),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply), _mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide), _div),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative), _negated),
    torch.rsub: _reversed_difference,
    torch.lerp: _interpolated,
    **dict.fromkeys((torch.addcmul, torch.addcdiv), _accumulated),
    torch.sum: _total,
    torch.mean: _mean,
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(("add", "add_", "__add__", "__radd__"), _add),
    **dict.fromkeys(("sub", "sub_", "subtract", "__sub__"), _sub),
    **dict.fromkeys(("mul", "mul_", "multiply", "__mul__", "__rmul__"), _mul),
    **dict.fromkeys(("div", "div_", "divide", "true_divide", "__truediv__"), _div),
    **dict.fromkeys(("neg", "negative"), _negated),
    "lerp": _interpolated,
    **dict.fromkeys(("addcmul", "addcdiv"), _accumulated),
    "sum": _total,
    "mean": _mean,
}
