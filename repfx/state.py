"""What a forward leaves behind, or takes from outside: attributes, tensors, random numbers, autocast.

A graph holds operations on values and nothing else.  So a module is no graph, and becomes an island, whose code

- draws random numbers of a fixed shape (tracing would keep the one sample it saw),
- switches autocast on or off (the graph would run in the dtype of its surroundings),
- reads an attribute that an earlier forward wrote (tracing would keep the value of that moment).

Running a user's module never changes it: `held` puts its tensors back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn


class OutsideError(Exception):
    """A forward does something that a graph of operations does not say."""


class StateTracer(fx.Tracer):
    """A tracer that stops where the traced code depends on more than its inputs and parameters."""

    _autocast: tuple[bool, ...] = ()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """As fx's, or an `OutsideError`."""
        self._autocast = _autocast()
        with _no_random_numbers():
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As fx's, or an `OutsideError` in the innermost module that has a cause for it."""
        with _no_random_numbers():
            return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As fx's, or an `OutsideError` under autocast that the model switches itself."""
        if _autocast() != self._autocast:
            raise OutsideError("switches autocast, so its dtypes are not those of its surroundings")
        return super().create_node(*args, **kwargs)


def _autocast() -> tuple[bool, ...]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


@contextmanager
def _no_random_numbers() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise OutsideError("draws random numbers whose shape does not depend on the input")


def remembering(
    model: nn.Module, graph: fx.Graph, retrace: Callable[[nn.Module], fx.Graph], before: Attributes
) -> list[str]:
    """Paths of modules whose next forward depends on attributes that the traced one has left.

    To be called before those attributes are put back.  They matter iff tracing once more gives another graph.
    """
    known = [(path, module) for path, module in model.named_modules() if path in before]  # the rest are guards
    changed = [path for path, module in known if _differs(module, before[path])]
    if not changed:
        return []
    again = copy.copy(model)
    for name in [name for name in again.__dict__ if _is_met(name)]:
        del again.__dict__[name]
    try:
        second = retrace(again)
    except Exception:  # the user's code, given what it left: values of another trace
        return changed
    return [] if _outline(graph) == _outline(second) else changed


Attributes = dict[str, dict[str, Any]]


def attributes(model: nn.Module) -> Attributes:
    """All attributes of all modules, as they are now."""
    return {path: dict(module.__dict__) for path, module in model.named_modules()}


def _differs(module: nn.Module, before: dict[str, Any]) -> bool:
    now = module.__dict__
    if len(now) == len(before) and all(now.get(name, before) is value for name, value in before.items()):
        return False
    now = {name: value for name, value in now.items() if not _is_met(name)}
    return now.keys() != before.keys() or any(now[name] is not value for name, value in before.items())


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
    return copy.deepcopy(module, memo)


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
