"""Convolutions, linears, average pooling, padding, PixelUnshuffle: the maps with a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from repfx.algebra import AffineConv, Border, constructors, leaf
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Alias, Context, Op, Opaque, Resampling, Resolution, argument, tuple_of
from repfx.layers import BorderTerm, Extended

Rule = Callable[[fx.Node, Any, Context], Op | None]


def fixed(source: object, map_: AffineConv) -> Op | None:
    """An operation whose map is already known."""
    if not isinstance(source, fx.Node):
        return None
    return Affine(source, map_.axes, lambda axes, channels: map_)


def _weight_of(module: nn.Module) -> Callable[[], Tensor]:
    """The weight as the next forward would see it: parametrizations and weight_norm hooks included."""

    def read() -> Tensor:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == "weight":
                with torch.no_grad():
                    options = {"do_power_iteration": False} if isinstance(hook, SpectralNorm) else {}
                    return leaf(hook.compute_weight(module, **options), module)
        weight = module.weight
        assert isinstance(weight, Tensor)
        return leaf(weight, None if "weight" in module._parameters else module)

    return read


def _conv_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    if not _computes_a_convolution(type(module)):
        return context.declined(node, f"{type(module).__name__} overrides the convolution's forward")
    if context.recomputed(module, but="weight"):
        return context.declined(node, f"a hook recomputes its {context.recomputed(module, but='weight')} at every call")
    axes = len(module.kernel_size)
    before, after = _module_padding(module, axes)
    extended = isinstance(module, Extended)
    pads = module.pads if extended else ()
    if pads:
        before, after = tuple(b for b, _ in pads), tuple(a for _, a in pads)
    map_ = constructors.from_conv(
        _weight_of(module),
        None if module.bias is None else lambda: leaf(module.bias),
        shape=module.weight.shape,
        groups=module.groups,
        stride=module.stride,
        before=before,
        after=after,
        dilation=module.dilation,
        padding_mode=module.pad_mode if extended and pads else module.padding_mode,
        laps=extended and module.laps,
        terms=_border_terms(module) if extended else (),
    )
    return fixed(argument(node, 0, "input"), map_)


def _computes_a_convolution(of: type[nn.Module]) -> bool:
    """Whether a type of convolutions has torch's forward, or that of the ones that we emit."""
    base = next((kind for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d) if issubclass(of, kind)), None)
    return base is not None and of.forward in (base.forward, Extended.forward)


def _border_terms(module: Extended) -> list[tuple[Border, Tensor]]:
    """The border terms of a convolution that we emitted, with their taps."""
    terms = [term for term in module.borders if isinstance(term, BorderTerm)]
    return [(Border(tuple(t.weight.shape[1:]), t.before, t.free, t.longer), t.weight) for t in terms]


def _transposed_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    if not any(type(module).forward is kind.forward for kind in kinds):
        return context.declined(node, f"{type(module).__name__} overrides the convolution's forward")
    if argument(node, 1, "output_size") is not None:
        return context.declined(node, "is told its output size, from which its padding follows")
    map_ = constructors.from_transposed(
        _weight_of(module),
        None if module.bias is None else lambda: leaf(module.bias),
        shape=module.weight.shape,
        groups=module.groups,
        stride=module.stride,
        padding=module.padding,
        output_padding=module.output_padding,
        dilation=module.dilation,
    )
    return fixed(argument(node, 0, "input"), map_)


def _transposed_function(axes: int) -> Callable[[fx.Node, Context], Op | None]:
    def rule(node: fx.Node, context: Context) -> Op | None:
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        read, shape = context.tensor(weight), context.constants.shape(weight) if isinstance(weight, fx.Node) else None
        if read is None:
            return context.declined(node, "its weight depends on the input")
        if bias is not None and context.tensor(bias) is None:
            return context.declined(node, "its bias depends on the input")
        if shape is None:
            return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)
        stride, dilation = (
            tuple_of(argument(node, 3, "stride", 1), axes),
            tuple_of(argument(node, 7, "dilation", 1), axes),
        )
        padding, more = (tuple_of(argument(node, *place), axes) for place in _TRANSPOSED_PADDING)
        groups = context.number(argument(node, 6, "groups", 1))
        if stride is None or dilation is None or padding is None or more is None or groups is None:
            return context.declined(node, "its stride, padding, dilation or groups depend on the input's size")
        map_ = constructors.from_transposed(
            read,
            None if bias is None else context.tensor(bias),
            shape=shape,
            groups=groups,
            stride=stride,
            padding=padding,
            output_padding=more,
            dilation=dilation,
        )
        return fixed(argument(node, 0, "input"), map_)

    return rule


_TRANSPOSED_PADDING = ((4, "padding", 0), (5, "output_padding", 0))


def _module_padding(module: Any, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if module.padding == "valid":
        return (0,) * axes, (0,) * axes
    if module.padding == "same":
        return _same_padding(module.kernel_size, module.dilation)
    return tuple(module.padding), tuple(module.padding)


def _same_padding(kernel: Any, dilation: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    total = [d * (k - 1) for k, d in zip(kernel, dilation)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def _linear_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.Linear.forward:
        return context.declined(node, f"{type(module).__name__} overrides the linear's forward")
    if context.recomputed(module, but="weight"):
        return context.declined(node, f"a hook recomputes its {context.recomputed(module, but='weight')} at every call")
    map_ = constructors.from_conv(
        _weight_of(module), None if module.bias is None else lambda: leaf(module.bias), shape=module.weight.shape
    )
    return fixed(argument(node, 0, "input"), map_)


def _conv_function(axes: int) -> Callable[[fx.Node, Context], Op | None]:
    def rule(node: fx.Node, context: Context) -> Op | None:
        weight = argument(node, 1, "weight")
        bias = argument(node, 2, "bias")
        shape = context.constants.shape(weight) if isinstance(weight, fx.Node) else None
        read = context.tensor(weight)
        if read is None:
            return context.declined(node, "its weight depends on the input")
        if bias is not None and context.tensor(bias) is None:
            return context.declined(node, "its bias depends on the input")
        if shape is None:
            return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)
        stride = tuple_of(argument(node, 3, "stride", 1), axes)
        dilation = tuple_of(argument(node, 5, "dilation", 1), axes)
        groups = context.number(argument(node, 6, "groups", 1))
        padding = argument(node, 4, "padding", 0)
        if stride is None or dilation is None or groups is None:
            return context.declined(node, "its stride, dilation or groups depend on the input's size")
        if padding == "same":
            before, after = _same_padding(shape[2:], dilation)
        else:
            known = tuple_of(0 if padding == "valid" else padding, axes)
            if known is None:
                return context.declined(node, "its padding depends on the input's size", "pass example_inputs")
            before = after = known
        map_ = constructors.from_conv(
            read,
            None if bias is None else context.tensor(bias),
            shape=shape,
            groups=groups,
            stride=stride,
            before=before,
            after=after,
            dilation=dilation,
        )
        return fixed(argument(node, 0, "input"), map_)

    return rule


def _linear_function(node: fx.Node, context: Context) -> Op | None:
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    read = context.tensor(weight)
    shape = context.constants.shape(weight) if isinstance(weight, fx.Node) else None
    if read is None:
        return context.declined(node, "its weight depends on the input")
    if bias is not None and context.tensor(bias) is None:
        return context.declined(node, "its bias depends on the input")
    if shape is None or len(shape) != 2:
        return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)
    return fixed(
        argument(node, 0, "input"),
        constructors.from_conv(read, None if bias is None else context.tensor(bias), shape=shape),
    )


def _pool(
    node: fx.Node, context: Context, axes: int, kernel: object, stride: object, padding: object, ceil: object,
    count: object, divisor: object,
) -> Op | None:  # fmt: skip
    source = argument(node, 0, "input")
    sizes = tuple_of(kernel, axes)
    steps = sizes if stride is None or stride == [] else tuple_of(stride, axes)
    pads = tuple_of(padding, axes)
    if not isinstance(source, fx.Node) or sizes is None or steps is None or pads is None:
        return Opaque(inputs=(source,) if isinstance(source, fx.Node) else ())
    one_pixel = all(k == 1 for k in sizes) and all(s == 1 for s in steps) and not any(pads)
    if one_pixel and divisor in (None, 1):
        return Alias(source)
    fact = ""
    if not count and any(pads):
        fact = "divides by the number of pixels inside (count_include_pad=False)"
    if ceil:
        fact = "averages over clipped windows at the border (ceil_mode)"
    if fact:
        declined = context.declined(node, fact).decline
        if divisor is not None or (count and any(pads)):
            return Opaque(declined, (source,))  # some rows do not sum to one
        shrinks = all(2 * p < k for p, k in zip(pads, sizes))  # else a map of one pixel may grow
        resolution = Resolution.LOWER if shrinks else Resolution.UNKNOWN
        return Resampling(source, lambda n: n if n == axes else None, resolution, first=True, decline=declined)

    def build(_: int, channels: int | None) -> AffineConv | Decline:
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        return constructors.pool_average(channels, sizes, steps, pads, divisor if isinstance(divisor, int) else None)

    return Affine(source, axes, build)


def _pool_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    axes = next(n for n, kind in enumerate((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), 1) if isinstance(module, kind))
    return _pool(
        node, context, axes, module.kernel_size, module.stride, module.padding, module.ceil_mode,
        module.count_include_pad, getattr(module, "divisor_override", None),
    )  # fmt: skip


def _pool_function(axes: int) -> Callable[[fx.Node, Context], Op | None]:
    def rule(node: fx.Node, context: Context) -> Op | None:
        return _pool(
            node, context, axes, argument(node, 1, "kernel_size"), argument(node, 2, "stride"),
            argument(node, 3, "padding", 0), argument(node, 4, "ceil_mode", False),
            argument(node, 5, "count_include_pad", True), argument(node, 6, "divisor_override"),
        )  # fmt: skip

    return rule


def _padded(node: fx.Node, context: Context, pads: object, mode: str, value: object) -> Op | None:
    source = argument(node, 0, "input")
    if not isinstance(source, fx.Node):
        return None
    if not isinstance(pads, tuple | list) or not all(isinstance(p, int) for p in pads):
        return context.declined(node, "its padding depends on the input's size")
    if not any(pads):
        return Alias(source)
    rank = context.shapes.rank(source)
    numbers = [int(p) for p in pads]
    axes = len(numbers) // 2
    if rank is not None and rank - 2 != axes:
        if rank - 2 < axes:
            return None
        numbers += [0, 0] * (rank - 2 - axes)
        axes = rank - 2
    before = tuple(reversed(numbers[0::2]))
    after = tuple(reversed(numbers[1::2]))
    if mode != "constant" and min(numbers) < 0:
        return context.declined(node, "pads and crops, the crop first; that is no extension of its input")
    if mode != "constant":
        return _padded_by(source, axes, before, after, mode)
    if not isinstance(value, int | float | None):
        return context.declined(node, "its pad value depends on the input")
    constant = float(value or 0)

    def build(_: int, channels: int | None) -> AffineConv | Decline:
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        return constructors.pad_constant(channels, before, after, constant)

    return Affine(source, axes, build)


def _padded_by(source: fx.Node, axes: int, before: tuple[int, ...], after: tuple[int, ...], mode: str) -> Op:
    def build(_: int, channels: int | None) -> AffineConv | Decline:
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        return constructors.pad_by(channels, before, after, mode)

    return Affine(source, axes, build)


def _pad_function(node: fx.Node, context: Context) -> Op | None:
    return _padded(
        node, context, argument(node, 1, "pad"), argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    )


def _pad_module(mode: str) -> Rule:
    def rule(node: fx.Node, module: Any, context: Context) -> Op | None:
        return _padded(node, context, tuple(module.padding), mode, getattr(module, "value", 0))

    return rule


def _unshuffle(node: fx.Node, module: Any, context: Context) -> Op | None:
    return _unshuffled(argument(node, 0, "input"), module.downscale_factor)


def _unshuffle_function(node: fx.Node, context: Context) -> Op | None:
    return _unshuffled(argument(node, 0, "input"), argument(node, 1, "downscale_factor"))


def _unshuffled(source: object, factor: object) -> Op | None:
    if not isinstance(source, fx.Node) or not isinstance(factor, int):
        return None

    def build(_: int, channels: int | None) -> AffineConv | Decline:
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        return constructors.pixel_unshuffle(channels, factor)

    return Affine(source, 2, build)


MODULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: _conv_module,
    nn.Conv2d: _conv_module,
    nn.Conv3d: _conv_module,
    nn.Linear: _linear_module,
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_module),
    nn.AvgPool1d: _pool_module,
    nn.AvgPool2d: _pool_module,
    nn.AvgPool3d: _pool_module,
    nn.modules.padding._ConstantPadNd: _pad_module("constant"),
    nn.modules.padding._ReflectionPadNd: _pad_module("reflect"),
    nn.modules.padding._ReplicationPadNd: _pad_module("replicate"),
    nn.modules.padding._CircularPadNd: _pad_module("circular"),
    nn.PixelUnshuffle: _unshuffle,
}
FUNCTIONS: dict[Any, Callable[[fx.Node, Context], Op | None]] = {
    F.conv1d: _conv_function(1),
    F.conv2d: _conv_function(2),
    F.conv3d: _conv_function(3),
    F.linear: _linear_function,
    F.conv_transpose1d: _transposed_function(1),
    F.conv_transpose2d: _transposed_function(2),
    F.conv_transpose3d: _transposed_function(3),
    F.avg_pool1d: _pool_function(1),
    F.avg_pool2d: _pool_function(2),
    F.avg_pool3d: _pool_function(3),
    F.pad: _pad_function,
    F.pixel_unshuffle: _unshuffle_function,
}
