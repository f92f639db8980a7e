"""Modules that stand in for the user's: the same attributes, on another object."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from repfx.graph import INDEX


def shallow(module: nn.Module) -> nn.Module:
    """Another module of the same attributes; `copy.copy` is what a class may forbid (parametrized ones do)."""
    own: nn.Module = object.__new__(type(module))
    own.__dict__.update(module.__dict__)
    return own


def shell_of(model: nn.Module, modules: Sequence[tuple[str, nn.Module]] = ()) -> nn.Module:
    """A module like the user's to hold what the trace adds: constants met on the way, guards.

    `modules` are all of the model's by path, so that they are found quickly.
    """
    shell = shallow(model)
    shell.__dict__["_modules"] = dict(model._modules)
    shell.__dict__[INDEX] = dict(modules[1:])
    return shell


def is_met(name: str) -> bool:
    """Whether an attribute is a constant that fx met on the way and stored on the root, or ours."""
    return name.startswith("_tensor_constant") or name == INDEX
