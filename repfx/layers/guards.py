"""Checks in a compiled graph: of what was compiled in, and of what the example's sizes decided."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from repfx.errors import InputError


class _Open:
    """An argument that is a value of the graph."""

    def __repr__(self) -> str:
        return "OPEN"

    def __reduce__(self) -> str:
        return "OPEN"


OPEN = _Open()


class Guard(nn.Module):
    """A check that returns nothing; removing it as dead code would remove the check."""

    _is_impure = True  # torch.fx asks


class ArgumentGuard(Guard):
    """Raises `InputError` for arguments other than those that were compiled in."""

    def __init__(self, model: str, expected: Mapping[str, Any], starred: Collection[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.expected = dict(expected)
        self.starred = frozenset(starred)  # `*args` and `**kwargs`, for which exporters hand over an empty list

    def forward(self, **given: Any) -> None:
        """The arguments by name."""
        for name, wanted in self.expected.items():
            nothing = name in self.starred and not wanted and not given[name]
            if not nothing and not _matches(given[name], wanted):
                raise InputError(_argument_message(self.model, name, given[name], wanted))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.expected.items())


def _matches(given: Any, wanted: Any) -> bool:
    if wanted is OPEN:
        return given is not None
    if isinstance(wanted, tuple | list):
        return isinstance(given, type(wanted)) and len(given) == len(wanted) and all(map(_matches, given, wanted))
    if isinstance(wanted, dict):
        return isinstance(given, dict) and _matches_each(given, wanted)
    if wanted is None or isinstance(given, Tensor):
        return given is wanted
    return isinstance(given, type(wanted)) and bool(given == wanted)


def _matches_each(given: dict[Any, Any], wanted: dict[Any, Any]) -> bool:
    return given.keys() == wanted.keys() and all(_matches(given[key], wanted[key]) for key in wanted)


def _argument_message(model: str, name: str, given: Any, wanted: Any) -> str:
    what = "a tensor" if isinstance(given, Tensor) else repr(given)[:60]
    compiled = "as given, so it cannot be None" if wanted is OPEN else f"for {wanted!r}"
    return (
        f"argument {name} of {model} is {what}, and repfx compiled the model {compiled}; compile it with "
        f"example_inputs (or example_kwargs) that pass {name} as you need it, or exclude what reads it"
    )


class SizeGuard(Guard):
    """Raises `InputError` where a decision that the trace took from example sizes would fall otherwise.

    `kind` is what was asked of the value: its "truth", "value" or "length".
    """

    def __init__(self, kind: str, wanted: Any, place: str, shapes: str) -> None:
        super().__init__()
        self.kind, self.wanted, self.place, self.shapes = kind, wanted, place, shapes

    def forward(self, value: Any) -> None:
        """What the sizes say now."""
        found = bool(value) if self.kind == "truth" else len(value) if self.kind == "length" else value
        if found != self.wanted:
            if not self.shapes:
                raise InputError(f"{self.place} was compiled for a value of {self.wanted} axes, and is given {found}")
            raise InputError(
                f"an input of this shape takes another way at {self.place} than the example of shape {self.shapes} "
                "that the model was compiled with; compile it with an example of this shape, or without "
                "example_inputs, which leaves that module as it is"
            )

    def extra_repr(self) -> str:
        return f"{self.kind} {self.wanted!r} at {self.place}"
