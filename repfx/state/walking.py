"""What lies in values: in containers, in the attributes of plain objects, and which functions are among it."""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor, fx, nn

from repfx.introspection import is_library

_NO_STATE = (Tensor, nn.Module, ModuleType, type, FunctionType, str, bytes, int, float, complex, type(None))
_NAMESPACES = (SimpleNamespace, argparse.Namespace)
_DEPTH, _MOST, _WIDEST = 6, 20_000, 1_000  # a bound on the search, not on what is right: the comparison sees the rest
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by Python code


def walk(values: Iterable[Any]) -> Iterator[Any]:
    """These values and all that lie in them, in containers and in the attributes of plain objects."""
    work, seen = [(value, 0) for value in values], set[int]()
    while work:
        value, depth = work.pop()
        if id(value) in seen or depth > _DEPTH or len(seen) > _MOST:
            continue
        seen.add(id(value))
        yield value
        work += [(item, depth + 1) for item in _contents(value)]


def _contents(value: Any) -> list[Any]:
    """What lies directly in a container or plain object; a traced value is neither, whatever it stands for."""
    if issubclass(type(value), fx.Proxy):
        return []
    if isinstance(value, dict):
        return list(itertools.islice(value.values(), _WIDEST))
    if isinstance(value, list | tuple | set | frozenset) or type(value) is deque:
        return list(itertools.islice(value, _WIDEST))
    own = state_of(value)
    return [] if own is None else list(own.values())


def state_of(value: Any) -> dict[str, Any] | None:
    """The attributes of an object that holds state of the user's; None of anything else."""
    if issubclass(type(value), fx.Proxy) or isinstance(value, _NO_STATE):
        return None
    if type(value) not in _NAMESPACES and not is_own(type(value)):
        return None
    try:
        held = vars(value)
    except Exception:  # it has none, or its class answers in its own way
        return None
    return held if isinstance(held, dict) else None


def is_own(of: type) -> bool:
    """Whether a class is the user's: of no library, or of no file at all."""
    if of.__module__ == "__main__":
        return True
    file = getattr(sys.modules.get(of.__module__), "__file__", None)
    if file is not None:
        return not is_library(file)
    top = of.__module__.partition(".")[0]
    is_known = top in sys.stdlib_module_names or top in ("torch", "numpy")
    return not is_known and bool(of.__flags__ & _HEAP_TYPE)


def functions_in(values: Iterable[Any], depth: int = 4) -> Iterator[FunctionType]:
    """The functions among these values: kept as they are, bound, with arguments, or in a list or dictionary."""
    for value in values:
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, MethodType | functools.partial):
            yield from functions_in([getattr(value, "__func__", None) or getattr(value, "func", None)])
        elif type(value) in (list, tuple, dict) and depth:
            items = value.values() if type(value) is dict else value
            yield from functions_in(itertools.islice(items, _WIDEST), depth - 1)
