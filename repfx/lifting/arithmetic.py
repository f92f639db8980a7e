"""Sums, differences, scalings, means, in every spelling; and the operations that act channel by channel.

`a + b`, `torch.add`, `a += b`, `sum([a, b])` (which begins with 0 +), `torch.stack(xs).sum(0)`,
`(a + b) / 2`, `0.5 * a + 0.5 * b`, `torch.mean(torch.stack(xs), 0)`, `torch.lerp(a, b, 0.5)` are one thing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.algebra import AffineConv, constructors
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Context, Op, Opaque, OpKind, Sum, argument, operation_of


def _sum(node: fx.Node, context: Context, sign: float) -> Op | None:
    a, b = argument(node, 0, "input"), argument(node, 1, "other")
    alpha = argument(node, 2, "alpha", 1)
    if not isinstance(alpha, int | float) or (len(node.args) > 2 and not isinstance(node.args[2], int | float)):
        return None
    factor = sign * float(alpha)
    values = [v for v in (a, b) if isinstance(v, fx.Node) and not context.constants.is_constant(v)]
    if len(values) == 2:
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        if not _same_shape(a, b, context):
            return Opaque(inputs=_channelwise_operands(a, b, context))
        return Sum(((a, 1.0), (b, factor)))
    if len(values) != 1:
        return None
    value = values[0]
    own, constant, constant_sign = (1.0, b, factor) if value is a else (factor, a, 1.0)
    if isinstance(constant, int | float):
        return Sum(((value, own),), shift=constant_sign * float(constant))
    return _by_constant(node, value, context, None, constant, own, constant_sign)


def _product(node: fx.Node, context: Context, *, divide: bool) -> Op | None:
    a, b = argument(node, 0, "input"), argument(node, 1, "other")
    if argument(node, 2, "rounding_mode") is not None:
        return None
    values = [v for v in (a, b) if isinstance(v, fx.Node) and not context.constants.is_constant(v)]
    if len(values) == 2:
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        return Opaque(inputs=_channelwise_operands(a, b, context))
    if len(values) != 1 or (divide and values[0] is b):
        return None
    value, constant = values[0], b if values[0] is a else a
    if isinstance(constant, int | float):
        if divide and constant == 0:
            return None
        return Sum(((value, 1.0 / constant if divide else float(constant)),))
    return _by_constant(node, value, context, constant, None, 1.0, 1.0, divide=divide)


def _by_constant(
    node: fx.Node,
    value: fx.Node,
    context: Context,
    factor: object,
    shift: object,
    own: float,
    sign: float,
    *,
    divide: bool = False,
) -> Op | None:
    """value * factor, or own * value + sign * shift, with a constant tensor."""
    constant = factor if factor is not None else shift
    if not isinstance(constant, fx.Node):
        return None  # sizes put together, not values
    shape = context.constants.shape(constant)
    lazy = context.tensor(constant)
    if shape is None or lazy is None:
        return None
    rank = context.shapes.rank(value)
    channels = max(shape, default=1)
    sizes = context.shapes.of(value) or ()
    spread = any(own == 1 != wanted for own, wanted in zip(reversed(sizes), reversed(shape)))
    if rank is not None and (len(shape) > rank or spread):
        return context.declined(node, "spreads a value over a constant of more axes or larger size")
    if sum(s != 1 for s in shape) > 1:
        return context.declined(node, "its constant varies over the image; that is no single value per channel")
    if rank is None and len(shape) > 1 and (channels == 1 or shape[-1] != 1):
        fact = f"its constant has {len(shape)} axes; whether its value has as many is not known"
        return context.declined(node, fact, "pass example_inputs", Reason.UNKNOWN_FACT)
    if channels == 1:
        return _uniform(value, rank, lazy, factor is not None, own, sign, divide)
    place = next(i for i, s in enumerate(shape) if s != 1) - len(shape)  # counted from the end
    if rank is not None and rank + place == 1 and rank >= 2:
        axes = rank - 2
    elif place == -1:
        axes = 0
    elif rank is None and len(shape) >= 2 and place < -1:
        axes = -place - 1
    else:
        return context.declined(node, "its constant varies over the image; that is no single value per channel")

    def scale() -> Tensor:
        number = lazy().reshape(-1)
        return 1.0 / number if divide else number

    def moved() -> Tensor:
        return lazy().reshape(-1) * sign

    own_scale = None if own == 1.0 else (lambda: torch.tensor(own, dtype=torch.float64))
    map_ = constructors.pointwise(
        channels, axes, scale if factor is not None else own_scale, moved if factor is None else None
    )
    return Affine(value, axes, lambda _, __: map_)


def _uniform(
    value: fx.Node, rank: int | None, lazy: Callable[[], Tensor], scales: bool, own: float, sign: float, divide: bool
) -> Op:
    """A constant of one element: the same over any number of axes."""

    def scale() -> Tensor:
        number = lazy().reshape(())
        return 1.0 / number if divide else number

    def build(axes: int, channels: int | None) -> AffineConv | Decline:
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        own_scale = None if own == 1.0 else (lambda: torch.tensor(own, dtype=torch.float64))
        if scales:
            return constructors.pointwise(channels, axes, scale, None)
        return constructors.pointwise(channels, axes, own_scale, lambda: lazy().reshape(()) * sign)

    return Affine(value, None, build)


def _same_shape(a: fx.Node, b: fx.Node, context: Context) -> bool:
    """Whether an elementwise operation on a and b broadcasts nothing, as far as channels and rank tell."""
    left, right = context.shapes.of(a), context.shapes.of(b)
    if left is None or right is None:
        return True  # checked again by the algebra: channel counts and output sizes must agree
    if len(left) != len(right):
        return False
    return all(x == y or x is None or y is None for x, y in zip(left, right)) and not any(
        (x == 1) != (y == 1) for x, y in zip(left[1:], right[1:])
    )


def _channelwise_operands(a: fx.Node, b: fx.Node, context: Context) -> tuple[fx.Node, ...]:
    left, right = context.shapes.size(a, 1), context.shapes.size(b, 1)
    ranks = context.shapes.rank(a), context.shapes.rank(b)
    if left is None or right is None or ranks[0] != ranks[1]:
        return ()
    if left == right:
        return (a, b)
    return (a,) if right == 1 else (b,) if left == 1 else ()


def _reduced(node: fx.Node, context: Context, *, mean: bool) -> Op | None:
    """sum or mean: over a stack of values; a sum over the spatial axes is channel by channel."""
    source, dims = argument(node, 0, "input"), argument(node, 1, "dim")
    keep = argument(node, 2, "keepdim", False)
    if not isinstance(source, fx.Node) or argument(node, 3, "dtype") is not None:
        return None
    parts = _stacked(source)
    if parts is not None:
        values, at = parts
        if dims == at or dims == (at,) or dims == [at]:
            if not keep:
                weight = 1.0 / len(values) if mean else 1.0
                return Sum(tuple((v, weight) for v in values))
            return None
    if mean:
        return None  # over positions: see resampling
    rank = context.shapes.rank(source)
    wanted = (dims,) if isinstance(dims, int) else dims
    if rank is None or not isinstance(wanted, tuple | list) or not all(isinstance(d, int) for d in wanted):
        return Opaque()
    if all(d % rank >= 2 for d in wanted):
        return Opaque(inputs=(source,))
    return Opaque()


def _stacked(node: fx.Node) -> tuple[tuple[fx.Node, ...], int] | None:
    if node.op != "call_function" or getattr(node.target, "__name__", "") != "stack" or len(node.users) != 1:
        return None
    parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
    if not isinstance(parts, tuple | list) or not isinstance(dim, int):
        return None
    if not all(isinstance(p, fx.Node) for p in parts):
        return None
    return tuple(p for p in parts if isinstance(p, fx.Node)), dim


def _reversed_difference(node: fx.Node, context: Context) -> Op | None:
    """torch.rsub(a, b, alpha) = b - alpha a."""
    a, b, alpha = argument(node, 0, "input"), argument(node, 1, "other"), argument(node, 2, "alpha", 1)
    if not isinstance(a, fx.Node) or not isinstance(alpha, int | float):
        return None
    if isinstance(b, fx.Node) and not context.constants.is_constant(b):
        if context.constants.is_constant(a) or not _same_shape(a, b, context):
            return Opaque()
        return Sum(((b, 1.0), (a, -float(alpha))))
    if isinstance(b, int | float):
        return Sum(((a, -float(alpha)),), shift=float(b))
    return _by_constant(node, a, context, None, b, -float(alpha), 1.0)


def _interpolated(node: fx.Node, context: Context) -> Op | None:
    """torch.lerp(a, b, w) = (1 - w) a + w b, for a number w; a tensor is written out by `repfx.capture.spelling`."""
    a, b, w = argument(node, 0, "input"), argument(node, 1, "end"), argument(node, 2, "weight")
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    values = [v for v in (a, b) if not context.constants.is_constant(v)]
    if not isinstance(w, int | float):
        return context.declined(node, "its weight is no number, and what it mixes cannot take it up")
    if len(values) != 2 or not _same_shape(a, b, context):
        return context.declined(node, "mixes a value with something of another shape")
    return Sum(((a, 1.0 - float(w)), (b, float(w))))


def _accumulated(node: fx.Node, context: Context) -> Op | None:
    """torch.addcmul and addcdiv: where they fold, `repfx.capture.spelling` has written them out."""
    return context.declined(node, "multiplies two values, or one that cannot take the factor up")


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
