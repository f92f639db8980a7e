"""What a model's code can reach beside its modules: globals, closures, class attributes, plain objects.

A forward may count in a global, keep its last input in an object that it shares with others, or draw from a
generator of its file.  A trace runs that forward, so it has to know these places: to see that they were used and
to leave them as they were.

Sound for what the code names; what is reached by computed names (`globals()[key]`) is not seen here, only by
comparing the compiled model with the original.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repfx.introspection import globals_set_in, is_library, names_in

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_NO_STATE = (Tensor, nn.Module, ModuleType, type, FunctionType, str, bytes, int, float, complex, type(None))
ASKED = {"type", "callable", "isinstance"}  # what code asks of a value by a function that cannot be told anything
_NAMESPACES = (SimpleNamespace, argparse.Namespace)


@dataclass
class Reach:
    """Places outside the modules of a model that its code names."""

    bindings: list[tuple[Any, str, Any]] = field(default_factory=list)  # (globals or class, name, value)
    values: list[Any] = field(default_factory=list)  # what lies in closures and defaults
    cells: list[tuple[CellType, Any]] = field(default_factory=list)  # variables that functions share
    spaces: list[tuple[Any, frozenset[str]]] = field(default_factory=list)  # globals or class, and all its names
    namespaces: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # of code that asks, and what it calls

    def changed(self) -> bool:
        """Whether a name is bound to something else now."""
        return (
            not all(_is_bound(owner, name, value) for owner, name, value in self.bindings)
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
        for owner, name, value in self.bindings:
            if _is_bound(owner, name, value):
                continue
            if value is _MISSING:
                _unbind(owner, name)
            elif isinstance(owner, dict):
                owner[name] = value
            else:
                setattr(owner, name, value)
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
            reach.bindings.append((of, name, value))


def functions_in(values: Iterable[Any], depth: int = 4) -> Iterator[FunctionType]:
    """The functions among these values: kept as they are, bound, with arguments, or in a list or dictionary."""
    for value in values:
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, MethodType | functools.partial):
            yield from functions_in([getattr(value, "__func__", None) or getattr(value, "func", None)])
        elif type(value) in (list, tuple) and value and depth:
            yield from functions_in(itertools.islice(value, _WIDEST), depth - 1)
        elif type(value) is dict and value and depth:
            yield from functions_in(itertools.islice(value.values(), _WIDEST), depth - 1)


def _follow(function: FunctionType, reach: Reach, seen: set[int]) -> None:
    """Note what a function names, and what the functions that it names do."""
    work = [function]
    while work:
        each = work.pop()
        if id(each.__code__) in seen or is_library(each.__code__.co_filename):
            continue
        seen.add(id(each.__code__))
        names = {*names_in(each.__code__)} - (set() if "Proxy" in names_in(each.__code__) else {"isinstance"})
        reach.namespaces += [(each.__globals__, name) for name in names & ASKED]
        reach.values += _closed_over(each)
        reach.cells += [(cell, _content(cell)) for cell in each.__closure__ or ()]
        fresh = globals_set_in(each.__code__) - each.__globals__.keys()
        reach.bindings += [(each.__globals__, name, _MISSING) for name in fresh]
        if "globals" in names_in(each.__code__):
            reach.spaces.append((each.__globals__, _names(each.__globals__)))
            reach.bindings += [(each.__globals__, name, each.__globals__[name]) for name in _names(each.__globals__)]
        reach.values += [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
        for name in names_in(each.__code__):
            if name not in each.__globals__:
                continue
            value = each.__globals__[name]
            reach.bindings.append((each.__globals__, name, value))
            work += functions_in([value, vars(value).get("__wrapped__") if isinstance(value, FunctionType) else None])
            if isinstance(value, type) and _is_own(value):
                _note_class(value, reach, seen)
        work += functions_in([*_closed_over(each), *(each.__defaults__ or ())])


def _closed_over(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    return found


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


_MISSING = object()


def _read(owner: Any, name: str) -> Any:
    return (owner if isinstance(owner, dict) else vars(owner)).get(name, _MISSING)


def _is_bound(owner: Any, name: str, value: Any) -> bool:
    """Whether a name stands for what it stood for; torch.fx wraps functions that were registered by `torch.fx.wrap`."""
    now = _read(owner, name)
    return now is value or (type(now) is FunctionType and now.__dict__.get("__wrapped__", now) is value)


def _names(owner: Any) -> frozenset[str]:
    """The names that are bound in globals or in a class, Python's own apart."""
    found = owner if isinstance(owner, dict) else vars(owner)
    return frozenset(name for name in found if not name.startswith("__") and name not in _LENT)


_LENT = (*ASKED, "_abc_impl")  # names that a trace gives to a module, and what Python keeps in a class


def _unbind(owner: Any, name: str) -> None:
    if isinstance(owner, dict):
        owner.pop(name, None)
    elif name in vars(owner):
        delattr(owner, name)


def state_of(value: Any) -> dict[str, Any] | None:
    """The attributes of an object that holds state of the user's; None of anything else."""
    if issubclass(type(value), fx.Proxy):
        return None
    if isinstance(value, _NO_STATE):
        return None
    own = type(value) in _NAMESPACES or _is_own(type(value))
    try:
        held = vars(value) if own else None
    except Exception:  # it has none, or its class answers in its own way
        return None
    return held if isinstance(held, dict) else None


def _is_own(of: type) -> bool:
    """Whether a class is the user's: of no library, or of no file at all."""
    if of.__module__ == "__main__":
        return True
    top = of.__module__.partition(".")[0]
    file = getattr(sys.modules.get(of.__module__), "__file__", None)
    if file is None:
        return top not in sys.stdlib_module_names and top not in ("torch", "numpy") and bool(of.__flags__ & _HEAP_TYPE)
    return not is_library(file)


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by Python code


def is_generator(value: Any) -> bool:
    """Whether a value is a random generator."""
    return isinstance(value, _GENERATORS)


def generator_state(generator: Any) -> Any:
    """The state of a random generator, comparable by `repr`-free equality of its parts."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put a random generator into an earlier state."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def same_state(a: Any, b: Any) -> bool:
    """Whether two states of one generator are the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)


def walk(values: Iterable[Any]) -> Iterator[Any]:
    """These values and all that lie in them, in containers and in the attributes of plain objects."""
    work, seen = [(value, 0) for value in values], set[int]()
    while work:
        value, depth = work.pop()
        if id(value) in seen or depth > _DEPTH or len(seen) > _MOST:
            continue
        seen.add(id(value))
        yield value
        inner = contents(value)
        work += [(item, depth + 1) for item in inner]


_DEPTH, _MOST, _WIDEST = 6, 20_000, 1_000  # a bound on the search, not on what is right: the comparison sees the rest


def contents(value: Any) -> list[Any]:
    """What lies directly in a container or plain object; a traced value is neither, whatever it stands for."""
    if issubclass(type(value), fx.Proxy):
        return []
    if isinstance(value, dict):
        return list(itertools.islice(value.values(), _WIDEST))
    if isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        return list(itertools.islice(value, _WIDEST))
    own = state_of(value)
    return [] if own is None else list(own.values())
