"""Batch norms in every spelling: y = (x - mean) gamma / sqrt(var + eps) + beta, with running statistics.

A batch norm that uses the batch's own statistics is not affine and stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repfx import makers
from repfx.affine import AffineConv
from repfx.decline import Decline, Reason
from repfx.lifting.context import Context, argument
from repfx.ops import Affine, Op
from repfx.values import leaf

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
    """scale = gamma / sqrt(var + eps), shift = beta - mean scale."""
    if not isinstance(source, fx.Node):
        return None
    mean, variance = statistics
    gamma, beta = affine

    def scale() -> Tensor:
        inverse = torch.rsqrt(variance().double() + eps)
        return inverse if gamma is None else gamma().double() * inverse

    def shift() -> Tensor:
        moved = -mean().double() * scale()
        return moved if beta is None else beta().double() + moved

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
        return makers.pointwise(channels, wanted if axes is None else axes, scale, shift)

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


def _batch_norm_function(node: fx.Node, context: Context) -> Op | None:
    mean, variance = argument(node, 1, "running_mean"), argument(node, 2, "running_var")
    weight, bias = argument(node, 3, "weight"), argument(node, 4, "bias")
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


MODULES: dict[type[nn.Module], Callable[[fx.Node, Any, Context], Op | None]] = {
    nn.modules.batchnorm._BatchNorm: _batch_norm,
}
FUNCTIONS: dict[Any, Callable[[fx.Node, Context], Op | None]] = {
    F.batch_norm: _batch_norm_function,
}
