"""What the registries hold, for help and completion, read when it is asked for: other packages may add to them.

A help text says {targets}, {endings}, {objectives} or {option NAME} where words of theirs go.  Here a package that is
broken takes only its own line of the help.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperOption

from repfx.errors import UserError
from repfx.export import TARGETS
from repfx.plugins import Registry
from repfx.rewriting import OBJECTIVES


class CurrentHelp(TyperCommand):
    """A command whose help texts are filled in before they are shown."""

    def format_help(self, ctx: typer.Context, formatter: object) -> None:  # type: ignore[override]  # click's or a copy
        """Show the help."""
        self.help = filled(self.help or "")
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.help:
                parameter.help = filled(parameter.help)
        super().format_help(ctx, formatter)  # type: ignore[arg-type]


def filled(text: str) -> str:
    """A help text with the names of today."""
    return PLACE.sub(lambda place: escape(WORDS[place[1]](place[2] or "")), text)


def complete_objective(incomplete: str) -> list[str]:
    """Names of objectives that begin so."""
    return [name for name in _names(OBJECTIVES) if name.startswith(incomplete)]


def complete_output(incomplete: str) -> list[str]:
    """The path with every ending that it may have."""
    stem, begun = os.path.splitext(incomplete)
    return [f"{stem}.{name}" for name in _names(TARGETS) if f".{name}".startswith(begun)]


def _names(registry: Registry[Any]) -> Iterable[str]:
    try:
        return registry.names()
    except UserError:
        return [*registry.own]


def _objectives(_: str) -> str:
    return _either(_names(OBJECTIVES))


def _endings(_: str) -> str:
    return _either([f".{name}" for name in _names(TARGETS)])


def _targets(_: str) -> str:
    """One line for each target."""
    return "\n".join(f".{name:<12} {_about(name)}" for name in _names(TARGETS))


def _about(name: str) -> str:
    try:
        target = TARGETS.find(name)
    except UserError as error:
        return str(error)
    assert target is not None  # it was among the names
    options = ", ".join(option.name for option in target.options)
    return f"{target.about}; options {options}" if options else target.about


def _option(name: str) -> str:
    """Which targets take an option, and what it is: of ours and those added in this process, so that nothing loads."""
    takers = {
        target.ending: option for target in TARGETS.own.values() for option in target.options if option.name == name
    }
    option = next(iter(takers.values()))
    choices = f", {_either(map(str, option.choices))}" if option.choices else ""
    return f"{' and '.join(takers)}: {option.about}{choices}."


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


PLACE = re.compile(r"\{(\w+)(?: (\w+))?\}")
WORDS: dict[str, Callable[[str], str]] = {
    "targets": _targets,
    "endings": _endings,
    "objectives": _objectives,
    "option": _option,
}
