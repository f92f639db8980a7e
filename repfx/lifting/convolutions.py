"""Convolutions and linears, as modules and as functions: the maps with a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from repfx.algebra import Border, constructors, leaf
from repfx.decline import Reason
from repfx.graph import Context, Op, Opaque, argument, tuple_of
from repfx.layers import BorderTerm, Extended
from repfx.lifting.rules import FunctionRule, ModuleRule, fixed

_Lazy = Callable[[], Tensor]
_Sides = tuple[tuple[int, ...], tuple[int, ...]]  # padding before and after, per axis
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


# --- modules ----------------------------------------------------------------------------------------


def _weight_of(module: nn.Module) -> _Lazy:
    """The weight as the next forward would see it: parametrizations and weight_norm hooks included."""

    def read() -> Tensor:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == "weight":
                return leaf(_recomputed(hook, module), module)
        weight = module.weight
        assert isinstance(weight, Tensor)
        return leaf(weight, None if "weight" in module._parameters else module)

    return read


def _recomputed(hook: WeightNorm | SpectralNorm, module: nn.Module) -> Any:
    """The weight that a hook would write before the next forward."""
    with torch.no_grad():
        if isinstance(hook, SpectralNorm):
            return hook.compute_weight(module, do_power_iteration=False)
        return hook.compute_weight(module)


def _bias_of(module: Any) -> _Lazy | None:
    return None if module.bias is None else lambda: leaf(module.bias)


def _refused_module(node: fx.Node, context: Context) -> Opaque | None:
    """A refusal where a hook writes something else than the weight before every call."""
    name = context.recomputed(context.module(node), but="weight")
    return context.declined(node, f"a hook recomputes its {name} at every call") if name else None


def _conv_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    if not _computes_a_convolution(type(module)):
        return context.declined(node, f"{type(module).__name__} overrides the convolution's forward")
    refused = _refused_module(node, context)
    if refused is not None:
        return refused
    extended = isinstance(module, Extended)
    before, after = _module_padding(module)
    map_ = constructors.from_conv(
        _weight_of(module),
        _bias_of(module),
        shape=module.weight.shape,
        groups=module.groups,
        stride=module.stride,
        before=before,
        after=after,
        dilation=module.dilation,
        padding_mode=module.pad_mode if extended and module.pads else module.padding_mode,
        laps=extended and module.laps,
        terms=_border_terms(module) if extended else (),
    )
    return fixed(node, map_)


def _computes_a_convolution(of: type[nn.Module]) -> bool:
    """Whether a type of convolutions has torch's forward, or that of the ones that we emit."""
    base = next((kind for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d) if issubclass(of, kind)), None)
    return base is not None and of.forward in (base.forward, Extended.forward)


def _border_terms(module: Extended) -> list[tuple[Border, Tensor]]:
    """The border terms of a convolution that we emitted, with their taps."""
    terms = [term for term in module.borders if isinstance(term, BorderTerm)]
    return [(Border(tuple(t.weight.shape[1:]), t.before, t.free, t.longer), t.weight) for t in terms]


def _module_padding(module: Any) -> _Sides:
    if isinstance(module, Extended) and module.pads:
        return tuple(before for before, _ in module.pads), tuple(after for _, after in module.pads)
    if module.padding == "valid":
        return _on_both_sides((0,) * len(module.kernel_size))
    if module.padding == "same":
        return _same_padding(module.kernel_size, module.dilation)
    return _on_both_sides(tuple(module.padding))


def _on_both_sides(padding: tuple[int, ...]) -> _Sides:
    return padding, padding


def _same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> _Sides:
    total = [d * (k - 1) for k, d in zip(kernel, dilation)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def _transposed_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    if not any(type(module).forward is kind.forward for kind in _TRANSPOSED):
        return context.declined(node, f"{type(module).__name__} overrides the convolution's forward")
    if argument(node, 1, "output_size") is not None:
        return context.declined(node, "is told its output size, from which its padding follows")
    map_ = constructors.from_transposed(
        _weight_of(module),
        _bias_of(module),
        shape=module.weight.shape,
        groups=module.groups,
        stride=module.stride,
        padding=module.padding,
        output_padding=module.output_padding,
        dilation=module.dilation,
    )
    return fixed(node, map_)


def _linear_module(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.Linear.forward:
        return context.declined(node, f"{type(module).__name__} overrides the linear's forward")
    refused = _refused_module(node, context)
    if refused is not None:
        return refused
    return fixed(node, constructors.from_conv(_weight_of(module), _bias_of(module), shape=module.weight.shape))


# --- functions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weights:
    """The constant weight and bias of a call."""

    weight: _Lazy
    bias: _Lazy | None
    shape: tuple[int, ...]  # of the weight


def _weights_of(node: fx.Node, context: Context) -> _Weights | Opaque:
    """The weight and bias of a functional call, or why they are no constants of a known shape."""
    given, shift = argument(node, 1, "weight"), argument(node, 2, "bias")
    weight = context.tensor(given)
    bias = None if shift is None else context.tensor(shift)
    if weight is None:
        return context.declined(node, "its weight depends on the input")
    if bias is None and shift is not None:
        return context.declined(node, "its bias depends on the input")
    shape = context.constants.shape(given) if isinstance(given, fx.Node) else None
    return _unknown_shape(node, context) if shape is None else _Weights(weight, bias, tuple(shape))


def _unknown_shape(node: fx.Node, context: Context) -> Opaque:
    return context.declined(node, "the shape of its weight is not known", reason=Reason.UNKNOWN_FACT)


def _conv_function(axes: int) -> FunctionRule:
    def rule(node: fx.Node, context: Context) -> Op | None:
        weights = _weights_of(node, context)
        if isinstance(weights, Opaque):
            return weights
        stride = tuple_of(argument(node, 3, "stride", 1), axes)
        dilation = tuple_of(argument(node, 5, "dilation", 1), axes)
        groups = context.number(argument(node, 6, "groups", 1))
        if stride is None or dilation is None or groups is None:
            return context.declined(node, "its stride, dilation or groups depend on the input's size")
        sides = _function_padding(argument(node, 4, "padding", 0), weights.shape[2:], dilation)
        if sides is None:
            return context.declined(node, "its padding depends on the input's size", "pass example_inputs")
        before, after = sides
        map_ = constructors.from_conv(
            weights.weight,
            weights.bias,
            shape=weights.shape,
            groups=groups,
            stride=stride,
            before=before,
            after=after,
            dilation=dilation,
        )
        return fixed(node, map_)

    return rule


def _function_padding(padding: object, kernel: Sequence[int], dilation: Sequence[int]) -> _Sides | None:
    if padding == "same":
        return _same_padding(kernel, dilation)
    numbers = tuple_of(0 if padding == "valid" else padding, len(dilation))
    return None if numbers is None else _on_both_sides(numbers)


def _transposed_function(axes: int) -> FunctionRule:
    def rule(node: fx.Node, context: Context) -> Op | None:
        weights = _weights_of(node, context)
        if isinstance(weights, Opaque):
            return weights
        stride = tuple_of(argument(node, 3, "stride", 1), axes)
        padding = tuple_of(argument(node, 4, "padding", 0), axes)
        more = tuple_of(argument(node, 5, "output_padding", 0), axes)
        groups = context.number(argument(node, 6, "groups", 1))
        dilation = tuple_of(argument(node, 7, "dilation", 1), axes)
        if stride is None or dilation is None or padding is None or more is None or groups is None:
            return context.declined(node, "its stride, padding, dilation or groups depend on the input's size")
        map_ = constructors.from_transposed(
            weights.weight,
            weights.bias,
            shape=weights.shape,
            groups=groups,
            stride=stride,
            padding=padding,
            output_padding=more,
            dilation=dilation,
        )
        return fixed(node, map_)

    return rule


def _linear_function(node: fx.Node, context: Context) -> Op | None:
    weights = _weights_of(node, context)
    if isinstance(weights, Opaque):
        return weights
    if len(weights.shape) != 2:
        return _unknown_shape(node, context)
    return fixed(node, constructors.from_conv(weights.weight, weights.bias, shape=weights.shape))


MODULES: dict[type[nn.Module], ModuleRule] = {
    nn.Conv1d: _conv_module,
    nn.Conv2d: _conv_module,
    nn.Conv3d: _conv_module,
    nn.Linear: _linear_module,
    **dict.fromkeys(_TRANSPOSED, _transposed_module),
}
FUNCTIONS: dict[Any, FunctionRule] = {
    F.conv1d: _conv_function(1),
    F.conv2d: _conv_function(2),
    F.conv3d: _conv_function(3),
    F.linear: _linear_function,
    F.conv_transpose1d: _transposed_function(1),
    F.conv_transpose2d: _transposed_function(2),
    F.conv_transpose3d: _transposed_function(3),
}
