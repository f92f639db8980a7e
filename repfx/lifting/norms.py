"""Batch norms in every spelling: y = (x - mean) gamma / sqrt(var + eps) + beta, with running statistics.

A batch norm that uses the batch's own statistics is not affine and stays; an instance norm that keeps
running statistics is a batch norm in eval mode.  Layer, group and RMS norms are `Normalised`: what
normalises stays, the scale and shift per channel after it is affine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repfx.algebra import AffineConv, constructors, leaf
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Context, Normalised, Op, Opaque, argument
from repfx.layers import ScaleShift
from repfx.lifting.rules import FunctionRule, ModuleRule, OtherCallError, as_items, as_whole, known, source_of

_Lazy = Callable[[], Tensor]
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_IMAGES = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}  # norms that tell over how many axes
_INSTANCE = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def _axes_told(module: nn.Module, told: dict[Any, int]) -> int | None:
    """Over how many spatial axes a norm acts, by its type."""
    return next((axes for kind, axes in told.items() if isinstance(module, kind)), None)


@dataclass(frozen=True)
class _Affine:
    """The scale and shift per channel of a norm, as far as there are any."""

    scale: _Lazy | None
    shift: _Lazy | None

    @staticmethod
    def of(module: nn.Module, scale: str = "weight", shift: str = "bias") -> _Affine:
        """Those of a module, under the names that they have there."""
        return _Affine(_maybe(module, scale), _maybe(module, shift))

    @property
    def vectors(self) -> int:
        """How many parameters it has for each channel."""
        return sum(part is not None for part in (self.scale, self.shift))


def _maybe(module: nn.Module, name: str) -> _Lazy | None:
    if getattr(module, name) is None:
        return None
    return lambda: leaf(getattr(module, name))


# --- normalisations by running statistics -----------------------------------------------------------------


def _by_statistics(
    node: fx.Node,
    axes: int | None,
    channels: int,
    statistics: tuple[_Lazy, _Lazy],
    affine: _Affine,
    eps: float,
    context: Context,
) -> Op:
    """A norm of this (mean, variance); `axes` where its type tells them."""
    source = source_of(node)
    rank = context.shapes.rank(source)
    if axes is None and rank is not None:
        axes = max(rank - 2, 0)

    def build(wanted: int, _: int | None) -> AffineConv | Decline:
        if axes is None and wanted == 0:
            fact = "normalises axis 1 of a value whose rank is not known"
            return Decline(Reason.UNKNOWN_FACT, fact, remedy="pass example_inputs")
        over = wanted if axes is None else axes
        return constructors.normalising(channels, over, statistics, (affine.scale, affine.shift), eps)

    return Affine(source, axes, build)


def _of_module(node: fx.Node, module: Any, axes: int | None, context: Context) -> Op:
    statistics = (lambda: leaf(module.running_mean)), (lambda: leaf(module.running_var))
    return _by_statistics(node, axes, module.num_features, statistics, _Affine.of(module), module.eps, context)


def _batch_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if not any(type(module).forward is kind.forward for kind in _PLAIN):
        return context.declined(node, f"{type(module).__name__} overrides the batch norm's forward")
    if context.recomputed(module):
        return context.declined(node, f"a hook recomputes its {context.recomputed(module)} at every call")
    if module.running_mean is None or module.running_var is None:
        return context.declined(node, "keeps no running statistics, so its output depends on the batch")
    if module.training:
        fact = "is in training mode inside an eval model, so its output depends on the batch"
        return context.declined(node, fact, "call its eval()")
    return _of_module(node, module, _axes_told(module, _IMAGES), context)


def _scale_shift(node: fx.Node, module: ScaleShift, _: Context) -> Op:
    """What an earlier compilation has left of a batch norm."""
    affine, channels = _Affine.of(module, "scale", "shift"), len(module.scale)

    def build(axes: int, _: int | None) -> AffineConv:
        return constructors.pointwise(channels, axes, affine.scale, affine.shift)

    return Affine(source_of(node), module.axes, build)


_ORDER = ("running_mean", "running_var", "weight", "bias")  # of F.batch_norm
_RAW_ORDER = ("weight", "bias", "running_mean", "running_var")  # of torch.batch_norm


def _batch_norm_function(node: fx.Node, context: Context, order: tuple[str, ...] = _ORDER) -> Op | None:
    mean, variance, weight, bias = (argument(node, 1 + order.index(name), name) for name in _ORDER)
    training, eps = argument(node, 5, "training", False), argument(node, 7, "eps", 1e-5)
    if mean is None or variance is None:
        return context.declined(node, "keeps no running statistics, so its output depends on the batch")
    if training is not False or not isinstance(eps, float | int):
        return context.declined(node, "uses the batch's own statistics (training is not False)")
    statistics = _statistics_of(mean, variance, context)
    shape = context.constants.shape(mean) if isinstance(mean, fx.Node) else None
    if statistics is None or shape is None:
        return context.declined(node, "its statistics depend on the input")
    affine = _affine_of(weight, bias, context)
    if affine is None:
        return context.declined(node, "its weight depends on the input")
    return _by_statistics(node, None, shape[0], statistics, affine, float(eps), context)


def _statistics_of(mean: object, variance: object, context: Context) -> tuple[_Lazy, _Lazy] | None:
    """The statistics that a call is given; None where one of them is no constant."""
    read = context.tensor(mean), context.tensor(variance)
    return None if read[0] is None or read[1] is None else (read[0], read[1])


def _affine_of(weight: object, bias: object, context: Context) -> _Affine | None:
    """The scale and shift that a call is given; None where one of them is no constant."""
    scale, shift = context.tensor(weight), context.tensor(bias)
    all_read = (scale is None) == (weight is None) and (shift is None) == (bias is None)
    return _Affine(scale, shift) if all_read else None


def _instance_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.modules.instancenorm._InstanceNorm.forward:
        return context.declined(node, f"{type(module).__name__} overrides the instance norm's forward")
    if module.training or not module.track_running_stats or module.running_mean is None:
        same = module.weight is None
        return Opaque(inputs=(source_of(node),) if same else ())
    return _of_module(node, module, known(_axes_told(module, _INSTANCE)), context)


# --- normalisations over positions or channels: their scale and shift -------------------------------------


@dataclass(frozen=True)
class _Plain:
    """The call that normalises without scale and shift."""

    function: Callable[..., Tensor]
    arguments: tuple[object, ...]


def _scaled(node: fx.Node, channels: int, affine: _Affine, plain: _Plain, context: Context, *, first: bool) -> Op:
    """`first`: the channels are axis 1 (group norm), else the last axis (layer norm)."""
    source = source_of(node)
    if not affine.vectors:
        raise OtherCallError
    one_axis = context.shapes.rank(source) == 2  # (B, C): axis 1 is the last one

    def build(axes: int) -> AffineConv | None:
        if (axes > 0) is not first and not (first and one_axis):
            return None
        return constructors.pointwise(channels, axes, affine.scale, affine.shift)

    return Normalised(source, channels, first, build, (plain.function, plain.arguments), channels * affine.vectors)


def _layer_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.LayerNorm.forward or len(module.normalized_shape) != 1:
        return None
    (size,) = module.normalized_shape
    plain = _Plain(F.layer_norm, ((size,), None, None, module.eps))
    return _scaled(node, size, _Affine.of(module), plain, context, first=False)


def _group_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.GroupNorm.forward:
        return None
    plain = _Plain(F.group_norm, (module.num_groups, None, None, module.eps))
    return _scaled(node, module.num_channels, _Affine.of(module), plain, context, first=True)


def _rms_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.RMSNorm.forward or len(module.normalized_shape) != 1:
        return None
    (size,) = module.normalized_shape
    plain = _Plain(F.rms_norm, ((size,), None, module.eps))
    return _scaled(node, size, _Affine(_maybe(module, "weight"), None), plain, context, first=False)


def _affine_given(context: Context, weight: object, bias: object = None) -> tuple[int, _Affine]:
    """(channels, scale and shift) of a functional norm, all given ones constant vectors of one length."""
    affine = known(_affine_of(weight, bias, context))
    shapes = {context.constants.shape(given) for given in (weight, bias) if isinstance(given, fx.Node)}
    shape = known(shapes.pop()) if len(shapes) == 1 else ()
    if len(shape) != 1:
        raise OtherCallError
    return shape[0], affine


def _expect_one_axis(node: fx.Node, channels: int) -> None:
    """A functional norm normalises the one axis that its weight scales, or it is another call."""
    if as_items(argument(node, 1, "normalized_shape")) != [channels]:
        raise OtherCallError


def _layer_norm_function(node: fx.Node, context: Context) -> Op | None:
    channels, affine = _affine_given(context, argument(node, 2, "weight"), argument(node, 3, "bias"))
    _expect_one_axis(node, channels)
    plain = _Plain(F.layer_norm, ((channels,), None, None, _epsilon(argument(node, 4, "eps", 1e-5))))
    return _scaled(node, channels, affine, plain, context, first=False)


def _rms_norm_function(node: fx.Node, context: Context) -> Op | None:
    channels, affine = _affine_given(context, argument(node, 2, "weight"))
    _expect_one_axis(node, channels)
    eps = argument(node, 3, "eps")
    plain = _Plain(F.rms_norm, ((channels,), None, None if eps is None else _epsilon(eps)))
    return _scaled(node, channels, affine, plain, context, first=False)


def _group_norm_function(node: fx.Node, context: Context) -> Op | None:
    channels, affine = _affine_given(context, argument(node, 2, "weight"), argument(node, 3, "bias"))
    groups = as_whole(argument(node, 1, "num_groups"))
    plain = _Plain(F.group_norm, (groups, None, None, _epsilon(argument(node, 4, "eps", 1e-5))))
    return _scaled(node, channels, affine, plain, context, first=True)


def _epsilon(given: object) -> float | int:
    if not isinstance(given, float | int):
        raise OtherCallError
    return given


MODULES: dict[type[nn.Module], ModuleRule] = {
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.modules.instancenorm._InstanceNorm: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.RMSNorm: _rms_norm,
    ScaleShift: _scale_shift,
}
FUNCTIONS: dict[Any, FunctionRule] = {
    F.batch_norm: _batch_norm_function,
    F.layer_norm: _layer_norm_function,
    torch.layer_norm: _layer_norm_function,
    F.group_norm: _group_norm_function,
    F.rms_norm: _rms_norm_function,
    torch.batch_norm: lambda node, context: _batch_norm_function(node, context, _RAW_ORDER),
}
