"""Batch norms in every spelling: y = (x - mean) gamma / sqrt(var + eps) + beta, with running statistics.

A batch norm that uses the batch's own statistics is not affine and stays; an instance norm that keeps
running statistics is a batch norm in eval mode.  Layer, group and RMS norms are `Normalised`: what
normalises stays, the scale and shift per channel after it is affine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repfx.algebra import AffineConv, constructors, leaf
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Context, Normalised, Op, Opaque, argument

_AXES: dict[type, int] = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
_Lazy = Callable[[], Tensor]


def _normalised(
    node: fx.Node,
    source: object,
    axes: int | None,
    channels: int,
    statistics: tuple[_Lazy, _Lazy],
    affine: tuple[_Lazy | None, _Lazy | None],
    eps: float,
    context: Context,
) -> Op | None:
    """A batch norm of these statistics."""
    if not isinstance(source, fx.Node):
        return None
    rank = context.shapes.rank(source)
    if axes is None and rank is not None:
        axes = max(rank - 2, 0)

    def build(wanted: int, _: int | None) -> AffineConv | Decline:
        if axes is None and wanted == 0:
            return Decline(
                Reason.UNKNOWN_FACT,
                "normalises axis 1 of a value whose rank is not known",
                remedy="pass example_inputs",
            )
        return constructors.normalising(channels, wanted if axes is None else axes, statistics, affine, eps)

    return Affine(source, axes, build)


def _batch_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if not any(type(module).forward is kind.forward for kind in known):
        return context.declined(node, f"{type(module).__name__} overrides the batch norm's forward")
    if context.recomputed(module):
        return context.declined(node, f"a hook recomputes its {context.recomputed(module)} at every call")
    if module.running_mean is None or module.running_var is None:
        return context.declined(node, "keeps no running statistics, so its output depends on the batch")
    if module.training:
        return context.declined(
            node, "is in training mode inside an eval model, so its output depends on the batch", "call its eval()"
        )
    return _normalised(
        node,
        argument(node, 0, "input"),
        next((axes for kind, axes in _AXES.items() if isinstance(module, kind)), None),
        module.num_features,
        (lambda: leaf(module.running_mean), lambda: leaf(module.running_var)),
        (_maybe(module, "weight"), _maybe(module, "bias")),
        module.eps,
        context,
    )


def _maybe(module: nn.Module, name: str) -> _Lazy | None:
    if getattr(module, name) is None:
        return None
    return lambda: leaf(getattr(module, name))


_ORDER = ("running_mean", "running_var", "weight", "bias")  # of F.batch_norm
_RAW_ORDER = ("weight", "bias", "running_mean", "running_var")  # of torch.batch_norm


def _batch_norm_function(node: fx.Node, context: Context, order: tuple[str, ...] = _ORDER) -> Op | None:
    given = {name: argument(node, place, name) for place, name in enumerate(order, start=1)}
    mean, variance, weight, bias = (given[name] for name in _ORDER)
    training, eps = argument(node, 5, "training", False), argument(node, 7, "eps", 1e-5)
    if mean is None or variance is None:
        return context.declined(node, "keeps no running statistics, so its output depends on the batch")
    if training is not False or not isinstance(eps, float | int):
        return context.declined(node, "uses the batch's own statistics (training is not False)")
    lazy = [context.tensor(t) for t in (mean, variance)]
    affine = [None if t is None else context.tensor(t) for t in (weight, bias)]
    shape = context.constants.shape(mean) if isinstance(mean, fx.Node) else None
    if lazy[0] is None or lazy[1] is None or shape is None:
        return context.declined(node, "its statistics depend on the input")
    if (weight is not None and affine[0] is None) or (bias is not None and affine[1] is None):
        return context.declined(node, "its weight depends on the input")
    source = argument(node, 0, "input")
    return _normalised(node, source, None, shape[0], (lazy[0], lazy[1]), (affine[0], affine[1]), float(eps), context)


def _instance_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    source = argument(node, 0, "input")
    if type(module).forward is not nn.modules.instancenorm._InstanceNorm.forward:
        return context.declined(node, f"{type(module).__name__} overrides the instance norm's forward")
    if module.training or not module.track_running_stats or module.running_mean is None:
        same = module.weight is None and isinstance(source, fx.Node)
        return Opaque(inputs=(source,) if same and isinstance(source, fx.Node) else ())
    return _normalised(
        node,
        source,
        next(n for n, kind in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1)
             if isinstance(module, kind)),
        module.num_features,
        (lambda: leaf(module.running_mean), lambda: leaf(module.running_var)),
        (_maybe(module, "weight"), _maybe(module, "bias")),
        module.eps,
        context,
    )  # fmt: skip


# --- normalisations over positions or channels: their scale and shift -------------------------------------


def _scaled(
    source: object,
    channels: int,
    affine: tuple[_Lazy | None, _Lazy | None],
    plain: tuple[Callable[..., Tensor], tuple[object, ...]],
    context: Context,
    *,
    first: bool,
) -> Op | None:
    """`first`: the channels are axis 1 (group norm), else the last axis (layer norm)."""
    scale, shift = affine
    if not isinstance(source, fx.Node) or (scale is None and shift is None):
        return None
    vectors = context.shapes.rank(source) == 2

    def build(axes: int) -> AffineConv | None:
        if (axes > 0) is not first and not (first and vectors):
            return None
        return constructors.pointwise(channels, axes, scale, shift)

    parameters = channels * ((scale is not None) + (shift is not None))
    return Normalised(source, channels, first, build, plain, parameters)


def _layer_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.LayerNorm.forward or len(module.normalized_shape) != 1:
        return None
    size = tuple(module.normalized_shape)
    affine = _maybe(module, "weight"), _maybe(module, "bias")
    plain = (F.layer_norm, (size, None, None, module.eps))
    return _scaled(argument(node, 0, "input"), size[0], affine, plain, context, first=False)


def _group_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.GroupNorm.forward:
        return None
    affine = _maybe(module, "weight"), _maybe(module, "bias")
    plain = (F.group_norm, (module.num_groups, None, None, module.eps))
    return _scaled(argument(node, 0, "input"), module.num_channels, affine, plain, context, first=True)


def _rms_norm(node: fx.Node, module: Any, context: Context) -> Op | None:
    if type(module).forward is not nn.RMSNorm.forward or len(module.normalized_shape) != 1:
        return None
    size = tuple(module.normalized_shape)
    plain = (F.rms_norm, (size, None, module.eps))
    return _scaled(argument(node, 0, "input"), size[0], (_maybe(module, "weight"), None), plain, context, first=False)


def _constants(context: Context, *values: object) -> tuple[int, tuple[_Lazy | None, ...]] | None:
    """(channels, parameters) of a functional norm; None where they are no vectors of one length."""
    lazy = tuple(None if v is None else context.tensor(v) for v in values)
    shapes = {context.constants.shape(v) for v in values if isinstance(v, fx.Node)}
    shape = shapes.pop() if len(shapes) == 1 else None
    if shape is None or len(shape) != 1 or any(a is None and v is not None for a, v in zip(lazy, values)):
        return None
    return shape[0], lazy


def _layer_norm_function(node: fx.Node, context: Context) -> Op | None:
    size, eps = argument(node, 1, "normalized_shape"), argument(node, 4, "eps", 1e-5)
    given = _constants(context, argument(node, 2, "weight"), argument(node, 3, "bias"))
    if given is None or not isinstance(size, tuple | list) or not isinstance(eps, float | int):
        return None
    channels, (scale, shift) = given
    if list(size) != [channels]:
        return None
    plain = (F.layer_norm, ((channels,), None, None, eps))
    return _scaled(argument(node, 0, "input"), channels, (scale, shift), plain, context, first=False)


def _rms_norm_function(node: fx.Node, context: Context) -> Op | None:
    size, eps = argument(node, 1, "normalized_shape"), argument(node, 3, "eps")
    given = _constants(context, argument(node, 2, "weight"))
    if given is None or not isinstance(size, tuple | list) or not isinstance(eps, float | int | None):
        return None
    channels, (scale,) = given
    if list(size) != [channels]:
        return None
    plain = (F.rms_norm, ((channels,), None, eps))
    return _scaled(argument(node, 0, "input"), channels, (scale, None), plain, context, first=False)


def _group_norm_function(node: fx.Node, context: Context) -> Op | None:
    groups, eps = argument(node, 1, "num_groups"), argument(node, 4, "eps", 1e-5)
    given = _constants(context, argument(node, 2, "weight"), argument(node, 3, "bias"))
    if given is None or not isinstance(groups, int) or not isinstance(eps, float | int):
        return None
    channels, (scale, shift) = given
    plain = (F.group_norm, (groups, None, None, eps))
    return _scaled(argument(node, 0, "input"), channels, (scale, shift), plain, context, first=True)


MODULES: dict[type[nn.Module], Callable[[fx.Node, Any, Context], Op | None]] = {
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.modules.instancenorm._InstanceNorm: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.RMSNorm: _rms_norm,
}
FUNCTIONS: dict[Any, Callable[[fx.Node, Context], Op | None]] = {
    F.batch_norm: _batch_norm_function,
    F.layer_norm: _layer_norm_function,
    torch.layer_norm: _layer_norm_function,
    F.group_norm: _group_norm_function,
    F.rms_norm: _rms_norm_function,
    torch.batch_norm: lambda node, context: _batch_norm_function(node, context, _RAW_ORDER),
}
