"""What torch and Python lend to the traced code while it runs, so that it does not go past the trace.

A kept `Swish.apply`, `torch.zeros(n, 1)`, `torch.tensor(n)`, `type(x)`: each leads to C code, which would look at a
traced value and see nothing.  Everything is put back when the trace ends.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from repfx.introspection import called_by_library
from repfx.tracing.modes import RANDOM, is_inference_mode
from repfx.tracing.traced_values import TypeOf, callable_told, isinstance_told


class Lender(Protocol):
    """What is asked of the tracer."""

    thread: int  # the one that traces
    world: Any

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Proxy:
        """Record an operation."""

    def custom_function(
        self, function: type[torch.autograd.Function], forward: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """One call of a function with a backward of its own; `args` may begin with its context."""

    def stop(self, what: str) -> Any:
        """Give up on the module whose code runs."""


@contextmanager
def custom_functions(tracer: Lender) -> Iterator[None]:
    """Let the tracer see every call of an autograd function.

    A kept `apply = Swish.apply` leads straight into C code, which then asks the class for its `forward`.  The class
    answers through its metaclass, which is Python; that is where the tracer stands.
    """
    meta = type(torch.autograd.Function)
    earlier = meta.__dict__.get("__getattribute__")
    plain: Callable[[type, str], Any] = earlier or type.__getattribute__

    def answer(cls: type[torch.autograd.Function], name: str) -> Any:
        found = plain(cls, name)
        return _seen(tracer, cls, found) if name == "forward" else found

    type.__setattr__(meta, "__getattribute__", answer)
    try:
        yield
    finally:
        if earlier is None:
            type.__delattr__(meta, "__getattribute__")
        else:
            type.__setattr__(meta, "__getattribute__", earlier)


def _seen(tracer: Lender, cls: type[torch.autograd.Function], forward: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any) -> Any:
        if not any(isinstance(a, fx.Proxy) for a in args):
            return forward(*args)
        # C code has switched gradients off for the function's own forward
        with torch.set_grad_enabled(tracer.world.gradients):
            return tracer.custom_function(cls, forward, args)

    return called


_UNANSWERED = {
    "set_rng_state": RANDOM,
    "is_inference_mode_enabled": "asks for inference mode, which may be another one in the next call",
}


@contextmanager
def asked_in_vain(tracer: Lender) -> Iterator[None]:
    """Stop at functions of torch's that no graph can hold, and that leave no trace in it."""

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            other = threading.get_ident() != tracer.thread
            if other or (function is is_inference_mode and called_by_library()):
                return function(*args, **kwargs)  # torch itself wants to know, or somebody else
            return tracer.stop(_UNANSWERED[function.__name__])

        return called

    homes = [(home, name) for name in _UNANSWERED for home in (torch, torch.random) if hasattr(home, name)]
    earlier: list[tuple[Any, str, Any]] = [(home, name, getattr(home, name)) for home, name in homes]
    for home, name, function in earlier:
        setattr(home, name, stopping(function))
    earlier.append((fx._symbolic_trace, "is_fx_tracing", fx._symbolic_trace.is_fx_tracing))
    fx._symbolic_trace.is_fx_tracing = lambda: False  # so it is when the module itself runs
    try:
        yield
    finally:
        for home, name, function in earlier:
            setattr(home, name, function)


@contextmanager
def numbers_recorded(tracer: Lender) -> Iterator[None]:
    """Let `torch.tensor(n)` of traced numbers be a call in the graph: it looks at its argument in C code."""
    function = torch.tensor

    def called(data: Any, *args: Any, **kwargs: Any) -> Any:
        traced = [item for item in tree_leaves(data) if issubclass(type(item), fx.Proxy)]
        if not traced or any(isinstance(item, Tensor) for item in traced):
            return function(data, *args, **kwargs)
        return tracer.create_proxy("call_function", function, (data, *args), kwargs)

    torch.tensor = called
    try:
        yield
    finally:
        torch.tensor = function


_SIZED_BY_ARGUMENTS = {torch: ("zeros", "ones", "empty", "rand", "randn"), Tensor: ("expand", "view", "reshape")}


@contextmanager
def sizes_packed() -> Iterator[None]:
    """Let `torch.zeros(n, 1)` of a traced n be what `torch.zeros((n, 1))` is: only the latter reaches the trace."""

    def packing(function: Any, first: int) -> Any:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if len(args) > first + 1 and any(isinstance(a, fx.Proxy) for a in args[first:]):
                args = (*args[:first], tuple(args[first:]))
            return function(*args, **kwargs)

        return called

    earlier = [(home, name, vars(home).get(name)) for home, names in _SIZED_BY_ARGUMENTS.items() for name in names]
    for home, name, _ in earlier:
        setattr(home, name, packing(getattr(home, name), 1 if home is Tensor else 0))
    try:
        yield
    finally:
        for home, name, own in earlier:
            if own is None:
                delattr(home, name)  # it was inherited
            else:
                setattr(home, name, own)


@contextmanager
def types_told(namespaces: Iterable[tuple[dict[str, Any], str]]) -> Iterator[None]:
    """Let code that asks `type(x)` or `callable(x)` hear that of what x stands for."""
    changed = [(names, name) for names, name in namespaces if name not in names]
    for names, name in changed:
        names[name] = _TOLD[name]
    try:
        yield
    finally:
        for names, name in changed:
            names.pop(name, None)


_TOLD: dict[str, Any] = {"type": TypeOf, "callable": callable_told, "isinstance": isinstance_told}


def _keep_nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    """What gradient checkpointing does around the function that it runs, where nothing is computed again."""
    yield


@contextmanager
def checkpoints_passed() -> Iterator[None]:
    """Let gradient checkpointing be the function that it runs: what it keeps of its arguments is no part of a graph.

    Users import `checkpoint` by its name; what it looks up when it is called is the generator behind it.
    """
    earlier = {name: getattr(checkpoint, name) for name in _AROUND_CHECKPOINTS if hasattr(checkpoint, name)}
    for name in earlier:
        setattr(checkpoint, name, _keep_nothing)
    try:
        yield
    finally:
        for name, function in earlier.items():
            setattr(checkpoint, name, function)


_AROUND_CHECKPOINTS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
