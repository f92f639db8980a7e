"""Which rules are asked about a call, in which order: those registered from outside, the newest first, then ours.

Ours are asked in the order of the tables in `repfx.lifting.table`; the first that knows the call says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from repfx.errors import UserError
from repfx.graph import Op
from repfx.lifting.rules import FunctionRule, ModuleRule

Target = type[nn.Module] | Callable[..., Any] | str  # a type of modules, a function, a method of a tensor


@dataclass(eq=False)
class Rules:
    """Rules by what they are about."""

    modules: dict[type[nn.Module], tuple[ModuleRule, ...]] = field(default_factory=dict)
    functions: dict[Any, tuple[FunctionRule, ...]] = field(default_factory=dict)
    methods: dict[str, tuple[FunctionRule, ...]] = field(default_factory=dict)

    def of(self, target: Target) -> dict[Any, tuple[Any, ...]]:
        """The rules of all targets of this kind."""
        if isinstance(target, str):
            return self.methods
        if isinstance(target, type) and issubclass(target, nn.Module):
            return self.modules
        return self.functions

    def of_module(self, kind: type[nn.Module]) -> tuple[ModuleRule, ...]:
        """The rules for modules of this type, or of the first one that it is derived from."""
        return next((rules for known, rules in self.modules.items() if issubclass(kind, known)), ())

    def of_function(self, function: Any) -> tuple[FunctionRule, ...]:
        """The rules for a function, by itself or by its name."""
        return self.functions.get(function) or self.functions.get(getattr(function, "__name__", ""), ())


def in_turn(*tables: Mapping[Any, FunctionRule]) -> dict[Any, tuple[FunctionRule, ...]]:
    """The rules of all tables for each target, those of the first table first."""
    merged: dict[Any, tuple[FunctionRule, ...]] = {}
    for table in tables:
        for target, rule in table.items():
            merged[target] = (*merged.get(target, ()), rule)
    return merged


OUTSIDE = Rules()


@dataclass(frozen=True, eq=False)
class Registration:
    """A rule that was added from outside, until it is removed; as a context manager, until the end of the block."""

    target: Target
    rule: FunctionRule | ModuleRule

    def remove(self) -> None:
        """Take the rule back; once more is nothing."""
        table = OUTSIDE.of(self.target)
        left = tuple(rule for rule in table.get(self.target, ()) if rule is not self)
        if left:
            table[self.target] = left
        else:
            table.pop(self.target, None)

    def __call__(self, node: fx.Node, *given: Any) -> Op | None:
        return self.rule(node, *given)

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def register(target: Target, rule: FunctionRule | ModuleRule) -> Registration:
    """Ask `rule` what calls of `target` compute, before any other rule.

    Args:
        target: a type of modules (the rule is called with the node, the module and a `Context`), or a function or
            the name of a method of tensors (with the node and a `Context`).
        rule: returns an operation, or None where the call is none of those that it is about.

    Returns:
        The registration, which can be removed again, and is a context manager that does so.

    Raises:
        UserError: the target is nothing that a graph calls.
    """
    if not isinstance(target, str) and not callable(target):
        raise UserError(
            f"lifting.register: {target!r} is nothing that a graph calls; give a type of modules, a function, or the "
            "name of a method of tensors"
        )
    registration = Registration(target, rule)
    table = OUTSIDE.of(target)
    table[target] = (registration, *table.get(target, ()))
    return registration
