"""What a forward leaves behind, or takes from outside: attributes, tensors, random numbers, autocast.

A graph holds operations on values and nothing else.  So a module is no graph, and becomes an island, whose code

- draws random numbers of a fixed shape (tracing would keep the one sample it saw),
- switches autocast on or off (the graph would run in the dtype of its surroundings),
- reads an attribute that an earlier forward wrote (tracing would keep the value of that moment).

Running a user's module never changes it: `held` puts its tensors back.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.recording import RecordingTracer
from repfx.walking import tensors_of


class OutsideError(Exception):
    """A forward does something that a graph of operations does not say."""


class StateTracer(RecordingTracer):
    """A tracer that stops where the traced code depends on more than its inputs and parameters."""

    _autocast: tuple[bool, ...] = ()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """As fx's, or an `OutsideError`."""
        self._autocast = _autocast()
        return _drawing_nothing(super().trace, root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As fx's, or an `OutsideError` in the innermost module that has a cause for it."""
        return super().call_module(m, partial(_drawing_nothing, forward), args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As fx's, or an `OutsideError` under autocast that the model switches itself."""
        if _autocast() != self._autocast:
            raise OutsideError("switches autocast, so its dtypes are not those of its surroundings")
        return super().create_node(*args, **kwargs)


def _autocast() -> tuple[bool, ...]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _drawing_nothing(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or an `OutsideError` where it draws random numbers."""
    before = torch.get_rng_state()
    value = run(*args, **kwargs)
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise OutsideError("draws random numbers whose shape does not depend on the input")
    return value


class Kept:
    """What all modules of a model hold in their attributes at one moment, and the way back to it."""

    def __init__(self, model: nn.Module, modules: Sequence[tuple[str, nn.Module]]) -> None:
        """`modules`: all of them, by path."""
        self.model = model
        self.modules = modules
        self.before = [module.__dict__.copy() for _, module in modules]
        held = _inside(v for values in self.before for v in values.values() if type(v) in _CONTAINERS)
        self._empty = [container for container in held if not container]
        self._filled = [(container, _copied(container)) for container in held if container]
        self._flags = [(t, t.requires_grad) for t in tensors_of(modules) if t.is_leaf]

    def touched(self) -> bool:
        """Whether anything may be different now.  Looks at identities only, so it is quick and asks no value."""
        return (
            any(self._empty)
            or not all(_identical(container, content) for container, content in self._filled)
            or not all(_identical(m.__dict__, before) for (_, m), before in zip(self.modules, self.before))
        )

    def restore(self) -> list[nn.Module]:
        """Put everything back.  Returns the modules whose numbers were other ones."""
        for tensor, flag in self._flags:
            if tensor.requires_grad is not flag:
                tensor.requires_grad_(flag)
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
            (one, not _identical(one, was) if id(one) in tables else _remembers(one, was)) for one, was in filled
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


def _inside(containers: Iterable[Any]) -> list[Any]:
    """These containers and those in them."""
    found: dict[int, Any] = {}
    work = list(containers)
    while work:
        container = work.pop()
        if id(container) in found:
            continue
        found[id(container)] = container
        if container:
            values = container.values() if isinstance(container, dict) else container
            work += [value for value in values if type(value) in _CONTAINERS]
    return list(found.values())


def _remembers(container: Any, before: Any) -> bool:
    """Whether a container lacks something, or holds something new that the next forward may not have made itself.

    A value that depends on parameters alone is a result kept to save work.
    """
    if isinstance(container, dict):
        fresh = [value for key, value in container.items() if key not in before or before[key] is not value]
        lost = any(key not in container for key in before)
    elif isinstance(container, set):
        fresh, lost = list(container - before), bool(before - container)
    else:
        paired = list(itertools.zip_longest(container, before, fillvalue=_NOTHING))
        fresh = [now for now, was in paired if now is not was and now is not _NOTHING]
        lost = any(now is _NOTHING for now, _ in paired)
    return lost or any(not isinstance(value, fx.Proxy) or _depends_on_input(value.node) for value in fresh)


_NOTHING = object()


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


def _holds(values: Mapping[str, Any], written: set[int]) -> bool:
    """Whether any of these values is a container that was written to, or has one in it."""
    if not written:
        return False
    own = _inside(v for name, v in values.items() if type(v) in _CONTAINERS and name != "_modules")
    return any(id(container) in written for container in own)


def _copied(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else container.copy()


def _identical(now: Any, before: Any) -> bool:
    """Whether both hold the very same objects, in the same order."""
    if len(now) != len(before) or not all(map(operator.is_, now, before)):
        return False
    return not isinstance(now, dict) or all(map(operator.is_, now.values(), before.values()))


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
    elif isinstance(container, set) or not _same(container, content):
        container.clear()
        container.update(content)


def counts(module: nn.Module, before: Mapping[str, object]) -> bool:
    """Whether a number that the module kept is another one now."""
    return any(
        isinstance(value, int | float)
        and key in before
        and type(before[key]) in (int, float, bool)
        and value != before[key]
        for key, value in module.__dict__.items()
    )


def remembering(
    model: nn.Module, graph: fx.Graph, retrace: Callable[[nn.Module], fx.Graph], changed: list[str]
) -> list[str]:
    """Paths of modules whose next forward depends on attributes that the traced one has left.

    To be called before those attributes are put back; `changed` are the modules that have some.  They matter
    iff tracing once more gives another graph.
    """
    if not changed:
        return []
    again = copy.copy(model)
    for name in [name for name in again.__dict__ if _is_met(name)]:
        del again.__dict__[name]
    try:
        second = retrace(again)
    except Exception:  # the user's code, given what it left: values of another trace
        return changed
    finally:
        for node in graph.nodes:
            for user in [user for user in node.users if user.graph is not graph]:
                del node.users[user]
    earlier = {given for node in second.nodes for given in node.all_input_nodes if given.graph is not second}
    return [] if _outline(graph) == _outline(second) and not any(map(_depends_on_input, earlier)) else changed


def _differs(module: nn.Module, before: Mapping[str, Any]) -> bool:
    now = module.__dict__
    if _identical(now, before):
        return False
    return not _same({name: value for name, value in now.items() if not _is_met(name)}, before)


def _is_met(name: str) -> bool:
    """Whether an attribute is a constant that fx met on the way and stored on the root."""
    return name.startswith("_tensor_constant")


def _outline(graph: fx.Graph) -> list[str]:
    """A graph as text, node by node."""
    told = [n for n in graph.nodes if not n.meta.get("guard")]
    return [f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in told]


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of a module that holds what its last forward computed (the older weight_norm's weight)."""
    memo = {} if memo is None else memo
    for part in module.modules() if module._modules else (module,):
        for value in part.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    if type(module) not in _PLAIN_MODULES or module._modules:
        return copy.deepcopy(module, memo)
    if id(module) not in memo:
        memo[id(module)] = own = type(module).__new__(type(module))
        own.__dict__.update((name, _copied_value(value, memo)) for name, value in module.__dict__.items())
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
    """Put back what running the model changes in its parameters and buffers."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    plain = [t for t in tensors if t.device.type != "meta" and t.layout is torch.strided]
    saved = [(t, t.detach().clone()) for t in plain]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                if not torch.equal(tensor, value):
                    tensor.data.copy_(value)
