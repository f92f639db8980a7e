"""Whether a number that a reshape is given is the size of a value, for every input.

It is if it is read from the value's own shape, or if it equals what the layers in between make of that size.  Sizes are
quasi-linear in those of the input, with a period of a few strides, so a stretch of input sizes is tried.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

from repfx.graph import Context, arithmetic, size_read

_PROBED = range(1, 33)  # input sizes tried
_ADDITIONS = (operator.add, torch.add, operator.iadd)


def known_size(size: object, context: Context) -> int | None:
    """A size that is a number, or follows from known channel counts by integer arithmetic."""
    return _evaluated(size, context.shapes.size)


def _evaluated(size: object, size_of: Callable[[fx.Node, int], int | None]) -> int | None:
    """Value of a size expression, where `size_of` tells the size of a value along an axis."""
    if isinstance(size, int):
        return size
    read = size_read(size)
    if read is not None:
        return size_of(*read)
    if not isinstance(size, fx.Node) or size.op != "call_function" or len(size.args) != 2:
        return None
    a, b = (_evaluated(operand, size_of) for operand in size.args)
    return None if a is None or b is None else arithmetic(size.target, a, b)


def is_size_of(size: object, value: fx.Node, axis: int, context: Context) -> bool:
    """Whether `size` is value.shape[axis], read from it or from a value of the same size."""
    if isinstance(size, int):
        return size == context.shapes.size(value, axis) and size > 0
    base = size_read(size)
    if base is None or base[1] != axis:
        return False
    return axis == 0 or base[0] is value or _is_as_large(base[0], value, context)


def are_sizes_of(sizes: Sequence[object], value: fx.Node, first: int, context: Context) -> bool:
    """Whether these are the sizes of a value from axis `first` on."""
    return all(is_size_of(size, value, axis, context) for axis, size in enumerate(sizes, start=first))


def _is_as_large(a: fx.Node, b: fx.Node, context: Context) -> bool:
    return all(_spatial(b, a, h, context) == h for h in _PROBED)


def force_equality(spatial: Sequence[object], part: fx.Node, context: Context) -> bool:
    """Whether the sizes that a reshape wants, whenever it is valid, are the part's own.

    If they are nowhere larger (or nowhere smaller) than the part's, equal products force equal sizes.
    """
    bases = set[fx.Node]().union(*(_bases(size) for size in spatial))
    if len(bases) != 1:
        return False
    (base,) = bases
    signs = {_compared(size, axis, part, base, h, context) for axis, size in enumerate(spatial) for h in _PROBED}
    return None not in signs and not {1, -1} <= signs


def _compared(size: object, axis: int, part: fx.Node, base: fx.Node, h: int, context: Context) -> int | None:
    """Whether a wanted size is larger (1) than the part's, smaller (-1) or equal, when that of `base` is h."""
    wanted = _evaluated(size, lambda *read: h if read == (base, axis + 2) else None)
    own = _spatial(part, base, h, context, axis)
    if wanted is None or own is None:
        return None
    return (wanted > own) - (wanted < own)


def _bases(size: object) -> set[fx.Node]:
    """The values that a size is computed from the sizes of."""
    read = size_read(size)
    if read is not None:
        return {read[0]}
    if not isinstance(size, fx.Node) or size.op != "call_function":
        return set()
    return set[fx.Node]().union(*(_bases(operand) for operand in size.args))


def _spatial(node: fx.Node, base: fx.Node, h: int, context: Context, axis: int = 0) -> int | None:
    """Spatial size of `node` along an axis when that of `base` is h: the layers in between, one by one."""
    if node is base:
        return h
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_module":
        inner = _spatial(source, base, h, context, axis)
        return None if inner is None else _after_module(context.module(node), inner, axis)
    if node.op == "call_function" and node.target in _ADDITIONS:
        return _spatial(source, base, h, context, axis)
    return None


def _after_module(module: nn.Module, size: int, axis: int) -> int | None:
    """The size along an axis that a module makes of one."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return size
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or isinstance(module.padding, str):
        return None
    k, s, p, d = (t[axis] for t in (module.kernel_size, module.stride, module.padding, module.dilation))
    return (size + 2 * p - d * (k - 1) - 1) // s + 1
