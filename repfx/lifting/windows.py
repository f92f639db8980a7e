"""Maps with a window and no weight: average pooling, padding, PixelUnshuffle.

An average is a convolution where its divisor is the same everywhere.  One that divides by the pixels inside is a
`Resampling` (its rows sum to one); where they do not, it is opaque.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from repfx.algebra import AffineConv, constructors
from repfx.graph import Affine, Alias, Context, Op, Opaque, Resampling, Resolution, argument, tuple_of
from repfx.lifting.rules import FunctionRule, ModuleRule, as_whole, known, per_channel, source_of

_POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


# --- average pooling --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pooling:
    """An average pooling as it is called; the first three with one entry per axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    clips: object  # ceil_mode
    counts: object  # count_include_pad
    divisor: object  # divisor_override

    @property
    def copies(self) -> bool:
        """Whether it averages over one pixel each, all of them."""
        return {*self.kernel, *self.stride} == {1} and not any(self.padding) and self.divisor in (None, 1)

    @property
    def unlike_a_convolution(self) -> str:
        """What it does at the border that no convolution does, or ""."""
        if self.clips:
            return "averages over clipped windows at the border (ceil_mode)"
        if any(self.padding) and not self.counts:
            return "divides by the number of pixels inside (count_include_pad=False)"
        return ""

    @property
    def rows_sum_to_one(self) -> bool:
        """Whether what it divides by is the number of pixels that it sees."""
        return self.divisor is None and not (self.counts and any(self.padding))


def _pooling(
    axes: int, kernel: object, stride: object, padding: object, *, clips: object, counts: object, divisor: object
) -> _Pooling | None:
    """The pooling with these arguments; None where a size is no number."""
    sizes, pads = tuple_of(kernel, axes), tuple_of(padding, axes)
    steps = sizes if stride in (None, []) else tuple_of(stride, axes)
    if sizes is None or steps is None or pads is None:
        return None
    return _Pooling(sizes, steps, pads, clips, counts, divisor)


def _pooled(node: fx.Node, pooling: _Pooling | None, context: Context) -> Op | None:
    source = source_of(node)
    if pooling is None:
        return Opaque(inputs=(source,))
    if pooling.copies:
        return Alias(source)
    axes = len(pooling.kernel)
    if pooling.unlike_a_convolution:
        declined = context.declined(node, pooling.unlike_a_convolution).decline
        if not pooling.rows_sum_to_one:
            return Opaque(declined, (source,))
        shrinks = all(2 * p < k for p, k in zip(pooling.padding, pooling.kernel))  # else a map of one pixel may grow
        resolution = Resolution.LOWER if shrinks else Resolution.UNKNOWN
        return Resampling(source, lambda n: n if n == axes else None, resolution, first=True, decline=declined)
    divisor = None if pooling.divisor is None else as_whole(pooling.divisor)

    def averaging(_: int, channels: int) -> AffineConv:
        return constructors.pool_average(channels, pooling.kernel, pooling.stride, pooling.padding, divisor)

    return Affine(source, axes, per_channel(averaging))


def _pool_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    pooling = _pooling(
        next(axes for axes, kind in enumerate(_POOLINGS, start=1) if isinstance(module, kind)),
        module.kernel_size,
        module.stride,
        module.padding,
        clips=module.ceil_mode,
        counts=module.count_include_pad,
        divisor=getattr(module, "divisor_override", None),
    )
    return _pooled(node, pooling, context)


def _pool_function(axes: int) -> FunctionRule:
    def rule(node: fx.Node, context: Context) -> Op | None:
        pooling = _pooling(
            axes,
            argument(node, 1, "kernel_size"),
            argument(node, 2, "stride"),
            argument(node, 3, "padding", 0),
            clips=argument(node, 4, "ceil_mode", False),
            counts=argument(node, 5, "count_include_pad", True),
            divisor=argument(node, 6, "divisor_override"),
        )
        return _pooled(node, pooling, context)

    return rule


# --- padding ----------------------------------------------------------------------------------------


def _padded(node: fx.Node, context: Context, pads: object, mode: str, value: object) -> Op | None:
    source = source_of(node)
    numbers = _whole_numbers(pads)
    if numbers is None:
        return context.declined(node, "its padding depends on the input's size")
    if not any(numbers):
        return Alias(source)
    numbers = known(_over_all_axes(numbers, context.shapes.rank(source)))
    before = tuple(reversed(numbers[0::2]))
    after = tuple(reversed(numbers[1::2]))
    axes = len(before)
    if mode != "constant":
        if min(numbers) < 0:
            return context.declined(node, "pads and crops, the crop first; that is no extension of its input")
        return Affine(source, axes, per_channel(lambda _, channels: constructors.pad_by(channels, before, after, mode)))
    if not isinstance(value, int | float | None):
        return context.declined(node, "its pad value depends on the input")
    constant = float(value or 0)
    return Affine(
        source, axes, per_channel(lambda _, channels: constructors.pad_constant(channels, before, after, constant))
    )


def _whole_numbers(pads: object) -> list[int] | None:
    if isinstance(pads, tuple | list) and all(isinstance(p, int) for p in pads):
        return [int(p) for p in pads]
    return None


def _over_all_axes(numbers: list[int], rank: int | None) -> list[int] | None:
    """Padding of every spatial axis, the last axis first; None where it pads channels or the batch."""
    missing = 0 if rank is None else rank - 2 - len(numbers) // 2
    return None if missing < 0 else numbers + [0, 0] * missing


def _pad_function(node: fx.Node, context: Context) -> Op | None:
    return _padded(
        node, context, argument(node, 1, "pad"), argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    )


def _pad_module(mode: str) -> ModuleRule:
    def rule(node: fx.Node, module: Any, context: Context) -> Op | None:
        return _padded(node, context, tuple(module.padding), mode, getattr(module, "value", 0))

    return rule


# --- PixelUnshuffle ---------------------------------------------------------------------------------


def _unshuffle(node: fx.Node, module: Any, context: Context) -> Op | None:
    return _unshuffled(node, module.downscale_factor)


def _unshuffle_function(node: fx.Node, context: Context) -> Op | None:
    return _unshuffled(node, argument(node, 1, "downscale_factor"))


def _unshuffled(node: fx.Node, given: object) -> Op:
    source, factor = source_of(node), as_whole(given)
    return Affine(source, 2, per_channel(lambda _, channels: constructors.pixel_unshuffle(channels, factor)))


MODULES: dict[type[nn.Module], ModuleRule] = {
    **dict.fromkeys(_POOLINGS, _pool_module),
    nn.modules.padding._ConstantPadNd: _pad_module("constant"),
    nn.modules.padding._ReflectionPadNd: _pad_module("reflect"),
    nn.modules.padding._ReplicationPadNd: _pad_module("replicate"),
    nn.modules.padding._CircularPadNd: _pad_module("circular"),
    nn.PixelUnshuffle: _unshuffle,
}
FUNCTIONS: dict[Any, FunctionRule] = {
    F.avg_pool1d: _pool_function(1),
    F.avg_pool2d: _pool_function(2),
    F.avg_pool3d: _pool_function(3),
    F.pad: _pad_function,
    F.pixel_unshuffle: _unshuffle_function,
}
