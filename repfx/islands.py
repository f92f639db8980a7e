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

from repfx.arguments import Passed


def called_children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Passed]]:
    """Paths below `module` that are only ever called, and what the calls pass."""
    only_called = _only_called(type(module))
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if only_called is not None and name in only_called:
            yield path, only_called[name]
        else:
            yield from called_children(child, f"{path}.")


def _only_called(kind: type) -> dict[str, Passed] | None:
    """Attributes that all methods of a class use as `self.name(...)` and in no other way."""
    if kind.__module__.startswith("torch.nn"):
        return None
    called: dict[str, Passed] = {}
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
            calls = {id(n.func): n for n in ast.walk(function) if isinstance(n, ast.Call)}
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    if id(node) in calls:
                        passed = _passed(calls[id(node)])
                        called[node.attr] = called.get(node.attr, passed).joined(passed)
                    else:
                        otherwise.add(node.attr)
                if isinstance(node, ast.Name) and node.id in ("getattr", "setattr", "vars"):
                    return None
    return {name: passed for name, passed in called.items() if name not in otherwise}


def _passed(call: ast.Call) -> Passed:
    starred = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    return Passed(len(call.args), frozenset(k.arg for k in call.keywords if k.arg is not None), starred)
