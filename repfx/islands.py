"""Which children of an untraceable module may be replaced: those it does nothing with but call.

Replacing a child by its compiled form keeps its call, not its attributes.  So a child qualifies only if
the module's own source never uses it otherwise (indexing, iterating, reading `child.weight`).  Where the
source says otherwise, the search goes on below that child.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn


def called_children(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Paths below `module` that are only ever called."""
    only_called = _only_called(type(module))
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if only_called is not None and name in only_called:
            yield path
        else:
            yield from called_children(child, f"{path}.")


def _only_called(kind: type) -> set[str] | None:
    """Attributes that all methods of a class use as `self.name(...)` and in no other way."""
    if kind.__module__.startswith("torch.nn"):
        return None
    called: set[str] = set()
    otherwise: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn") or base is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return None
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name != "__init__"]
        for function in functions:
            calls = {id(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    (called if id(node) in calls else otherwise).add(node.attr)
                if isinstance(node, ast.Name) and node.id in ("getattr", "setattr", "vars"):
                    return None
    return called - otherwise
