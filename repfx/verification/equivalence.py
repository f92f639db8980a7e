"""Are two whole models the same function?  Both are run, in their own dtype and in float64.

Bounds are derived.  In the models' own dtype every layer rounds, and sums over its fan in:

    relative error <= SLACK * eps(dtype) * sqrt(largest fan in)

In float64 only the folded weights have been rounded, once, to the dtype in which they are stored:

    relative error <= SLACK * eps(stored dtype), or FLOAT64_BOUND where they are float64

A network may amplify that.  Where a bound is exceeded, the original is run with its own weights changed by one
rounding, and up to AMPLIFIED times what that does is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from repfx.errors import UserError
from repfx.graph import modules_of
from repfx.reporting import Equivalence
from repfx.state import Kept
from repfx.tracing import generators, set_generators
from repfx.verification.calls import Call, NotRunError, RefusedError, outputs_of, private, probes
from repfx.verification.difference import Difference
from repfx.verification.precision import InDouble

SLACK = 32.0  # a few roundings per layer, accumulated over some hundred layers as a random walk
FLOAT64_BOUND = 1e-10
AMPLIFIED = 10.0


class NotFiniteError(UserError):
    """The original returns no finite number."""


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
        model: the original; it is not changed.
        fused: the compiled model; it is not changed.
        example_inputs: positional arguments of one forward.
        example_kwargs: its keyword arguments.
        dtype: precision to compare in (copies are cast; constants that the code makes and casts that it does
            follow).  Where the code does not run in it, and with None, it is that of the models.

    Returns:
        The worst relative error over all probes and outputs, where it was seen, and the bound.

    Raises:
        UserError: the models return differently structured outputs, or the original does not run.
    """
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    given = Call("given input", args, dict(example_kwargs or {}))
    note = ""
    if dtype is not None:
        try:
            return compare(model, fused, probes(given), dtype)
        except (NotRunError, RefusedError) as error:
            note = f"in {_name(dtype)} {error}"
    try:
        return replace(compare(model, fused, probes(given), None), note=note)
    except (NotRunError, RefusedError) as error:
        raise UserError(f"{type(model).__name__} does not run on the example inputs: {error}") from error


def compare(model: nn.Module, fused: nn.Module, calls: Sequence[Call], dtype: torch.dtype | None) -> Equivalence:
    """The worst difference over all calls, with both models in one dtype (None: their own).

    Raises:
        NotRunError: the original raises, or is another function in this dtype.
        RefusedError: the compiled model raises `InputError`.
        UserError: it raises anything else, or returns something of another structure; or the original returns
            no finite number at all.
    """
    precision = _Precision.of(model, fused, dtype)
    kept, states = Kept(model, modules_of(model)), generators()
    try:
        found, bound = _measured(model, fused, calls, precision, kept, states)
    finally:
        set_generators(states)
        kept.restore()
    if found.numbers and not found.finite:
        raise NotFiniteError(
            f"{type(model).__name__} returns no finite number, so it cannot be compared with anything; look for NaN "
            "and infinities in its weights, and for negative running variances"
        )
    names = tuple(dict.fromkeys(call.name for call in calls))
    return Equivalence(found.error, found.relative, bound, _name(precision.used), names, found.where, found.tensors)


def _measured(
    model: nn.Module, fused: nn.Module, calls: Sequence[Call], precision: _Precision, kept: Kept, states: Any
) -> tuple[Difference, float]:
    """The worst difference, and the bound that holds for it."""
    dtype, double = precision.cast, InDouble(precision.own)
    found, bound = Difference(), precision.bound
    with private(model, dtype) as original, private(fused, dtype) as compiled:
        for call in calls:
            set_generators(states)
            expected = outputs_of(original, call, dtype, NotRunError, double)
            kept.restore_outside()
            set_generators(states)
            actual = outputs_of(compiled, call, dtype, UserError)
            kept.restore_outside()
            found.compare(call, expected, actual)
        if bound < found.relative < float("inf"):
            eps = torch.finfo(precision.stored).eps
            noise = max(_rounding(original, call, dtype, eps) for call in calls)
            bound = max(bound, AMPLIFIED * noise)
        if found.relative > bound and double.rounds_to is not None:
            raise NotRunError(f"it would not round to {_name(double.rounds_to)}")
    return found, bound


def _rounding(model: nn.Module, call: Call, dtype: torch.dtype | None, eps: float) -> float:
    """What one rounding of every weight and input does to the output, relative."""
    generator = torch.Generator().manual_seed(0)

    def rounded(x: Tensor) -> Tensor:
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x.device) * 2 - 1
        return x * (1 + signs.to(x.dtype) * eps)

    with private(model, None) as other:
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.is_floating_point():
                    parameter.copy_(rounded(parameter))
        found = Difference()
        found.compare(
            call,
            outputs_of(model, call, dtype, NotRunError),
            outputs_of(other, call.changed(call.name, rounded), dtype, NotRunError),
        )
    return found.relative


# --- bounds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Precision:
    """The dtypes of a comparison, and what they allow."""

    own: torch.dtype  # of the original
    stored: torch.dtype  # of the folded weights
    cast: torch.dtype | None  # to which both models are cast; None: they stay what they are
    bound: float

    @property
    def used(self) -> torch.dtype:
        """The dtype in which both are computed."""
        return self.cast or self.own

    @staticmethod
    def of(model: nn.Module, fused: nn.Module, dtype: torch.dtype | None) -> _Precision:
        """A comparison in this dtype; a model that is in it already is not cast, and its code makes what it makes."""
        held = _dtypes(model)
        own = held[0] if held else torch.float32
        cast = None if {*held} == {dtype} else dtype
        used = cast or own
        stored = (*_dtypes(fused), used)[0]
        return _Precision(own, stored, cast, _bound(model, used, stored, cast=cast is not None))


def _dtypes(model: nn.Module) -> list[torch.dtype]:
    """The floating-point dtypes of a model's parameters, in their order."""
    return [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]


def tolerance(model: nn.Module, dtype: torch.dtype) -> float:
    """Relative bound for computing in one dtype, from the largest fan in of the model's layers."""
    if dtype == torch.float64:
        return FLOAT64_BOUND
    fans = [p[0].numel() for p in model.parameters() if p.dim() > 1]
    return SLACK * torch.finfo(dtype).eps * max(fans, default=1) ** 0.5


def _bound(model: nn.Module, used: torch.dtype, stored: torch.dtype, *, cast: bool) -> float:
    if not cast:
        return max(tolerance(model, used), tolerance(model, stored))
    rounded = FLOAT64_BOUND if stored == torch.float64 else SLACK * torch.finfo(stored).eps
    return max(tolerance(model, used), rounded)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
