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
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repfx.introspection import is_library, names_in

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_NO_STATE = (Tensor, nn.Module, ModuleType, type, FunctionType, str, bytes, int, float, complex, type(None))
_NAMESPACES = (SimpleNamespace, argparse.Namespace)


@dataclass
class Reach:
    """Places outside the modules of a model that its code names."""

    bindings: list[tuple[Any, str, Any]] = field(default_factory=list)  # (globals or class, name, value)
    values: list[Any] = field(default_factory=list)  # what lies in closures and defaults
    namespaces: list[dict[str, Any]] = field(default_factory=list)  # of code that asks for `type(...)`

    def changed(self) -> bool:
        """Whether a name is bound to something else now."""
        return any(_read(owner, name) is not value for owner, name, value in self.bindings)

    def restore(self) -> None:
        """Bind every name to what it was bound to."""
        for owner, name, value in self.bindings:
            if _read(owner, name) is value:
                continue
            if isinstance(owner, dict):
                owner[name] = value
            else:
                setattr(owner, name, value)


def reach_of(modules: Sequence[nn.Module]) -> Reach:
    """What the code of these modules and of their classes names."""
    reach, seen = Reach(), set[int]()
    for module in modules:
        for function in functions_in(module.__dict__.values()):
            _follow(function, reach, seen)
    for of in dict.fromkeys(base for module in modules for base in type(module).__mro__):
        if of.__module__.startswith(("torch.", "builtins")):
            continue
        for name, value in list(vars(of).items()):
            value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            value = value.fget if isinstance(value, property) else value
            if isinstance(value, FunctionType):
                _follow(value, reach, seen)
            elif not name.startswith("__"):
                reach.bindings.append((of, name, value))
    return reach


def functions_in(values: Iterable[Any]) -> Iterator[FunctionType]:
    """The functions among these values: kept as they are, bound, with arguments, or in a list or dictionary."""
    for value in values:
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, MethodType | functools.partial):
            yield from functions_in([getattr(value, "__func__", None) or getattr(value, "func", None)])
        elif type(value) in (list, tuple) and value:
            yield from functions_in(value)
        elif type(value) is dict and value:
            yield from functions_in(value.values())


def _follow(function: FunctionType, reach: Reach, seen: set[int]) -> None:
    """Note what a function names, and what the functions that it names do."""
    work = [function]
    while work:
        each = work.pop()
        if id(each.__code__) in seen or is_library(each.__code__.co_filename):
            continue
        seen.add(id(each.__code__))
        if "type" in names_in(each.__code__) and "type" not in each.__globals__:
            reach.namespaces.append(each.__globals__)
        reach.values += _closed_over(each)
        reach.values += [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
        for name in names_in(each.__code__):
            if name not in each.__globals__:
                continue
            value = each.__globals__[name]
            reach.bindings.append((each.__globals__, name, value))
            work += functions_in([value, getattr(value, "__wrapped__", None)])
        work += functions_in([*_closed_over(each), *(each.__defaults__ or ())])


def _closed_over(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    return found


def _read(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, dict) else vars(owner).get(name)


def state_of(value: Any) -> dict[str, Any] | None:
    """The attributes of an object that holds state of the user's; None of anything else."""
    if issubclass(type(value), fx.Proxy):
        return None
    if isinstance(value, _NO_STATE) or not hasattr(value, "__dict__"):
        return None
    of = type(value)
    if of in _NAMESPACES:
        return vars(value)
    home = sys.modules.get(of.__module__)
    file = getattr(home, "__file__", None)
    library = home is None or file is None or is_library(file)
    own = of.__module__ == "__main__" or not library
    return vars(value) if own and isinstance(vars(value), dict) else None


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


_DEPTH, _MOST = 6, 20_000  # a bound on the search, not on what is right: the comparison sees the rest


def contents(value: Any) -> list[Any]:
    """What lies directly in a container or plain object; a traced value is neither, whatever it stands for."""
    if issubclass(type(value), fx.Proxy):
        return []
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        return list(value)
    own = state_of(value)
    return [] if own is None else list(own.values())
