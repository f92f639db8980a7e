"""What changes the meaning of an operation without being one of its arguments: modes, and random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RANDOM = "draws random numbers that do not depend on the input, or seeds a generator"
DEVICES = ("cpu", "cuda", "mps", "xpu")  # that autocast is switched for
is_inference_mode = torch.is_inference_mode_enabled  # a trace lends torch another function of that name

_GRADIENTS = "switches gradients on or off, which a graph would do for its surroundings"
_AUTOCAST = "switches autocast, so its dtypes are not those of its surroundings"
_DEFAULT = "switches the default dtype or device"
_SWITCHED = (_GRADIENTS, _GRADIENTS, _AUTOCAST, _DEFAULT, _DEFAULT)  # in the order of `current_modes`


def current_modes() -> tuple[Any, ...]:
    """Everything that changes what an operation does without being one of its arguments."""
    return (
        torch.is_grad_enabled(),
        is_inference_mode(),
        tuple([torch.get_autocast_dtype(d) if torch.is_autocast_enabled(d) else None for d in DEVICES]),
        torch.get_default_dtype(),
        torch.get_default_device(),
    )


def what_was_switched(before: tuple[Any, ...], now: tuple[Any, ...]) -> str:
    """What code has done between two different modes."""
    return next(what for what, a, b in zip(_SWITCHED, before, now) if a != b)


@contextmanager
def modes_kept() -> Iterator[None]:
    """Put back what a forward switches for good, or switched when it was stopped."""
    before = current_modes()
    enabled = [torch.is_autocast_enabled(device) for device in DEVICES]
    try:
        yield
    finally:
        if current_modes() != before:
            _set_modes(before, enabled)


def _set_modes(modes: tuple[Any, ...], autocast: list[bool]) -> None:
    gradients, _, _, dtype, device = modes
    torch.set_grad_enabled(gradients)
    torch.set_default_dtype(dtype)
    if torch.get_default_device() != device:
        torch.set_default_device(device)
    for kind, was in zip(DEVICES, autocast):
        if torch.is_autocast_enabled(kind) is not was:
            torch.set_autocast_enabled(kind, was)


def generators() -> tuple[Any, ...]:
    """The states of the generators that belong to nobody: Python's, NumPy's, torch's."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def same_generators(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether no generator has moved."""
    (python, numpy, torchs), (python_now, numpy_now, torchs_now) = before, now
    if python != python_now:
        return False
    same_numpy = all(np.array_equal(a, b) for a, b in zip(numpy, numpy_now))
    return same_numpy and torch.equal(torchs, torchs_now)


def set_generators(states: tuple[Any, ...]) -> None:
    """Put the generators into earlier states."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
