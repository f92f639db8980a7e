"""What may be assumed of a module whose code does not trace, from its source.

Which of its children may be replaced: those it does nothing with but call.

Replacing a child by its compiled form keeps its call, not its attributes.  So a child qualifies only if
the module's own source never uses it otherwise (reading `child.weight`, handing it on).  The items of a
`ModuleList`, `ModuleDict` or `Sequential` qualify if the source only calls them: `self.blocks[i](x)`, or
`for block in self.blocks: x = block(x)`.  Where the source says otherwise, the search goes on below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from repfx.graph import NORMALISING
from repfx.introspection import source_of
from repfx.layers import CustomFunction
from repfx.tracing.signature import Passed

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass
class _Uses:
    """How a class uses its attributes: what the calls of each pass, of itself or of its items."""

    called: dict[str, Passed] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)  # attributes of anything but self
    items: dict[str, Passed] = field(default_factory=dict)
    otherwise: set[str] = field(default_factory=set)

    def note(self, into: dict[str, Passed], name: str, call: ast.Call) -> None:
        """One more call."""
        passed = _passed(call)
        into[name] = into.get(name, passed).joined(passed)


def called_children(
    module: nn.Module, prefix: str = "", reached: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Passed]]:
    """Paths below `module` that are only ever called, and what the calls pass.

    `reached` are the names that modules above use as attributes of their children: `self.stem.conv.weight`.
    """
    uses = _uses(type(module))
    below = reached if uses is None else reached | uses.reached
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        known = uses is not None and name not in uses.otherwise and name not in reached
        if uses is not None and known and name in uses.called and name not in uses.items:
            yield path, uses.called[name]
        elif uses is not None and known and name in uses.items and type(child) in _CONTAINERS:
            if name not in uses.called:
                yield from ((f"{path}.{item}", uses.items[name]) for item, _ in child.named_children())
        else:
            yield from called_children(child, f"{path}.", below)


def _uses(kind: type) -> _Uses | None:
    """How all methods of a class use `self.name`; None where its source does not tell."""
    if kind.__module__.startswith("torch.nn"):
        return None
    uses = _Uses()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn") or base is object:
            continue
        tree = source_of(base)
        if tree is None:
            return None
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name != "__init__"]
        if any(
            isinstance(n, ast.Name) and n.id in ("getattr", "setattr", "vars") for f in functions for n in ast.walk(f)
        ):
            return None
        if any(_hands_itself_on(function) for function in functions):
            return None
        for function in functions:
            _read(function, uses)
    return uses


_TELLS_OF_PARTS = (
    "modules", "children", "named_modules", "named_children", "parameters", "named_parameters", "buffers",
    "named_buffers", "state_dict", "get_submodule", "get_parameter", "get_buffer", "apply", "_modules", "__dict__",
)  # fmt: skip


def _hands_itself_on(function: ast.FunctionDef) -> bool:
    """Whether a method gives `self` to other code, or asks for all of its parts: `for part in self.modules()`."""
    understood: set[int] = set()
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Name(id="self") as owner, attr=name):
                if name in _TELLS_OF_PARTS:
                    return True
                understood.add(id(owner))
            case ast.Call(func=ast.Name(id="super"), args=args):
                understood |= set(map(id, args))
    names = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == "self"]
    return any(id(name) not in understood for name in names)


def _read(function: ast.FunctionDef, uses: _Uses) -> None:
    """Note how one method uses the attributes of self."""
    calls = {id(n.func): n for n in ast.walk(function) if isinstance(n, ast.Call)}
    understood: set[int] = set()  # `self.name` as a container whose items are called, or counted
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            name = _own(node.func.value)
            if name is not None and not isinstance(node.func.slice, ast.Slice):
                understood.add(id(node.func.value))
                uses.note(uses.items, name, node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
            understood.update(id(a) for a in node.args)
    for variable, container in _loops(function):
        name = _own(container)
        loads = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == variable]
        bound = sum(1 for v, _ in _loops(function) if v == variable)
        stored = sum(1 for n in loads if not isinstance(n.ctx, ast.Load))
        used = [n for n in loads if isinstance(n.ctx, ast.Load)]
        if name is not None and bound == stored and all(id(n) in calls for n in used):
            understood.add(id(container))
            for n in used:
                uses.note(uses.items, name, calls[id(n)])
    for node in ast.walk(function):
        name = _own(node)
        if name is None and isinstance(node, ast.Attribute):
            uses.reached.add(node.attr)
        if name is None or id(node) in understood:
            continue
        if id(node) in calls:
            uses.note(uses.called, name, calls[id(node)])
        else:
            uses.otherwise.add(name)


def _own(node: ast.AST) -> str | None:
    """`name` of `self.name`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def _loops(function: ast.FunctionDef) -> list[tuple[str, ast.AST]]:
    """(variable, what it runs over) of all loops and comprehensions, `enumerate` and `zip` looked through."""
    found: list[tuple[str, ast.AST]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.comprehension):
            _bind(node.target, node.iter, found)
    return found


def _bind(target: ast.expr, source: ast.expr, found: list[tuple[str, ast.AST]]) -> None:
    parts = target.elts if isinstance(target, ast.Tuple) else []
    match source:
        case ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]) if len(parts) == 2:
            _bind(parts[0], ast.Constant(0), found)
            _bind(parts[1], inner, found)
        case ast.Call(func=ast.Name(id="zip"), args=inners) if len(parts) == len(inners):
            for part, inner in zip(parts, inners, strict=True):
                _bind(part, inner, found)
        case ast.Call(func=ast.Name(id="reversed"), args=[inner]):
            _bind(target, inner, found)
        case ast.Call(func=ast.Attribute(value=inner, attr="values"), args=[]):
            _bind(target, inner, found)
        case ast.Call(func=ast.Attribute(value=inner, attr="items"), args=[]) if len(parts) == 2:
            _bind(parts[0], ast.Constant(0), found)
            _bind(parts[1], inner, found)
        case ast.Subscript(value=inner, slice=ast.Slice()):
            _bind(target, inner, found)
        case _:
            found += [(n.id, source) for n in ast.walk(target) if isinstance(n, ast.Name)]


def _passed(call: ast.Call) -> Passed:
    starred = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    return Passed(len(call.args), frozenset(k.arg for k in call.keywords if k.arg is not None), starred)


def may_overwrite(module: nn.Module) -> bool:
    """Whether anything in a module or its hooks works in place, so that its arguments may change.

    Sound but incomplete: `y += 1` on a value of its own counts too, and so does source that cannot be read.
    """
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            return True
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        if any(_works_in_place(hook) for hook in hooks if type(hook) not in NORMALISING):
            return True
        if isinstance(part, CustomFunction) and _works_in_place(part.function):
            return True
        kinds = [k for k in type(part).__mro__ if not k.__module__.startswith("torch.nn") and k is not object]
        if any(_works_in_place(kind) for kind in kinds):
            return True
    return False


def may_return_none(module: nn.Module) -> bool:
    """Whether the code of a module may return None, or something with None in it."""
    if module._forward_hooks:
        return True
    tree = source_of(type(module).forward) if "forward" not in vars(module) else None
    if tree is None:
        return not type(module).__module__.startswith("torch.nn")
    returns = [n for n in ast.walk(tree) if isinstance(n, ast.Return)]
    found = [n.value for n in returns if n.value is not None]
    if len(found) < len(returns) or not found:
        return True
    return any(isinstance(n, ast.Constant) and n.value is None for value in found for n in ast.walk(value))


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
