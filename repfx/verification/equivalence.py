"""Are two whole models the same function?  Both are run, in their own dtype and in float64.

Bounds are derived.  In the models' own dtype every layer rounds, and sums over its fan in:

    relative error <= SLACK * eps(dtype) * sqrt(largest fan in)

In float64 only the folded weights have been rounded, once, to the dtype in which they are stored:

    relative error <= SLACK * eps(stored dtype), or FLOAT64_BOUND where they are float64

A network may amplify that.  Where a bound is exceeded, the original is run with its own weights changed by one
rounding, and up to AMPLIFIED times what that does is allowed.  Infinities must be equal in place and NaN where
the original has NaN; what holds no tensor was not compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from repfx.errors import InputError, UserError, first_line
from repfx.graph import modules_of
from repfx.reporting import Equivalence
from repfx.rewriting import FastDepthwise
from repfx.state import Kept, copied, held
from repfx.tracing import Example, generators, modes_kept, restored, set_generators
from repfx.verification.precision import InDouble

SLACK = 32.0  # a few roundings per layer, accumulated over some hundred layers as a random walk
FLOAT64_BOUND = 1e-10
AMPLIFIED = 10.0


@dataclass(frozen=True)
class Call:
    """One forward: its arguments, and whether gradients are recorded."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    gradients: bool = False
    ours: bool = False  # whether its numbers are not the user's: then the original may be undefined there

    def changed(self, name: str, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with other floating-point tensors."""

        def leaf(x: Any) -> Any:
            return change(x) if isinstance(x, Tensor) and x.is_floating_point() else x

        args, kwargs = tree_map(leaf, (self.args, dict(self.kwargs)))
        return replace(self, name=name, args=args, kwargs=kwargs, ours=True)

    def fresh(self, dtype: torch.dtype | None) -> Call:
        """The same call with tensors of its own, in this dtype: a forward may overwrite its arguments."""

        args, kwargs = Example(self.args, self.kwargs).fresh(dtype)
        return replace(self, args=args, kwargs=kwargs)

    @property
    def sizes(self) -> str:
        """The shapes of its tensors, in words."""
        found: list[str] = []
        tree_map(lambda x: found.append("x".join(map(str, x.shape))) if isinstance(x, Tensor) else None,
                 (self.args, dict(self.kwargs)))  # fmt: skip
        return ", ".join(found)


class NotRunError(Exception):
    """The original does not run so, for a reason of its own."""


class RefusedError(Exception):
    """The compiled model says that it was not compiled for such an input."""


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


def probes(given: Call) -> list[Call]:
    """The call as given, and with hostile numbers of the same shapes."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)

    return [
        given,
        given.changed("random input", noise),
        given.changed("constant one", torch.ones_like),
        given.changed("border impulses", _impulses),
    ]


def compare(model: nn.Module, fused: nn.Module, calls: Sequence[Call], dtype: torch.dtype | None) -> Equivalence:
    """The worst difference over all calls, with both models in one dtype (None: their own).

    Raises:
        NotRunError: the original raises, or is another function in this dtype.
        RefusedError: the compiled model raises `InputError`.
        UserError: it raises anything else, or returns something of another structure; or the original returns
            no finite number at all.
    """
    kept, states = Kept(model, modules_of(model)), generators()
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype is not None and {p.dtype for p in model.parameters() if p.is_floating_point()} == {dtype}:
        dtype = None  # it is in this dtype already, and what its code makes is what it makes
    used, double = dtype or own, InDouble(own)
    stored = next((p.dtype for p in fused.parameters() if p.is_floating_point()), used)
    bound = _bound(model, used, stored, cast=dtype is not None)
    found = _Difference()
    try:
        with _private(model, dtype) as original, _private(fused, dtype) as compiled:
            for call in calls:
                set_generators(states)
                expected = _outputs(original, call, dtype, NotRunError, double)
                kept.restore_outside()
                set_generators(states)
                actual = _outputs(compiled, call, dtype, UserError)
                kept.restore_outside()
                found.compare(call, expected, actual)
            if bound < found.relative < float("inf"):
                eps = torch.finfo(stored).eps
                noise = max(_rounding(original, call, dtype, eps) for call in calls)
                bound = max(bound, AMPLIFIED * noise)
            if found.relative > bound and double.rounds_to is not None:
                raise NotRunError(f"it would not round to {_name(double.rounds_to)}")
    finally:
        set_generators(states)
        kept.restore()
    if found.numbers and not found.finite:
        raise NotFiniteError(
            f"{type(model).__name__} returns no finite number, so it cannot be compared with anything; look for NaN "
            "and infinities in its weights, and for negative running variances"
        )
    names = tuple(dict.fromkeys(call.name for call in calls))
    return Equivalence(found.error, found.relative, bound, _name(used), names, found.where, found.tensors)


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


# --- running --------------------------------------------------------------------------------------


@contextmanager
def trying(model: nn.Module) -> Iterator[Callable[[Call], str]]:
    """A function that runs calls on a copy of the model and says what an unsuccessful one raised, or ""."""
    kept, states = Kept(model, modules_of(model)), generators()
    with _private(model, None) as own, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def raised(call: Call) -> str:
            try:
                _outputs(own, call, None, NotRunError)
            except (NotRunError, RefusedError) as error:
                return str(error)
            finally:
                set_generators(states)
                kept.restore_outside()
            return ""

        yield raised


@contextmanager
def _private(model: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    """A copy in this dtype; the model itself, put back afterwards, where it cannot be copied."""
    try:
        own = copied(model)
        own = own if dtype is None else own.to(dtype)
    except Exception as error:  # a user's class copies as it likes
        if dtype is not None:
            raise NotRunError(f"it cannot be copied ({first_line(error)})") from error
        with held(model), restored(Kept(model, modules_of(model))):
            yield model
    else:
        yield own


def _outputs(
    model: nn.Module, call: Call, dtype: torch.dtype | None, failure: type[Exception], double: InDouble | None = None
) -> list[_Leaf]:
    """The leaves of what a forward returns, with their places.  Raises `failure`, or `RefusedError`."""
    with modes_kept(), torch.set_grad_enabled(call.gradients), ExitStack() as stack:
        if dtype == torch.float64:
            stack.enter_context(FastDepthwise())  # the inner of the two: what it computes is in float64 already
            stack.enter_context(double or InDouble(dtype))
        try:
            given = call.fresh(dtype)
            return list(leaves(model(*given.args, **dict(given.kwargs))))
        except InputError as error:
            raise RefusedError(str(error)) from error
        except Exception as error:
            raise failure(f"it raises {first_line(error)}") from error


_Leaf = tuple[str, Any]


def leaves(value: Any, place: str = "", above: tuple[int, ...] = ()) -> Iterator[_Leaf]:
    """Everything that a forward returns, in containers, objects and generators, with the way there."""
    if isinstance(value, Tensor | str | bytes | int | float | complex | type(None)):
        yield place, value
    elif id(value) in above:
        return
    elif isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key], f"{place}[{key!r}]", (*above, id(value)))
    elif isinstance(value, list | tuple | Iterator):
        for index, item in enumerate(value):
            yield from leaves(item, f"{place}[{index}]", (*above, id(value)))
    elif hasattr(value, "__dict__") and not callable(value):
        for name, item in vars(value).items():
            yield from leaves(item, f"{place}.{name}", (*above, id(value)))


# --- comparing ------------------------------------------------------------------------------------


@dataclass
class _Difference:
    """The worst difference so far."""

    error: float = 0.0
    relative: float = 0.0
    where: str = ""
    tensors: int = 0  # how many were compared
    numbers: int = 0  # how many floating-point numbers there were
    finite: int = 0  # and how many of them were finite

    def see(self, error: float, relative: float, where: str) -> None:
        """One more difference."""
        if relative >= self.relative:
            self.error, self.relative, self.where = error, relative, where

    def compare(self, call: Call, expected: Sequence[_Leaf], actual: Sequence[_Leaf]) -> None:
        """The outputs of one call.  Raises `UserError` where they have another structure."""
        if [place for place, _ in expected] != [place for place, _ in actual]:
            raise UserError(f"the outputs are {_listed(expected)} and {_listed(actual)}")
        for index, ((place, x), (_, y)) in enumerate(zip(expected, actual)):
            where = f"{call.name}, output {place or index}"
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                self._compare_tensors(where, x, y, call.ours)
            elif type(x) is not type(y) or not (x == y or x != x):
                self.see(float("inf"), float("inf"), f"{where}: {x!r:.40} and {y!r:.40}")

    def _compare_tensors(self, where: str, x: Tensor, y: Tensor, ours: bool) -> None:
        if x.shape != y.shape:
            raise UserError(f"{where} has shape {tuple(x.shape)} and {tuple(y.shape)}")
        if x.dtype != y.dtype:
            return self.see(float("inf"), float("inf"), f"{where}: {x.dtype} and {y.dtype}")
        self.tensors += 1
        x, y = _plain(x), _plain(y)
        if not x.numel():
            return None
        if not x.is_floating_point():
            if not torch.equal(x, y):
                self.see(1.0, 1.0, where)
            return None
        x, y = x.double(), y.double()
        usual = torch.isfinite(x)
        self.numbers, self.finite = self.numbers + x.numel(), self.finite + int(usual.sum())
        odd = ~usual | ~torch.isfinite(y)
        same = (x == y) | (torch.isnan(x) & torch.isnan(y))
        unlike = odd & ~same & (usual if ours else True)  # 0 / 0 of a probe of ours is whatever the last bit says
        if bool(unlike.any()):
            place = _first(unlike)
            return self.see(float("inf"), float("inf"), f"{where} at {place}: {float(x[place])} and {float(y[place])}")
        error = torch.where(odd, 0.0, (x - y).abs())
        place = _first(error == error.max())
        scale = float(torch.where(odd, 0.0, x.abs()).max())
        worst = float(error[place])
        return self.see(worst, worst / scale if scale else worst, f"{where} at {place}")


def _listed(found: Sequence[_Leaf]) -> str:
    return f"({', '.join(place or 'one value' for place, _ in found[:6])}{', ...' if len(found) > 6 else ''})"


def _plain(x: Tensor) -> Tensor:
    """Dense real numbers."""
    x = x.detach()
    if x.layout is not torch.strided:
        x = x.to_dense()
    if x.is_quantized:
        x = x.dequantize()
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in where.nonzero()[0])


def _rounding(model: nn.Module, call: Call, dtype: torch.dtype | None, eps: float) -> float:
    """What one rounding of every weight and input does to the output, relative."""
    generator = torch.Generator().manual_seed(0)

    def rounded(x: Tensor) -> Tensor:
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x.device) * 2 - 1
        return x * (1 + signs.to(x.dtype) * eps)

    with _private(model, None) as other:
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.is_floating_point():
                    parameter.copy_(rounded(parameter))
        found = _Difference()
        found.compare(
            call,
            _outputs(model, call, dtype, NotRunError),
            _outputs(other, call.changed(call.name, rounded), dtype, NotRunError),
        )
    return found.relative


def _impulses(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    if x.dim() >= 3 and x.numel():
        out[..., 0, 0] = 1.0
        out[..., -1, -1] = -1.0
        out[..., 0, -1] = 2.0
    elif x.numel():
        out[..., 0] = 1.0
    return out


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
