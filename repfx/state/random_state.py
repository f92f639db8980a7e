"""Random generators that a model's code keeps, and other values whose state is looked at as a whole."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def is_generator(value: Any) -> bool:
    """Whether a value is a random generator."""
    return isinstance(value, _GENERATORS)


def generator_state(generator: Any) -> Any:
    """The state of a random generator, comparable by `same_state`."""
    match generator:
        case random.Random():
            return generator.getstate()
        case np.random.Generator():
            return generator.bit_generator.state
        case np.random.RandomState():
            return generator.get_state(legacy=False)
        case _:
            return generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put a random generator into an earlier state."""
    match generator:
        case random.Random():
            generator.setstate(state)
        case np.random.Generator():
            generator.bit_generator.state = state
        case _:
            generator.set_state(state)


def same_state(a: Any, b: Any) -> bool:
    """Whether two states of one generator, or two contents of one array, are the same."""
    match a:
        case dict():
            return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
        case Tensor():
            return torch.equal(a, b)
        case np.ndarray():
            return bool(np.array_equal(a, b))
        case _:
            return bool(a == b)
