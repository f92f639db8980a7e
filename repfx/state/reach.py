"""What a model's code can reach beside its modules: globals, closures, class attributes, plain objects.

A forward may count in a global, keep its last input in an object that it shares with others, or draw from a
generator of its file.  A trace runs that forward, so it has to know these places: to see that they were used and
to leave them as they were.

Sound for what the code names; what is reached by computed names (`globals()[key]`) is not seen here, only by
comparing the compiled model with the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CellType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from repfx.introspection import globals_set_in, is_library, names_in
from repfx.state.walking import functions_in, is_own

_ASKED = {"type", "callable", "isinstance"}  # what code asks of a value by a function that cannot be told anything
_LENT = (*_ASKED, "_abc_impl")  # names that a trace gives to a module, and what Python keeps in a class
_MISSING = object()


class Binding(NamedTuple):
    """What a name stands for in the globals of a file, or in a class."""

    owner: Any
    name: str
    value: Any

    def holds(self) -> bool:
        """Whether it stands for that still; torch.fx wraps functions that were registered by `torch.fx.wrap`."""
        now = _read(self.owner, self.name)
        return now is self.value or (type(now) is FunctionType and now.__dict__.get("__wrapped__", now) is self.value)

    def restore(self) -> None:
        """Let the name stand for that again."""
        if self.value is _MISSING:
            _unbind(self.owner, self.name)
        elif isinstance(self.owner, dict):
            self.owner[self.name] = self.value
        else:
            setattr(self.owner, self.name, self.value)


@dataclass
class Reach:
    """Places outside the modules of a model that its code names."""

    bindings: list[Binding] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)  # what lies in closures and defaults
    cells: list[tuple[CellType, Any]] = field(default_factory=list)  # variables that functions share
    spaces: list[tuple[Any, frozenset[str]]] = field(default_factory=list)  # globals or class, and all its names
    namespaces: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # of code that asks, and what it calls

    def contents(self) -> list[Any]:
        """What lies in these places."""
        return [*self.values, *(binding.value for binding in self.bindings)]

    def changed(self) -> bool:
        """Whether a name is bound to something else now."""
        return (
            not all(binding.holds() for binding in self.bindings)
            or any(_content(cell) is not value for cell, value in self.cells)
            or any(_names(owner) - names for owner, names in self.spaces)
        )

    def numbers(self) -> dict[tuple[int, Any], Any]:
        """The plain values among what the names stand for, by place."""
        found = {(id(owner), name): _read(owner, name) for owner, name, _ in self.bindings}
        found |= {(id(cell), ""): _content(cell) for cell, _ in self.cells}
        return {place: value for place, value in found.items() if type(value) in (int, float, str, bool)}

    def restore(self) -> None:
        """Bind every name to what it was bound to."""
        for owner, names in self.spaces:
            for name in _names(owner) - names:
                _unbind(owner, name)
        for binding in self.bindings:
            if not binding.holds():
                binding.restore()
        for cell, value in self.cells:
            if _content(cell) is not value and value is not _MISSING:
                cell.cell_contents = value


def reach_of(modules: Sequence[nn.Module]) -> Reach:
    """What the code of these modules and of their classes names."""
    reach, seen = Reach(), set[int]()
    for module in modules:
        for function in functions_in(module.__dict__.values()):
            _follow(function, reach, seen)
    for of in dict.fromkeys(base for module in modules for base in type(module).__mro__):
        if not of.__module__.startswith(("torch.", "builtins")):
            _note_class(of, reach, seen)
    return reach


def _note_class(of: type, reach: Reach, seen: set[int]) -> None:
    """Note the attributes of a class, and what its methods name."""
    if id(of) in seen:
        return
    seen.add(id(of))
    reach.spaces.append((of, _names(of)))
    for name, value in list(vars(of).items()):
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        value = value.fget if isinstance(value, property) else value
        if isinstance(value, FunctionType):
            _follow(value, reach, seen)
        elif not name.startswith("__"):
            reach.bindings.append(Binding(of, name, value))


def _follow(function: FunctionType, reach: Reach, seen: set[int]) -> None:
    """Note what a function names, and what the functions that it names do."""
    work = [function]
    while work:
        each = work.pop()
        if id(each.__code__) in seen or is_library(each.__code__.co_filename):
            continue
        seen.add(id(each.__code__))
        _note_questions(each, reach)
        _note_variables(each, reach)
        _note_new_globals(each, reach)
        for value in _note_globals(each, reach):
            work += functions_in([value, _wrapped(value)])
            if isinstance(value, type) and is_own(value):
                _note_class(value, reach, seen)
        work += functions_in([*_closed_over(each), *(each.__defaults__ or ())])


def _note_questions(function: FunctionType, reach: Reach) -> None:
    """Note what a function asks by `type`, `callable`, and, where it knows torch.fx's values, `isinstance`."""
    names = {*names_in(function.__code__)}
    asked = _ASKED if "Proxy" in names else _ASKED - {"isinstance"}
    reach.namespaces += [(function.__globals__, name) for name in names & asked]


def _note_variables(function: FunctionType, reach: Reach) -> None:
    """Note the variables around a function, and its defaults."""
    reach.values += [*_closed_over(function), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    reach.cells += [(cell, _content(cell)) for cell in function.__closure__ or ()]


def _note_new_globals(function: FunctionType, reach: Reach) -> None:
    """Note the globals that a function may make: those that it binds, and any, where it asks for all of them."""
    space = function.__globals__
    fresh = globals_set_in(function.__code__) - space.keys()
    reach.bindings += [Binding(space, name, _MISSING) for name in fresh]
    if "globals" in names_in(function.__code__):
        names = _names(space)
        reach.spaces.append((space, names))
        reach.bindings += [Binding(space, name, space[name]) for name in names]


def _note_globals(function: FunctionType, reach: Reach) -> Iterator[Any]:
    """Note the globals that a function names, and yield what they stand for."""
    space = function.__globals__
    for name in names_in(function.__code__):
        if name in space:
            reach.bindings.append(Binding(space, name, space[name]))
            yield space[name]


def _wrapped(value: Any) -> Any:
    """What `functools.wraps` says that a function stands for."""
    return vars(value).get("__wrapped__") if isinstance(value, FunctionType) else None


def _closed_over(function: FunctionType) -> list[Any]:
    """What the variables around a function hold, as far as they are assigned."""
    contents: Iterable[Any] = map(_content, function.__closure__ or ())
    return [content for content in contents if content is not _MISSING]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


def _read(owner: Any, name: str) -> Any:
    return (owner if isinstance(owner, dict) else vars(owner)).get(name, _MISSING)


def _names(owner: Any) -> frozenset[str]:
    """The names that are bound in globals or in a class, Python's own apart."""
    found = owner if isinstance(owner, dict) else vars(owner)
    return frozenset(name for name in found if not name.startswith("__") and name not in _LENT)


def _unbind(owner: Any, name: str) -> None:
    if isinstance(owner, dict):
        owner.pop(name, None)
    elif name in vars(owner):
        delattr(owner, name)
