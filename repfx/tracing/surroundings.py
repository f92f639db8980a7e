"""What surrounds a forward: modes, random generators, memory that outlives it, autograd functions.

A graph holds operations on values and nothing else.  So a module is no graph, and becomes an island, whose code

- draws random numbers of a fixed shape, or seeds a generator (tracing would keep the one sample it saw),
- switches a mode (autocast, gradients, the default dtype): the graph would run in that of its surroundings,
- writes into memory that is there before and after the forward and is no value of the trace.

A function with a backward of its own is no island: it is one call in the graph, which keeps that backward.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import has_torch_function
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repfx.graph import draws
from repfx.introspection import called_by_library
from repfx.tracing.recording import RecordingTracer
from repfx.tracing.traced_values import TypeOf, callable_told, isinstance_told

_ONE_AT_A_TIME = threading.RLock()  # torch.fx changes nn.Module while it traces, for all threads


class WorldTracer(RecordingTracer):
    """A tracer that stops where the traced code depends on more than its inputs and parameters."""

    gradients = False  # whether the world of this trace records gradients
    is_computing = False  # whether the tracer itself computes something at the moment
    careful = False  # whether every module call is watched for random numbers
    _modes: tuple[Any, ...] = ()
    _states: tuple[Any, ...] = ()
    thread = 0  # the one that traces

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """As fx's, in a world with or without gradients.  One thread traces at a time; others go on as they were."""
        with (
            _ONE_AT_A_TIME,
            modes_kept(),
            torch.set_grad_enabled(self.gradients),
            _Watch(self),
            _custom_functions(self),
            _checkpoints_passed(),
            _sizes_packed(),
            _numbers_recorded(self),
            _asked_in_vain(self),
        ):
            for device in _DEVICES if self.gradients else ():  # in the other world, all is switched that can be
                torch.set_autocast_enabled(device, True)
            self.thread = threading.get_ident()
            self._modes = current_modes()
            self._states = generators()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As fx's."""
        if not self.careful:
            return super().call_module(m, forward, args, kwargs)
        before = generators()
        value = super().call_module(m, forward, args, kwargs)
        if not same_generators(before, generators()):
            self.stop_in(self.path_of_module(m), RANDOM)
        return value

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As fx's, as long as the model's code has not switched a mode."""
        if current_modes() != self._modes:
            running = [entry[0] for entry in self.module_stack.values()]
            if args and args[0] == "call_module":
                running = running[:-1]  # the module that is called has not begun to run
            self.stop_in(running[-1] if running else "", _switched(self._modes, current_modes()))
        node = super().create_node(*args, **kwargs)
        if draws(node) and not same_generators(self._states, generators()):
            self.stop(RANDOM)  # seeded for this draw, and perhaps put back behind it
        return node

    def custom_function(
        self, function: type[torch.autograd.Function], forward: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """One call of a function with a backward of its own; `args` may begin with its context."""
        raise NotImplementedError

    def rank_of(self, value: fx.Proxy) -> int:
        """How many dimensions a traced tensor has, for the choice between forms of a function of torch's.

        `torch.pow(y, 2)` takes a number or a tensor in either place, and asks a tensor whether it is as good as a
        number.  Whatever is chosen, the call is recorded as it was written.
        """
        raise NotImplementedError

    def stop(self, what: str) -> Any:
        """Give up on the module whose code runs."""
        raise NotImplementedError

    def stop_in(self, path: str, what: str) -> Any:
        """Give up on the module at a path, whose code has run."""
        raise NotImplementedError


RANDOM = "draws random numbers that do not depend on the input, or seeds a generator"
_MODES = {
    "gradients": "switches gradients on or off, which a graph would do for its surroundings",
    "autocast": "switches autocast, so its dtypes are not those of its surroundings",
    "default": "switches the default dtype or device",
}


def _switched(before: tuple[Any, ...], now: tuple[Any, ...]) -> str:
    names = ("gradients", "gradients", "autocast", "default", "default")
    return next(_MODES[name] for name, a, b in zip(names, before, now) if a != b)


class _Watch(TorchDispatchMode):
    """Sees every operation on real tensors during a trace: those are computed once, and never again."""

    def __init__(self, tracer: WorldTracer) -> None:
        super().__init__()
        self.tracer = tracer
        self._made: set[int] = set()
        self._held: set[int] | None = None  # the memory of all weights, once it is asked for

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tracer.is_computing:
            return func(*args, **kwargs)
        if any(issubclass(kind, fx.Proxy) for kind in types):
            if func is torch.ops.aten.dim.default and has_torch_function(args):
                return self.tracer.rank_of(args[0])  # a call that is about to be recorded: is this a number?
            return func(*args, **kwargs)  # a traced value refuses by itself
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.tracer.stop(RANDOM)
        if func._schema.is_mutable:
            self._check_written(func, args, kwargs)
        self._check_read(args, kwargs)
        made = func(*args, **kwargs)
        given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self._made |= {_memory(t) for t in tree_leaves(made) if isinstance(t, Tensor)} - given
        return made

    def _check_read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop before the numbers of a weight are computed with past the trace: they are another thing later."""
        if self._held is None:
            root = self.tracer.root
            self._held = {_memory(t) for t in (*root.parameters(), *root.buffers()) if t.numel()}
        if any(isinstance(t, Tensor) and _memory(t) in self._held for t in tree_leaves((args, kwargs))):
            self.tracer.stop("reads the numbers of a weight past the trace, as in a copy of a module")

    def _check_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop before something is written that was there before the trace."""
        for position, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            value = kwargs.get(argument.name) if position >= len(args) else args[position]
            if written and isinstance(value, Tensor) and _memory(value) not in self._made:
                self.tracer.stop("writes into a tensor that outlives the forward")


def _memory(tensor: Tensor) -> int:
    """What identifies a tensor's memory: none has any on the meta device, where nothing is written."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # a layout or subclass without memory of its own
        return id(tensor)


@contextmanager
def _custom_functions(tracer: WorldTracer) -> Iterator[None]:
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


def _seen(tracer: WorldTracer, cls: type[torch.autograd.Function], forward: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any) -> Any:
        if not any(isinstance(a, fx.Proxy) for a in args):
            return forward(*args)
        with torch.set_grad_enabled(tracer.gradients):  # C code has switched them off for the function's own forward
            return tracer.custom_function(cls, forward, args)

    return called


_SIZED_BY_ARGUMENTS = {torch: ("zeros", "ones", "empty", "rand", "randn"), Tensor: ("expand", "view", "reshape")}


_IN_INFERENCE_MODE = torch.is_inference_mode_enabled
_UNANSWERED = {
    "set_rng_state": RANDOM,
    "is_inference_mode_enabled": "asks for inference mode, which may be another one in the next call",
}


@contextmanager
def _asked_in_vain(tracer: WorldTracer) -> Iterator[None]:
    """Stop at functions of torch's that no graph can hold, and that leave no trace in it."""

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            other = threading.get_ident() != tracer.thread
            if other or (function is _IN_INFERENCE_MODE and called_by_library()):
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
def _numbers_recorded(tracer: WorldTracer) -> Iterator[None]:
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


@contextmanager
def _sizes_packed() -> Iterator[None]:
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
def _checkpoints_passed() -> Iterator[None]:
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


# --- modes ----------------------------------------------------------------------------------------

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def current_modes() -> tuple[Any, ...]:
    """Everything that changes what an operation does without being one of its arguments."""
    return (
        torch.is_grad_enabled(),
        _IN_INFERENCE_MODE(),
        tuple([torch.get_autocast_dtype(d) if torch.is_autocast_enabled(d) else None for d in _DEVICES]),
        torch.get_default_dtype(),
        torch.get_default_device(),
    )


@contextmanager
def modes_kept() -> Iterator[None]:
    """Put back what a forward switches for good, or switched when it was stopped."""
    before = current_modes()
    enabled = [torch.is_autocast_enabled(device) for device in _DEVICES]
    try:
        yield
    finally:
        if current_modes() != before:
            gradients, _, _, dtype, device = before
            torch.set_grad_enabled(gradients)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(device)
            for kind, was in zip(_DEVICES, enabled):
                if torch.is_autocast_enabled(kind) is not was:
                    torch.set_autocast_enabled(kind, was)


# --- random generators ----------------------------------------------------------------------------


def generators() -> tuple[Any, ...]:
    """The states of the generators that belong to nobody: Python's, NumPy's, torch's."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def same_generators(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether no generator has moved."""
    (python, numpy, torchs), (python_now, numpy_now, torchs_now) = before, now
    return (
        python == python_now
        and all(np.array_equal(a, b) for a, b in zip(numpy, numpy_now))
        and torch.equal(torchs, torchs_now)
    )


def set_generators(states: tuple[Any, ...]) -> None:
    """Put the generators into earlier states."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
