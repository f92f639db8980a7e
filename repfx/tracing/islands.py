"""What may be assumed of a module whose code does not trace, from its source: what it may write, and return."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from torch import nn

from repfx.graph import NORMALISING
from repfx.introspection import source_of
from repfx.layers import CustomFunction


def may_overwrite(module: nn.Module) -> bool:
    """Whether anything in a module or its hooks works in place, so that its arguments may change.

    Sound but incomplete: `y += 1` on a value of its own counts too, and so does source that cannot be read.
    """
    for part in module.modules():
        if getattr(part, "inplace", False) is True or any(map(_works_in_place, _code_of(part))):
            return True
    return False


def _code_of(part: nn.Module) -> Iterator[object]:
    """What runs when a module is called: its hooks and classes, torch's own apart."""
    for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
        if type(hook) not in NORMALISING:
            yield hook
    if isinstance(part, CustomFunction):
        yield part.function
    for kind in type(part).__mro__:
        if kind is not object and not kind.__module__.startswith("torch.nn"):
            yield kind


def may_return_none(module: nn.Module) -> bool:
    """Whether the code of a module may return None, or something with None in it."""
    if module._forward_hooks:
        return True
    tree = source_of(type(module).forward) if "forward" not in vars(module) else None
    if tree is None:
        return not type(module).__module__.startswith("torch.nn")
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return not returned or any(map(_may_hold_none, returned))


def _may_hold_none(value: ast.expr | None) -> bool:
    """Whether None stands in what is returned, or nothing does."""
    return value is None or any(isinstance(node, ast.Constant) and node.value is None for node in ast.walk(value))


def _works_in_place(code: object) -> bool:
    """Whether source assigns to items, augments names, or calls something_ (init aside)."""
    tree = source_of(code)
    if tree is None:
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
