"""Modes: what a forward asks of its surroundings, or switches: gradients, autocast, defaults, training."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn

from tests.compiling import Net
from tests.truth.case import STAYS, Case, both, first, second

ANOTHER_WAY = "another way when gradients are recorded"
SWITCHES = "switches gradients"


def asks_kept(s: Net, x: Tensor) -> Tensor:
    return both(s, x) if is_grad_enabled() else second(s, first(s, x))


def asks_in_a_helper(s: Net, x: Tensor) -> Tensor:
    return both(s, x) * (2.0 if recording() else 1.0)


def recording() -> bool:
    return torch.is_grad_enabled()


def through_getattr(s: Net, x: Tensor) -> Tensor:
    return both(s, x) * (2.0 if getattr(torch, "is_grad_enabled")() else 1.0)  # noqa: B009


def requires(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y) if y.requires_grad else second(s, y.relu())


def no_history(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y) if y.grad_fn is None else second(s, y.relu())


def is_a_leaf(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y) if y.is_leaf else second(s, y.relu())


def weight_requires(s: Net, x: Tensor) -> Tensor:
    return both(s, x) if s.a.weight.requires_grad else first(s, x)


@torch.no_grad()
def decorated(s: Net, x: Tensor) -> Tensor:
    return both(s, x)


def part_without(s: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = first(s, x)
    return second(s, y.relu())


def part_with(s: Net, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(s.training):
        y = first(s, x)
    return second(s, y.relu())


def enabled(s: Net, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return both(s, x)


def inner_gradient(s: Net, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((z**2).sum(), z)
    return both(s, x - 0.1 * slope)


def switched_for_good(s: Net, x: Tensor) -> Tensor:
    torch.set_grad_enabled(True)
    return both(s, x)


def inference(s: Net, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = first(s, x)
    return second(s, y.clone())


def asks_inference(s: Net, x: Tensor) -> Tensor:
    return first(s, x) if torch.is_inference_mode_enabled() else both(s, x)


def asks_autocast(s: Net, x: Tensor) -> Tensor:
    return both(s, x) if torch.is_autocast_enabled("cpu") else second(s, first(s, x))


def default_dtype(s: Net, x: Tensor) -> Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    y = both(s, x) * torch.tensor([0.1])
    torch.set_default_dtype(before)
    return y


def default_device(s: Net, x: Tensor) -> Tensor:
    with torch.device("cpu"):
        return both(s, x) + torch.ones(1, dtype=x.dtype)


def harmless(s: Net, x: Tensor) -> Tensor:
    with contextlib.nullcontext(), warnings.catch_warnings(), torch.autograd.profiler.record_function("part"):
        return both(s, x)


@contextlib.contextmanager
def doubling(s: Net) -> Iterator[None]:
    s.__dict__["factor"] = 2.0
    yield
    del s.__dict__["factor"]


def own_context(s: Net, x: Tensor) -> Tensor:
    with doubling(s):
        y = both(s, x) * s.factor
    return y * getattr(s, "factor", 3.0)


def suppressed(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    with contextlib.suppress(ZeroDivisionError):
        y = y * (1 / 0)
    return second(s, y)


def own_flag(s: Net, x: Tensor) -> Any:
    return both(s, x) if not s.training else first(s, x)


def flag_of_a_part(s: Net, x: Tensor) -> Any:
    return both(s, x) if not s.n.training else first(s, x)


class Frozen(nn.Module):
    """detectron2's FrozenBatchNorm2d: one function, said in two ways."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            scale = self.weight * (self.running_var + 1e-5).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1).to(x.dtype) + shift.reshape(1, -1, 1, 1).to(x.dtype)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=1e-5
        )


CASES = {
    "asks whether gradients are recorded": Case(
        lambda s, x: both(s, x) if torch.is_grad_enabled() else first(s, x), STAYS, because=ANOTHER_WAY
    ),
    "asks a name that was imported": Case(asks_kept, STAYS, because=ANOTHER_WAY),
    "asks in a helper": Case(asks_in_a_helper, STAYS, because=ANOTHER_WAY),
    "asks through getattr": Case(through_getattr, STAYS, because=ANOTHER_WAY),
    "asks whether a value requires them": Case(requires, STAYS, because=ANOTHER_WAY),
    "asks for the history": Case(no_history, STAYS, because="asks for .grad_fn"),
    "asks whether it is a leaf": Case(is_a_leaf, STAYS, because=ANOTHER_WAY),
    "asks whether a weight requires them": Case(weight_requires),
    "decorated with no_grad": Case(decorated, STAYS, because=SWITCHES),
    "a part without gradients": Case(part_without, STAYS, because=SWITCHES),
    "a part with a computed mode": Case(part_with, STAYS, because=SWITCHES),
    "with gradients": Case(enabled, STAYS, because=SWITCHES),
    "a gradient inside": Case(inner_gradient, STAYS, because=SWITCHES),
    "switched for good": Case(switched_for_good, STAYS, because=SWITCHES),
    "inference mode": Case(inference, STAYS, gradients=False, because=SWITCHES),
    "asks for inference mode": Case(asks_inference, STAYS, because="asks for inference"),
    "asks for autocast": Case(asks_autocast, STAYS, because=ANOTHER_WAY),
    "the default dtype": Case(default_dtype, STAYS, because="switches the default"),
    "the default device": Case(default_device),
    "contexts that change nothing": Case(harmless),
    "a context of its own": Case(own_context),
    "an error that is suppressed": Case(suppressed),
    "its own flag": Case(own_flag),
    "the flag of a part": Case(flag_of_a_part),
    "a frozen norm, said in two ways": Case(
        lambda s, x: s.f(s.b(s.f(both(s, x)).relu())), parts={"f": lambda: Frozen(4)}
    ),
}
