"""What may be assumed of a module whose code does not trace, from its source.

Which of its children may be replaced: those it does nothing with but call.

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


def may_overwrite(module: nn.Module) -> bool:
    """Whether anything in a module or its hooks works in place, so that its arguments may change.

    Sound but incomplete: `y += 1` on a value of its own counts too, and so does source that cannot be read.
    """
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            return True
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        if any(_works_in_place(hook) for hook in hooks if type(hook).__name__ not in ("WeightNorm", "SpectralNorm")):
            return True
        kinds = [k for k in type(part).__mro__ if not k.__module__.startswith("torch.nn") and k is not object]
        if any(_works_in_place(kind) for kind in kinds):
            return True
    return False


def _works_in_place(code: object) -> bool:
    """Whether source assigns to items, augments names, or calls something_ (init aside)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return True
    built = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "train")]
    skipped = {id(n) for function in built for n in ast.walk(function)}
    return any(_is_in_place(n) for n in ast.walk(tree) if id(n) not in skipped)


def _is_in_place(node: ast.AST) -> bool:
    match node:
        case ast.AugAssign():
            return True
        case ast.Assign(targets=targets):
            return any(isinstance(t, ast.Subscript) for t in targets)
        case ast.Call(func=ast.Attribute(attr=name)) if name.endswith("_") and not name.endswith("__"):
            return True
        case ast.Call(keywords=keywords):
            return any(k.arg in ("inplace", "out") for k in keywords)
        case _:
            return False
