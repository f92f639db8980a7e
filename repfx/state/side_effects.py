"""What a forward leaves behind in its modules, and the way back.

A module that reads an attribute which an earlier forward wrote is no graph (tracing would keep the value of that
moment) and becomes an island.  Running a user's module never changes it: `held` puts its tensors back.
"""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repfx.errors import UserError, first_line
from repfx.graph import INDEX, modules_of, tensors_of
from repfx.state.reach import generator_state, is_generator, reach_of, same_state, set_generator_state, state_of, walk


class Kept:
    """What a model holds in its attributes, and its code elsewhere, at one moment; and the way back to it."""

    def __init__(self, model: nn.Module, modules: Sequence[tuple[str, nn.Module]], within: Kept | None = None) -> None:
        """`modules`: all of them, by path.  `within` is of a model that holds this one, at the same moment."""
        self.model = model
        self.modules = modules
        self._is_part = within is not None
        self.before = [module.__dict__.copy() for _, module in modules]
        self._reach = reach_of([module for _, module in modules])
        self.namespaces = self._reach.namespaces
        held = [v for values in self.before for v in values.values() if type(v) not in _SCALARS]
        bare = [v for v in held if type(v) in _CONTAINERS and not v]  # most: every module has ten tables of hooks
        inside = list(walk(v for v in held if type(v) not in _CONTAINERS or v))
        known = {*map(id, inside), *map(id, bare)}
        outside = [v for v in walk([*self._reach.values, *(v for *_, v in self._reach.bindings)]) if id(v) not in known]
        own, others = _holders(inside), _holders(outside)
        self._empty = [*bare, *(container for container in (*own, *others) if not container)]
        copies: dict[int, Any] = {} if within is None else within.copies
        self._filled = [(c, copies[id(c)] if id(c) in copies else _copied(c)) for c in (*own, *others) if c]
        self._outside = {id(container) for container in others}
        self._generators = [(v, generator_state(v)) for v in (*inside, *outside) if is_generator(v)]
        arrays = [v for v in (*inside, *outside) if _is_array(v)]
        self._arrays = [(v, copies[id(v)] if id(v) in copies else v.copy()) for v in arrays]
        self.copies: dict[int, Any] = {id(one): content for one, content in (*self._filled, *self._arrays)}
        self.parts: dict[str, Kept] = {}  # of modules whose code is not traced, by path, once they are asked for
        self._own: dict[int, dict[str, Any]] = {}  # by module, once it is asked for
        self._content: dict[int, Any] = {}  # by container
        self._flags = [(t, t.requires_grad) for t in tensors_of(modules) if t.is_leaf]

    def drew(self) -> bool:
        """Whether a random generator of the model's own has moved."""
        return any(not same_state(generator_state(one), state) for one, state in self._generators)

    def changed_outside(self) -> bool:
        """Whether the code has left something beside its modules which it may read the next time.

        A value that does not depend on the values of the input is a result kept to save work.
        """
        if self._reach.changed() or any(not same_state(one, was) for one, was in self._arrays):
            return True
        filled = [*((empty, type(empty)()) for empty in self._empty if empty), *self._filled]
        return any(id(one) in self._outside and _remembers(one, was, depends_on_values) for one, was in filled)

    def touched(self) -> bool:
        """Whether anything may be different now.  Looks at identities only, so it is quick and asks no value."""
        return (
            any(self._empty)
            or not all(self._holds_the_same(container, content) for container, content in self._filled)
            or not all(_identical(m.__dict__, before) for (_, m), before in zip(self.modules, self.before))
        )

    def numbers(self, shell: nn.Module) -> dict[tuple[int, Any], Any]:
        """Every plain value that the code may count with, and the length of every container, by place.

        `shell` is traced in the place of the model.
        """
        tables = [shell.__dict__, *(module.__dict__ for path, module in self.modules if path)]
        containers = [*self._empty, *(one for one, _ in self._filled)]
        found: dict[tuple[int, Any], Any] = {(id(one), len): len(one) for one in containers}
        for one in (*tables, *containers):
            key = 0 if one is shell.__dict__ else id(one)
            found |= {(key, name): value for name, value in _entries(one) if type(value) in _PLAIN}
        return found | self._reach.numbers()

    def differs(self) -> bool:
        """Whether anything is another than it was, beside the modules too."""
        arrays = any(not same_state(one, was) for one, was in self._arrays)
        return self.touched() or self._reach.changed() or arrays or self.drew()

    def is_altered(self, module: nn.Module) -> bool:
        """Whether a module, or a part of it, has other attributes, parameters or buffers than it had."""
        if not self._own:
            self._own = {id(one): before for (_, one), before in zip(self.modules, self.before)}
            self._content = {id(container): content for container, content in self._filled}
        for part in module.modules() if module._modules else (module,):
            before = self._own.get(id(part))
            if before is None:
                continue  # made on the way
            tables = (part._parameters, part._buffers)
            if not _identical(part.__dict__, before):
                return True
            if not all(_identical(table, self._content.get(id(table), {})) for table in tables):
                return True
        return False

    def _holds_the_same(self, container: Any, content: Any) -> bool:
        """As `_identical`; of a part, which is asked at each of its calls, a large container's ends must do."""
        if not self._is_part or len(container) <= _LARGE or not isinstance(container, dict | list):
            return _identical(container, content)
        same = len(container) == len(content)
        return same and all(map(operator.is_, _ends(container), _ends(content)))

    def restore(self) -> list[nn.Module]:
        """Put everything back.  Returns the modules whose numbers were other ones."""
        for tensor, flag in self._flags:
            if tensor.requires_grad is not flag:
                tensor.requires_grad_(flag)
        self.restore_outside()
        if not self.touched():
            return []
        for container, content in [*((empty, type(empty)()) for empty in self._empty if empty), *self._filled]:
            _put_back(container, content)
        counting = []
        for (_, module), before in zip(self.modules, self.before):
            if not _same(module.__dict__, before):
                counting += [module] if counts(module, before) else []
                module.__dict__.clear()
                module.__dict__.update(before)
        return counting

    def restore_outside(self) -> None:
        """Put back what lies beside the modules."""
        for generator, state in self._generators:
            if not same_state(generator_state(generator), state):
                set_generator_state(generator, state)
        self._reach.restore()
        for array, content in self._arrays:
            if not same_state(array, content):
                array[:] = content
        for container, content in [*((empty, type(empty)()) for empty in self._empty if empty), *self._filled]:
            if id(container) in self._outside:
                _put_back(container, content)

    def changed(self, shell: nn.Module, before: Mapping[str, Any]) -> list[str]:
        """Paths of the modules that do not hold what they held.

        `shell` is a copy of the model to which guards may have been added; `before` is what it held itself.
        """
        children = all(shell._modules.get(name) is child for name, child in self.model._modules.items())
        if children and not self.touched() and not _differs(shell, before):
            return []
        held = {path: before if path == "" else values for (path, _), values in zip(self.modules, self.before)}
        known = [(path, module) for path, module in shell.named_modules() if path in held]  # the rest are guards
        tables = {id(table) for values in self.before for table in (values["_parameters"], values["_buffers"])}
        filled = [*((empty, type(empty)()) for empty in self._empty if empty), *self._filled]
        differs = (
            (one, not _identical(one, was) if id(one) in tables else _remembers(one, was, _depends_on_input))
            for one, was in filled
        )
        written = {id(one) for one, new in differs if new}
        return [path for path, module in known if _differs(module, held[path]) or _holds(held[path], written)]

    def rebuilt(self, shell: nn.Module, added: Collection[str]) -> list[str]:
        """Paths of the modules that hold other modules or hooks than before, but for what the trace `added` to `shell`.

        `shell` as for `changed`.
        """
        own = {name: child for name, child in shell._modules.items() if name not in added}
        found = [] if _same(own, self.model._modules) else [""]
        if self.touched():
            held = {id(container): content for container, content in self._filled}
            hooks = (values[name] for values in self.before for name in _HOOKS)
            if any(not _same(table, held.get(id(table), {})) for table in hooks):
                return [""]  # whoever registered it is around here
            inner = [(path, module._modules) for path, module in self.modules if path]
            found += [path for path, children in inner if not _same(children, held.get(id(children), {}))]
        return found


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_CONTAINERS = {dict, OrderedDict, defaultdict, Counter, list, set, deque}  # hooks are kept in ordered ones


_NO_HOLDERS = {str, int, float, bool, type(None), torch.Size}
_SCALARS = {str, int, float, bool, type(None), Tensor, nn.Parameter, torch.Size}


def _is_array(value: Any) -> bool:
    """Whether a value is memory that code may write to by index."""
    return isinstance(value, bytearray) or (isinstance(value, np.ndarray) and value.ndim > 0 and value.flags.writeable)


def _holders(values: Iterable[Any]) -> list[Any]:
    """The containers among these values, and the attributes of the plain objects."""
    found = []
    for value in values:
        if type(value) in _CONTAINERS:
            found.append(value)
        elif type(value) not in _SCALARS and (own := state_of(value)) is not None:
            found.append(own)
    return found


def _remembers(container: Any, before: Any, depends: Callable[[fx.Node], bool]) -> bool:
    """Whether a container lacks something, or holds something new that the next forward may not have made itself.

    A value that does not depend on the input, as `depends` has it, is a result kept to save work.
    """
    now, was = _entries(container), _entries(before)
    earlier = {key: id(value) for key, value in was}
    fresh = [value for key, value in now if earlier.get(key, 0) != id(value)]
    lost = not set(earlier) <= {key for key, _ in now}
    return lost or any(not issubclass(type(value), fx.Proxy) or depends(value.node) for value in fresh)


def _entries(container: Any) -> list[tuple[Any, Any]]:
    """What a container holds, each under a key that asks no traced value for its hash."""
    if isinstance(container, dict):
        return [(key if type(key) in _SCALARS else id(key), value) for key, value in dict.items(container)]
    if isinstance(container, set):
        return [(id(item), item) for item in container]
    return list(enumerate(container))


def _depends_on_input(node: fx.Node) -> bool:
    work, seen = [node], {node}
    while work:
        step = work.pop()
        if step.op == "placeholder":
            return True
        fresh = [given for given in step.all_input_nodes if given not in seen]
        seen.update(fresh)
        work += fresh
    return False


_SIZES = ("shape", "ndim", "size", "dim", "numel")
_OTHER_FACTS = ("dtype", "device", "layout", "is_cuda", "requires_grad")


def depends_on_values(node: fx.Node) -> bool:
    """Whether a value depends on the numbers of an input, or on a size of it that the trace has not decided.

    What is kept under a key of sizes is found again for those sizes; without that, for any.
    """
    decided = {_expression(n.args[0]) for n in node.graph.nodes if n.meta.get("decides") == "value"}
    work, seen = [node], {node}
    while work:
        step = work.pop()
        if step.op == "placeholder":
            return True
        if decided and _expression(step) in decided:
            continue
        name = step.args[1] if step.target is getattr else step.target
        if step.op in ("call_function", "call_method") and name in _SIZES:
            return True
        if step.op in ("call_function", "call_method") and name in _OTHER_FACTS:
            continue
        fresh = [given for given in step.all_input_nodes if given not in seen]
        seen.update(fresh)
        work += fresh
    return False


def _expression(value: Any) -> Any:
    """What a number is computed by: the same for `x.shape[2]` and `x.size(2)`, read anywhere."""
    if not isinstance(value, fx.Node):
        return tuple(map(_expression, value)) if isinstance(value, list | tuple) else repr(value)
    if value.op in ("placeholder", "get_attr") or value.op == "call_module":
        return value
    if value.target == "size" and len(value.args) == 2:
        return "size", *map(_expression, value.args)
    owner = value.args[0] if value.args else None
    of_shape = isinstance(owner, fx.Node) and owner.args[1:] == ("shape",) and owner.target is getattr
    if value.target is operator.getitem and of_shape:
        return "size", _expression(owner.args[0]), _expression(value.args[1])  # type: ignore[union-attr]
    return value.target, *map(_expression, value.args), *map(_expression, value.kwargs.values())


def _holds(values: Mapping[str, Any], written: set[int]) -> bool:
    """Whether any of these values is a container that was written to, or has one in it."""
    if not written:
        return False
    own = walk(v for name, v in values.items() if type(v) not in _SCALARS and name != "_modules")
    return any(id(container) in written for container in _holders(own))


def _copied(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else container.copy()


def _identical(now: Any, before: Any) -> bool:
    """Whether both hold the very same objects, in the same order."""
    if len(now) != len(before):
        return False
    if isinstance(now, dict):  # an ordered one would ask its keys for their hash on the way, and one may be traced
        keys = all(map(operator.is_, dict.__iter__(now), dict.__iter__(before)))
        return keys and all(map(operator.is_, dict.values(now), dict.values(before)))
    return all(map(operator.is_, now, before))


_LARGE = 20_000
_PLAIN = (int, float, str, bool)


def _ends(container: dict[Any, Any] | list[Any]) -> Iterator[Any]:
    values = dict.values(container) if isinstance(container, dict) else container
    yield from itertools.islice(values, 1_000)
    yield from itertools.islice(reversed(values), 1_000)


def _same(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> bool:
    """Whether both hold the very same values by the same names, in any order."""
    return _identical(now, before) or (
        now.keys() == before.keys() and all(now[key] is value for key, value in before.items())
    )


def _put_back(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, deque):
        container.clear()
        container.extend(content)
    elif isinstance(container, set) or not _identical(container, content):  # a key may be a traced value
        container.clear()
        container.update(content)


def counts(module: nn.Module, before: Mapping[str, object]) -> bool:
    """Whether a number that the module kept is another one now."""
    return any(
        issubclass(type(value), int | float)
        and key in before
        and type(before[key]) in (int, float, bool)
        and value != before[key]
        for key, value in module.__dict__.items()
    )


def retraced(
    model: nn.Module, added: Collection[str], graph: fx.Graph, retrace: Callable[[nn.Module], fx.Graph]
) -> fx.Graph | None:
    """A second trace of a model that finds what the first one, `graph`, has left, before that is put back.

    `added` are the modules that the first trace gave to the model.
    None where the user's code, given that, fails, or goes on with a value of the first trace.
    """
    again = shallow(model)
    again.__dict__["_modules"] = {name: part for name, part in model._modules.items() if name not in added}
    for name in [name for name in again.__dict__ if is_met(name)]:
        del again.__dict__[name]
    try:
        second = retrace(again)
    except Exception:
        return None
    finally:
        for node in graph.nodes:
            for user in [user for user in node.users if user.graph is not graph]:
                del node.users[user]
    earlier = {given for node in second.nodes for given in node.all_input_nodes if given.graph is not second}
    return None if any(map(_depends_on_input, earlier)) else second


def _differs(module: nn.Module, before: Mapping[str, Any]) -> bool:
    now = module.__dict__
    if _identical(now, before):
        return False
    ours, theirs = ({n: v for n, v in held.items() if not is_met(n)} for held in (now, before))
    return not _same(ours, theirs)


def is_met(name: str) -> bool:
    """Whether an attribute is a constant that fx met on the way and stored on the root, or ours."""
    return name.startswith("_tensor_constant") or name == INDEX


def shallow(module: nn.Module) -> nn.Module:
    """Another module of the same attributes; `copy.copy` is what a class may forbid (parametrized ones do)."""
    own: nn.Module = object.__new__(type(module))
    own.__dict__.update(module.__dict__)
    return own


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, whose hooks and functions reach the copy where they reached the module.

    Also of a module that holds what its last forward computed.  What its code reaches as a global stays that global.
    """
    memo = {} if memo is None else memo
    parts = list(module.modules()) if module._modules else [module]
    if type(module) in _PLAIN_MODULES and len(parts) == 1:
        return _copied_plain(module, memo)
    for value in walk(v for part in parts for name, v in part.__dict__.items() if name not in _TABLES):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo.setdefault(id(value), value.detach().clone())
    if any(not type(part).__module__.startswith("torch.nn") for part in parts):
        for *_, value in reach_of(parts).bindings:
            if type(value) in _CONTAINERS or state_of(value) is not None:
                memo.setdefault(id(value), value)
    try:
        own = copy.deepcopy(module, memo)
    except Exception as error:  # what lies in a module may forbid it: locks, open files, generators
        raise UserError(
            f"{type(module).__name__} cannot be copied: {type(error).__name__}: {first_line(error)}; a compiled model "
            "is a copy, so keep what it holds somewhere else, or give its class a __deepcopy__"
        ) from error
    if own.training is not module.training:  # a class of its own may copy itself in its own way
        own.train(module.training)
    for part in own.modules() if own._modules else (own,):
        tables: tuple[dict[Any, Any], ...] = (part.__dict__, part._forward_hooks, part._forward_pre_hooks)
        for table in tables:
            table.update({name: _rebound(value, memo) for name, value in table.items()})
    return own


_TABLES = ("_parameters", "_modules")


def _rebound(value: Any, memo: Mapping[int, Any]) -> Any:
    """A function whose variables are the copies of what they were: Python copies no function."""
    if type(value) is functools.partial:
        return functools.partial(_rebound(value.func, memo), *value.args, **value.keywords)
    if not isinstance(value, FunctionType):
        return value
    try:
        held = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # not assigned yet
        return value
    defaults, named = value.__defaults__ or (), value.__kwdefaults__ or {}
    fresh = [one if one is value else _rebound(memo.get(id(one), one), memo) for one in held]
    own_defaults = tuple(memo.get(id(one), one) for one in defaults)
    own_named = {name: memo.get(id(one), one) for name, one in named.items()}
    before, after = (*held, *defaults, *named.values()), (*fresh, *own_defaults, *own_named.values())
    if all(map(operator.is_, after, before)):
        return value
    cells = tuple(CellType(one) for one in fresh)
    own = FunctionType(value.__code__, value.__globals__, value.__name__, own_defaults or None, cells or None)
    own.__kwdefaults__, own.__qualname__ = own_named or None, value.__qualname__
    own.__dict__.update(value.__dict__)
    return own


def _copied_plain(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) not in memo:
        memo[id(module)] = plain = type(module).__new__(type(module))
        plain.__dict__.update((name, _copied_value(value, memo)) for name, value in module.__dict__.items())
    found: nn.Module = memo[id(module)]
    return found


_PLAIN_MODULES = {
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Identity,
    nn.Dropout,
}


def _copied_value(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; most attributes of a module are constants, or containers with nothing in them."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    return type(value)() if type(value) in (dict, OrderedDict, list, set) and not value else copy.deepcopy(value, memo)


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Put back what running the model changes in its tensors: registered ones, and those that its code reaches."""
    modules = modules_of(model)
    reach = reach_of([module for _, module in modules])
    values = [v for _, module in modules for v in module.__dict__.values() if type(v) not in _NO_HOLDERS]
    reached = [v for v in walk([*values, *reach.values, *(v for *_, v in reach.bindings)]) if isinstance(v, Tensor)]
    tensors = {id(t): t for t in (*tensors_of(modules), *reached)}.values()
    plain = [t for t in tensors if t.device.type != "meta" and t.layout is torch.strided]
    saved = [(t, t.detach().clone()) for t in plain]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                if not torch.equal(tensor, value):
                    tensor.data.copy_(value)
