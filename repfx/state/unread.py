"""State that code which is not traced shares with code which is: attributes, containers and globals.

    self.ada.weight = style; y = self.ada(x)       the caller writes what an island reads
    y = self.attn(x); return y, self.attn.map      the caller reads what an island writes

An island's code does not run in a trace.  So what it may write is unknown for as long as the trace runs, and whoever
asks for it is no graph; and who calls it after changing what it may read is no graph either.  A layer of torch's is
no graph's leaf any more when its attributes were changed: its forward is traced instead.

Which attributes and containers an island writes is read from its code, and is sound for what that names.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from repfx.graph import modules_of
from repfx.introspection import CHANGES_CONTAINERS, is_library, names_in, source_of
from repfx.state.kept import Kept
from repfx.state.walking import functions_in, state_of, walk

Stop = Callable[[str], Any]


class Unknown:
    """What an island may have written: nothing can be done with it but to stop the trace."""

    __slots__ = ("_stop", "_what")

    def __init__(self, stop: Stop, what: str) -> None:
        object.__setattr__(self, "_stop", stop)
        object.__setattr__(self, "_what", what)

    def __getattribute__(self, name: str) -> Any:
        stop, what = object.__getattribute__(self, "_stop"), object.__getattribute__(self, "_what")
        return stop(f"reads .{what}, which is written by code that does not trace")


def _asked(self: Unknown, *args: Any) -> Any:
    return self.anything


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow",
    "rpow", "matmul", "rmatmul", "and", "rand", "or", "ror", "xor", "rxor", "neg", "pos", "abs", "invert", "eq", "ne",
    "lt", "le", "gt", "ge", "bool", "len", "iter", "next", "getitem", "setitem", "delitem", "contains", "call", "int",
    "float", "complex", "index", "hash", "repr", "str", "format", "enter", "exit", "setattr", "delattr", "copy",
    "deepcopy", "array", "reduce_ex",
):  # fmt: skip
    setattr(Unknown, f"__{_name}__", _asked)


@dataclass
class _Written:
    """What code writes, by name: attributes, and containers that it changes."""

    attributes: set[str] = field(default_factory=set)
    containers: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)  # globals that are bound anew

    def __bool__(self) -> bool:
        return bool(self.attributes or self.containers or self.names)


def unread_parts(whole: Iterable[str], modules: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """The outermost modules whose code is not traced, by path."""
    paths = set(whole)
    return {p: m for p, m in modules if p in paths and not any(p.startswith(f"{q}.") for q in paths if q != p)}


def spoil(containers: Iterable[Any], part: nn.Module, stop: Stop) -> None:
    """Make what lies in lists and dictionaries unknown that were given to a module whose code may change them."""
    given = [one for one in containers if type(one) in (list, dict)]
    if not given:
        return
    written = _written_by(_code_of(part))
    if not written.containers:
        return
    for container in given:
        for key in _keys_of(container):
            container[key] = Unknown(stop, f"[{key!r}] of what it was given")


class Unread:
    """What modules whose code is not traced may write, which nobody can read, and what they may read, as it was."""

    def __init__(self, kept: Kept, whole: Iterable[str], root: nn.Module, stop: Stop) -> None:
        """`root` is what is traced in the place of the model that `kept` is of."""
        self._kept = kept
        self._parts = unread_parts(whole, kept.modules)
        self._hidden: list[tuple[Any, Any, Any, Unknown]] = []  # table, key, value, what stands in its place
        for part in self._parts.values():
            places = _places(part, root, kept.model)
            self._hidden += [(table, key, table[key], Unknown(stop, name)) for table, key, name in places]
        for path, part in self._parts.items():
            if path not in kept.parts:  # every trace begins with the same state
                kept.parts[path] = Kept(part, modules_of(part), kept)
        self._read = {path: kept.parts[path] for path in self._parts}

    def hide(self) -> None:
        """Put what cannot be read in the place of what may be written."""
        for table, key, _, stand_in in self._hidden:
            table[key] = stand_in

    def sees_a_change(self, path: str) -> bool:
        """Whether something that the module at this path may read is another than when the trace began."""
        if path not in self._read:
            return False
        shown = self.show()
        try:
            return self._read[path].differs()
        finally:
            for table, key, stand_in in shown:
                table[key] = stand_in

    def is_altered(self, module: nn.Module) -> bool:
        """Whether a module's own attributes are other ones."""
        return self._kept.is_altered(module)

    def show(self) -> list[tuple[Any, Any, Unknown]]:
        """Put it back, where the traced code has not put something else; returns where."""
        shown = []
        for table, key, value, stand_in in reversed(self._hidden):
            if _holds(table, key, stand_in):
                table[key] = value
                shown.append((table, key, stand_in))
        return shown


def _holds(table: Any, key: Any, value: Any) -> bool:
    if isinstance(table, dict):
        return dict.get(table, key) is value
    return key < len(table) and list.__getitem__(table, key) is value


def _places(part: nn.Module, root: nn.Module, model: nn.Module) -> list[tuple[Any, Any, str]]:
    """Where a module may write: a table of attributes, a dictionary or a list, and a key of it; and its name."""
    functions = list(_code_of(part))
    written = _written_by(functions)
    if not written:
        return []
    objects = _objects(part, functions)
    if any(one is model for one in objects):
        objects.append(root)
    places = [
        *_written_attributes(written, objects),
        *_written_items(written, objects, functions),
        *_written_globals(written, functions),
    ]
    return list({(id(table), key): (table, key, name) for table, key, name in places}.values())


def _written_attributes(written: _Written, objects: Iterable[Any]) -> Iterator[tuple[Any, Any, str]]:
    for one in objects:
        own = vars(one)
        for name in written.attributes & own.keys():
            if not isinstance(own[name], nn.Module):
                yield own, name, name


def _written_items(
    written: _Written, objects: Iterable[Any], functions: Iterable[FunctionType]
) -> Iterator[tuple[Any, Any, str]]:
    for name, container in _named_containers(written.containers, objects, functions):
        for key in _keys_of(container):
            yield container, key, name


def _written_globals(written: _Written, functions: Iterable[FunctionType]) -> Iterator[tuple[Any, Any, str]]:
    for function in functions:
        space = function.__globals__
        for name in written.names & space.keys():
            yield space, name, name


def _keys_of(container: Any) -> Iterable[Any]:
    """Under what the items of a list or dictionary lie."""
    return list(container) if isinstance(container, dict) else range(len(container))


def _named_containers(
    names: Collection[str], objects: Iterable[Any], functions: Iterable[FunctionType]
) -> Iterator[tuple[str, Any]]:
    """The dictionaries and lists that code reaches by these names: as attributes, globals or variables outside it."""
    spaces = [vars(one) for one in objects]
    for function in functions:
        spaces.append(function.__globals__)
        spaces.append(_variables(function))
    for space in spaces:
        for name in names & space.keys():
            if type(space[name]) in (dict, list):
                yield name, space[name]


def _variables(function: FunctionType) -> dict[str, Any]:
    """The variables of functions around it that a function uses."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _objects(part: nn.Module, functions: Iterable[FunctionType]) -> list[Any]:
    """What the code of a module may have the attributes of: modules, and plain objects of the user's."""
    modules = [module for _, module in modules_of(part)]
    near = _near(modules, functions)
    found = modules + [one for one in near if isinstance(one, nn.Module)]
    attributes = [value for module in found for value in vars(module).values()]
    found += [one for one in walk([*near, *attributes]) if state_of(one) is not None]
    return list({id(one): one for one in found}.values())


def _near(modules: Iterable[nn.Module], functions: Iterable[FunctionType]) -> list[Any]:
    """The hooks of modules and what those are methods of, and the variables around functions."""
    hooks = [hook for module in modules for hook in _hooks(module)]
    near = [*(hook.__self__ for hook in hooks if isinstance(hook, MethodType)), *hooks]
    for function in functions:
        near += _variables(function).values()
    return near


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _code_of(part: nn.Module) -> Iterator[FunctionType]:
    """The functions that run when a module is called, torch's own apart."""
    work: list[tuple[type, FunctionType]] = []
    for _, module in modules_of(part):
        work += _entry_points(module)
    seen: set[int] = set()
    while work:
        owner, function = work.pop()
        if id(function.__code__) in seen or is_library(function.__code__.co_filename):
            continue
        seen.add(id(function.__code__))
        yield function
        for name in names_in(function.__code__):
            inner = functions_in([getattr(owner, name, None), function.__globals__.get(name)])
            work += [(owner, f) for f in inner]


def _entry_points(module: nn.Module) -> Iterator[tuple[type, FunctionType]]:
    """The functions that a call of a module begins with, and the class in which their names are looked up."""
    torchs = type(module).__module__.startswith("torch.nn")
    own = vars(module).get("forward", None if torchs else type(module).forward)
    for function in functions_in([own, *_hooks(module)]):
        yield type(module), function
    for kind in {type(hook) for hook in _hooks(module)}:
        for function in functions_in([vars(kind).get("__call__")]):
            yield kind, function


def _written_by(functions: Iterable[FunctionType]) -> _Written:
    written = _Written()
    for function in functions:
        _note_written(function, written)
    return written


def _note_written(function: FunctionType, written: _Written) -> None:
    """Note the attributes that a function assigns and the containers that it changes; every name without its text."""
    tree = source_of(function)
    if tree is None:
        written.attributes.update(names_in(function.__code__))
        written.containers.update(names_in(function.__code__), function.__code__.co_freevars)
        return
    for node in _own_nodes(tree):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Store() | ast.Del()):
                written.attributes.add(name)
            case ast.Subscript(value=base, ctx=ast.Store() | ast.Del()):
                written.containers.update(_name_of(base))
            case ast.Call(func=ast.Attribute(value=base, attr=name)) if name in CHANGES_CONTAINERS:
                written.containers.update(_name_of(base))
            case ast.Call(func=ast.Name(id="setattr"), args=[_, ast.Constant(value=str(name)), _]):
                written.attributes.add(name)
            case ast.Call(func=ast.Name(id="setattr")):
                written.attributes.update(names_in(function.__code__))
            case ast.Global(names=names):
                written.names.update(names)


def _own_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """The syntax of a function; of all that stand in the line, where it is a lambda."""
    whole = isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if whole or isinstance(node, ast.Lambda):
            yield from ast.walk(node)
        if whole:
            return


def _name_of(base: ast.expr) -> list[str]:
    match base:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [name]
        case ast.Subscript(value=inner):
            return _name_of(inner)
        case _:
            return []
