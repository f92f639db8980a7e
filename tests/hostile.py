"""Hostile weights, sizes and probes, and the one comparison every equality test uses.

A rewrite is exact for every weight, input, size and pixel, or it is wrong; so nothing here is tame:
batch norms far from mean 0 and variance 1 with scales of both signs and near zero, biases larger than
the signal, odd, non-square and one-pixel maps, impulses on the border.  Weights keep the signal at
order one, so that a float64 comparison at 1e-10 separates rounding from a wrong result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

TOLERANCE = 1e-10

SIZES: tuple[tuple[int, int], ...] = ((9, 12), (8, 8), (1, 1), (7, 5), (3, 2), (1, 6), (13, 11), (16, 4))
"""Even, odd, non-square, smaller than most kernels, one row, one pixel."""


# --- weights --------------------------------------------------------------------------------------


@torch.no_grad()
def randomize(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give every parameter and statistic of a float64 model a hostile value, in place; returns it."""
    seen: set[int] = set()
    for part in module.modules():
        if getattr(part, "running_mean", None) is not None and part.running_var is not None:
            part.running_mean.copy_(_normal(part.running_mean, generator, 2.0) + 0.5)  # type: ignore[arg-type]
            part.running_var.copy_(torch.exp(_uniform(part.running_var, generator, -2.5, 2.0)))  # type: ignore[arg-type]
            for name, buffer in part.named_buffers(recurse=False):
                if name in ("weight", "bias"):  # a frozen batch norm keeps them as buffers
                    buffer.copy_(_hostile(part, name, buffer, generator))
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            parameter.copy_(_hostile(part, name, parameter, generator))
    return module


def prepared(module: nn.Module, seed: int) -> nn.Module:
    """The module in float64, in eval mode, with hostile values."""
    return randomize(module.double().eval(), torch.Generator().manual_seed(seed))


def _hostile(part: nn.Module, name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if isinstance(part, nn.PReLU):
        return _uniform(like, generator, 0.05, 0.5)
    if "bias" in name or "beta" in name:
        return _normal(like, generator, 3.0)
    if like.dim() >= 2 and math.prod(like.shape[1:]) > 1:
        return _normal(like, generator, 1.2 / math.sqrt(math.prod(like.shape[1:])))
    scale = _normal(like, generator, 1.0) + 0.2
    dead = torch.rand(like.shape, generator=generator, dtype=like.dtype) < 0.1
    return torch.where(dead, scale * 1e-4, scale)


def _normal(like: Tensor, generator: torch.Generator, scale: float) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype) * scale


def _uniform(like: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype) * (high - low) + low


# --- inputs ---------------------------------------------------------------------------------------


def sizes(generator: torch.Generator, count: int = len(SIZES)) -> list[tuple[int, int]]:
    """`count` spatial sizes, in random order; one pixel and smaller-than-kernel maps among them."""
    order = torch.randperm(len(SIZES), generator=generator).tolist()
    return [SIZES[i] for i in order[:count]]


PROBES = ("random", "zeros", "constant one", "impulse corner", "impulse edge", "impulse centre")


def probes(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """One batch that holds each of `PROBES` for an input of `shape` (channels, *spatial)."""
    batch = torch.zeros(len(PROBES), *shape, dtype=torch.float64)
    batch[0] = torch.randn(*shape, generator=generator, dtype=torch.float64)
    batch[2] = 1.0
    middle = tuple(n // 2 for n in shape[1:])
    edge = (*middle[:-1], shape[-1] - 1) if len(shape) > 1 else ()
    channels = torch.randint(shape[0], (3,), generator=generator).tolist()
    for row, (channel, place) in enumerate(zip(channels, ((0,) * len(middle), edge, middle)), start=3):
        batch[(row, channel, *place)] = 1.0
    return batch


# --- comparison -----------------------------------------------------------------------------------


class RefusedError(Exception):
    """The original model itself does not accept this input."""


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All tensors the model returns for a private copy of `x`."""
    with torch.no_grad():
        flat, _ = tree_flatten(model(x.clone()))
    return [t for t in flat if isinstance(t, Tensor)]


def accepts(model: nn.Module, x: Tensor) -> bool:
    """Whether the model runs on `x` at all (a kernel may not fit, two sizes may not match)."""
    try:
        outputs(model, x)
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return False
    return True


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """max |expected - actual| / max |expected|."""
    if expected.numel() == 0:
        return 0.0
    scale = max(float(expected.abs().max()), 1e-30)
    return float((expected - actual).abs().max()) / scale


def assert_same(original: nn.Module, fused: nn.Module, x: Tensor, tolerance: float = TOLERANCE) -> None:
    """Both models return the same tensors for `x`, up to float64 rounding; else say where they differ."""
    expected = outputs(original, x)
    if not all(bool(torch.isfinite(t).all()) for t in expected):
        raise RefusedError("the original returns values that are not finite")
    try:
        actual = outputs(fused, x)
    except Exception as error:
        raise AssertionError(f"fused model raises where the original runs, input {tuple(x.shape)}: {error}") from error
    assert len(actual) == len(expected), f"{len(actual)} outputs instead of {len(expected)}"
    for i, (e, a) in enumerate(zip(expected, actual)):
        assert a.shape == e.shape, f"output {i}: shape {tuple(a.shape)} instead of {tuple(e.shape)}"
        assert a.dtype == e.dtype, f"output {i}: {a.dtype} instead of {e.dtype}"
        difference = relative_error(e, a)
        assert difference <= tolerance, _difference(i, e, a, difference, x)


def assert_same_everywhere(
    original: nn.Module,
    fused: nn.Module,
    channels: int,
    spatial: Iterable[Sequence[int]],
    generator: torch.Generator,
) -> int:
    """`assert_same` on the probes at each size the original accepts; returns how many those were."""
    tried = 0
    for size in spatial:
        x = probes((channels, *size), generator)
        if accepts(original, x):
            assert_same(original, fused, x)
            tried += 1
    return tried


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    """The model's state is what it was (`before` is a deep copy of its state dict)."""
    after = model.state_dict()
    assert list(after) == list(before), "the original model's state names changed"
    for name, value in before.items():
        same = torch.equal(after[name], value) if isinstance(value, Tensor) else after[name] == value
        assert same, f"the original model's {name} changed"


def snapshot(model: nn.Module) -> dict[str, Any]:
    """A copy of the state to hold against `assert_untouched`."""
    return copy.deepcopy(dict(model.state_dict()))


def _difference(index: int, expected: Tensor, actual: Tensor, error: float, x: Tensor) -> str:
    gap = (expected - actual).abs()
    place = tuple(int(i) for i in torch.unravel_index(gap.nan_to_num(nan=math.inf).argmax(), gap.shape))
    probe = f", probe '{PROBES[place[0]]}'" if len(x) == len(PROBES) and len(place) > 1 else ""
    wrong = float((gap > TOLERANCE * expected.abs().max()).double().mean())
    return (
        f"output {index} of input {tuple(x.shape)}: relative error {error:.1e}, worst at {place}{probe}: "
        f"{float(expected[place]):.6g} expected, {float(actual[place]):.6g} found; "
        f"{wrong:.0%} of the values differ"
    )
