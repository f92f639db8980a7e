"""Which children of a module whose code does not trace may be replaced: those it does nothing with but call.

Replacing a child by its compiled form keeps its call, not its attributes.  So a child qualifies only if
the module's own source never uses it otherwise (reading `child.weight`, handing it on).  The items of a
`ModuleList`, `ModuleDict` or `Sequential` qualify if the source only calls them: `self.blocks[i](x)`, or
`for block in self.blocks: x = block(x)`.  Where the source says otherwise, the search goes on below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from repfx.introspection import source_of
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

    def call_of(self, name: str) -> Passed | None:
        """What the calls of an attribute pass, if the class does nothing else with it."""
        return None if name in self.otherwise or name in self.items else self.called.get(name)

    def call_of_items(self, name: str) -> Passed | None:
        """What the calls of an attribute's items pass, if the class does nothing else with them."""
        return None if name in self.otherwise else self.items.get(name)


_NOTHING = _Uses()


def called_children(
    module: nn.Module, prefix: str = "", reached: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Passed]]:
    """Paths below `module` that are only ever called, and what the calls pass.

    `reached` are the names that modules above use as attributes of their children: `self.stem.conv.weight`.
    """
    uses = _uses(type(module)) or _NOTHING
    below = reached | uses.reached
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        known = _NOTHING if name in reached else uses
        call, call_of_items = known.call_of(name), known.call_of_items(name)
        if call is not None:
            yield path, call
        elif call_of_items is None or type(child) not in _CONTAINERS:
            yield from called_children(child, f"{path}.", below)
        elif name not in known.called:
            yield from ((f"{path}.{item}", call_of_items) for item, _ in child.named_children())


def _uses(kind: type) -> _Uses | None:
    """How all methods of a class use `self.name`; None where its source does not tell."""
    if _is_torchs(kind):
        return None
    uses = _Uses()
    for base in kind.__mro__:
        if base is object or _is_torchs(base):
            continue
        methods = _methods_of(base)
        if methods is None or any(map(_asks_by_name, methods)):
            return None
        if any(_hands_itself_on(function) for function in methods):
            return None
        for function in methods:
            _read(function, uses)
    return uses


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn")


def _methods_of(kind: type) -> list[ast.FunctionDef] | None:
    """The functions in the source of a class, but the one that makes the object; None where there is no source."""
    tree = source_of(kind)
    if tree is None:
        return None
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != "__init__"]


def _asks_by_name(function: ast.FunctionDef) -> bool:
    """Whether a method reaches attributes by names that are computed."""
    names = (node.id for node in ast.walk(function) if isinstance(node, ast.Name))
    return not {"getattr", "setattr", "vars"}.isdisjoint(names)


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
    calls = {id(node.func): node for node in ast.walk(function) if isinstance(node, ast.Call)}
    understood = {  # `self.name` as a container whose items are called, or counted
        *_note_indexed_calls(calls.values(), uses),
        *_note_loops(function, calls, uses),
        *_counted(calls.values()),
    }
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


def _note_indexed_calls(calls: Iterable[ast.Call], uses: _Uses) -> Iterator[int]:
    """Note calls such as `self.blocks[i](x)`, and yield what stands for the container in each."""
    for call in calls:
        match call.func:
            case ast.Subscript(value=container, slice=index) if not isinstance(index, ast.Slice):
                name = _own(container)
                if name is not None:
                    uses.note(uses.items, name, call)
                    yield id(container)


def _counted(calls: Iterable[ast.Call]) -> Iterator[int]:
    """What `len` is asked of."""
    for call in calls:
        match call:
            case ast.Call(func=ast.Name(id="len"), args=arguments):
                yield from map(id, arguments)


def _note_loops(function: ast.FunctionDef, calls: Mapping[int, ast.Call], uses: _Uses) -> Iterator[int]:
    """Note the calls in loops such as `for block in self.blocks: x = block(x)`, and yield their containers."""
    loops = _loops(function)
    for variable, container in loops:
        name = _own(container)
        if name is None:
            continue
        times = [bound for bound, _ in loops].count(variable)
        made = _calls_of(function, variable, times, calls)
        if made is None:
            continue
        for call in made:
            uses.note(uses.items, name, call)
        yield id(container)


def _calls_of(
    function: ast.FunctionDef, variable: str, times: int, calls: Mapping[int, ast.Call]
) -> list[ast.Call] | None:
    """The calls of a variable that is bound so many times; None if it is bound elsewhere, or is not only called."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == variable]
    used = [node for node in names if isinstance(node.ctx, ast.Load)]
    if len(names) - len(used) != times or not all(id(node) in calls for node in used):
        return None
    return [calls[id(node)] for node in used]


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
    """Note what each name of a target runs over."""
    parts = target.elts if isinstance(target, ast.Tuple) else []
    match source:
        case (
            ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_])
            | ast.Call(func=ast.Attribute(value=inner, attr="items"), args=[])
        ) if len(parts) == 2:
            _bind(parts[0], ast.Constant(0), found)
            _bind(parts[1], inner, found)
        case ast.Call(func=ast.Name(id="zip"), args=inners) if len(parts) == len(inners):
            for part, inner in zip(parts, inners, strict=True):
                _bind(part, inner, found)
        case (
            ast.Call(func=ast.Name(id="reversed"), args=[inner])
            | ast.Call(func=ast.Attribute(value=inner, attr="values"), args=[])
            | ast.Subscript(value=inner, slice=ast.Slice())
        ):
            _bind(target, inner, found)
        case _:
            found += [(n.id, source) for n in ast.walk(target) if isinstance(n, ast.Name)]


def _passed(call: ast.Call) -> Passed:
    starred = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    return Passed(len(call.args), frozenset(k.arg for k in call.keywords if k.arg is not None), starred)
