"""Are two whole models the same function?  Both are run, in their own dtype and in float64.

The bound for a dtype is derived: SLACK * eps(dtype) * sqrt(largest fan in) * max |y|, with one
documented SLACK; in float64 it is far below the 1e-10 that a fold may lose to conditioning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from repfx.decline import UserError
from repfx.report import Equivalence
from repfx.state import copied

SLACK = 32.0  # a few roundings per layer, accumulated over some hundred layers as a random walk
FLOAT64_BOUND = 1e-10
_Call = tuple[tuple[Any, ...], dict[str, Any]]


def verify(
    model: nn.Module,
    fused: nn.Module,
    example_inputs: Sequence[Any] | Tensor,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = torch.float64,
) -> Equivalence:
    """Compare two models on the given inputs and on hostile variants of them.

    Args:
        model, fused: the models; neither is changed.
        example_inputs: positional arguments of one forward.
        example_kwargs: its keyword arguments.
        dtype: precision to compare in (copies are cast); None: as the models are.

    Returns:
        The worst relative error over all probes and outputs, where it was seen, and the bound.

    Raises:
        UserError: the models return differently structured outputs.
    """
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    inputs = (args, dict(example_kwargs or {}))
    a, b = _cast(model, dtype), _cast(fused, dtype)
    used = dtype or next((p.dtype for p in model.parameters()), torch.float32)
    stored = next((p.dtype for p in fused.parameters() if p.is_floating_point()), used)
    bound = max(tolerance(model, used), tolerance(model, stored))  # a folded weight is rounded once, as stored
    worst, relative, where, names = 0.0, 0.0, "", []
    with torch.no_grad():
        for name, probe in _probes(inputs, used):
            names.append(name)
            for index, (x, y) in enumerate(zip(_outputs(a, probe), _outputs(b, probe), strict=True)):
                if x.shape != y.shape:
                    raise UserError(f"output {index} has shape {tuple(x.shape)} and {tuple(y.shape)}")
                error, own, place = _difference(x, y)
                if own >= relative:
                    worst, relative, where = error, own, f"{name}, output {index}{place}"
    return Equivalence(worst, relative, bound, str(used).removeprefix("torch."), tuple(names), where)


def tolerance(model: nn.Module, dtype: torch.dtype) -> float:
    """Relative bound for one dtype, from the largest fan in of the model's layers."""
    if dtype == torch.float64:
        return FLOAT64_BOUND
    fans = [p[0].numel() for p in model.parameters() if p.dim() > 1]
    return SLACK * torch.finfo(dtype).eps * max(fans, default=1) ** 0.5


def _cast(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    return model if dtype is None else copied(model).to(dtype)


def _probes(inputs: _Call, dtype: torch.dtype) -> Iterator[tuple[str, _Call]]:
    def changed(change: Any) -> _Call:
        def leaf(x: Any) -> Any:
            return change(x).to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        return tree_map(leaf, inputs)

    generator = torch.Generator().manual_seed(0)
    yield "given input", changed(lambda x: x)
    yield "random input", changed(lambda x: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device))
    yield "constant one", changed(torch.ones_like)
    yield "border impulses", changed(_impulses)


def _impulses(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    if x.dim() >= 3:
        out[..., 0, 0] = 1.0
        out[..., -1, -1] = -1.0
        out[..., 0, -1] = 2.0
    else:
        out[..., 0] = 1.0
    return out


def _outputs(model: nn.Module, inputs: _Call) -> list[Tensor]:
    found: list[Tensor] = []
    _flatten(model(*inputs[0], **inputs[1]), found)
    return found


def _flatten(value: Any, into: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        into.append(value)
    elif isinstance(value, dict):
        for key in value:
            _flatten(value[key], into)
    elif isinstance(value, tuple | list):
        for item in value:
            _flatten(item, into)
    elif hasattr(value, "__dict__"):
        _flatten(vars(value), into)


def _difference(x: Tensor, y: Tensor) -> tuple[float, float, str]:
    if not x.numel() or not x.is_floating_point():
        same = torch.equal(x, y)
        return (0.0, 0.0, "") if same else (1.0, 1.0, "")
    difference = (x.double() - y.double()).abs()
    if torch.isnan(x).any() or torch.isnan(y).any():
        both = torch.isnan(x) == torch.isnan(y)
        if not bool(both.all()):
            return float("nan"), float("inf"), " (nan)"
        difference = difference.nan_to_num(0.0)
    flat = int(difference.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), difference.shape))
    error = float(difference.reshape(-1)[flat])
    scale = float(x.double().abs().nan_to_num(0.0).max())
    return error, error / scale if scale else error, f" at {index}"


def randomize_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm random statistics and affine weights, in place; returns the model.

    Freshly initialised batch norms are identities, behind which a wrong fold hides.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, low, high in (("running_mean", -1.0, 1.0), ("running_var", 0.3, 2.0)):
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
    return model
