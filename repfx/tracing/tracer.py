"""The tracer: torch.fx's, with our leaves, which stops at what it cannot answer truthfully.

It is one tracer made of named parts, each a file beside this one:

    signature       which arguments are values, and which are compiled in
    recording       how operations become nodes
    leaves          which modules are one call
    surroundings    what around the forward is watched
    answers         what the code may know of a value (`sized_answers`: where the sizes of an example are known)
    traced_values   what stands for a value while the code runs
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import itertools
import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import CheckpointFunction

from repfx.graph import is_shape, note_module
from repfx.introspection import CHANGES_CONTAINERS, frame_of_caller, tests_for_none
from repfx.layers import EMITTED, OPEN, ArgumentGuard, CustomFunction, Guard
from repfx.state import Unknown, Unread, spoil
from repfx.tracing.answers import AS_TEXT, Answers
from repfx.tracing.islands import may_return_none
from repfx.tracing.leaves import computes_as_torch, computes_otherwise, draws_or_keeps, has_own_call, holds_values
from repfx.tracing.modes import RANDOM, generators, same_generators
from repfx.tracing.recording import RecordingTracer
from repfx.tracing.signature import VARIADIC, Example, Passed, SignatureTracer, example_values, guarded, templates
from repfx.tracing.sized_answers import SizedAnswers
from repfx.tracing.surroundings import Surroundings, World, entered


class Knowledge(enum.Enum):
    """What a tracer goes by."""

    STRUCTURE = "structure"
    SIZES = "sizes of the example"
    TEXTS = "sizes of the example, and how they are written out"


class Tracer(SignatureTracer, RecordingTracer):
    """torch.fx's tracer made of our parts, remembering the innermost module that stopped it."""

    proxy_buffer_attributes = True  # a buffer is read by name, like a parameter

    def __init__(
        self,
        whole: set[str],
        example: Example | None = None,
        passed: Passed | None = None,
        world: World = World(),  # noqa: B008 - it is a value, and never changes
        knowledge: Knowledge = Knowledge.STRUCTURE,
    ) -> None:
        super().__init__(autowrap_functions=())
        self.whole = whole
        self.example, self.passed = example, passed
        self.world = world
        self.answers = Answers(self)
        if example is not None and knowledge is not Knowledge.STRUCTURE:
            self.answers = SizedAnswers(self, example, spells=knowledge is Knowledge.TEXTS)
        self.compiled_in: dict[str, Any] = {}
        self.broke_at = ""
        self.refusal: fx.proxy.TraceError | None = None  # the last one; the model's own code may have caught it
        self.added: dict[str, nn.Module] = {}  # what the trace gives to the root, once the root's code has run
        self.outermost: FrameType | None = None  # where the trace began
        self.thread = 0  # the one that traces
        self.is_computing = False  # whether the tracer itself computes something at the moment
        self.made: list[weakref.ref[Any]] = []  # all traced values
        self.unread: Unread | None = None  # what code that is not traced may read and write, if there is such code
        self._surroundings: Surroundings | None = None
        self._broken = False
        self._leaves: dict[type, bool] = {}

    # --- from the first to the last operation ---

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.outermost = frame_of_caller(0)
        try:
            with entered(self, self.world) as self._surroundings:
                graph = super().trace(root, concrete_args)
            stray = self.answers.stray_word()
            if stray is not None:
                self.stop_in(stray, AS_TEXT)
            for name, module in self.added.items():
                self.root.add_module(name, module)
            return graph
        finally:
            if self.unread is not None:
                self.unread.show()
            self.outermost = None  # torch.fx leaves the tracer in a reference cycle
            self.answers.forget()

    def stop(self, what: str) -> NoReturn:
        """Give up on the module whose code runs, even if that code catches the error."""
        if not self._broken:
            self.broke_at = self.scope.module_path
        self.refusal = fx.proxy.TraceError(what)
        raise self.refusal

    def stop_in(self, path: str, what: str) -> NoReturn:
        """Give up on the module at a path, whose code has run."""
        if not self._broken:
            self._broken, self.broke_at = True, path
        self.stop(what)

    # --- arguments ---

    def create_args_for_root(self, *args: Any, **options: Any) -> Any:
        """As the signature's; from here on the model's code runs."""
        found = super().create_args_for_root(*args, **options)
        if self.unread is not None:
            self.unread.hide()
        return found

    def templates(self, root: nn.Module, parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
        """What of the arguments is compiled in."""
        if self.example is not None:
            self.answers.given = example_values(parameters, self.example)
        if isinstance(root, fx.GraphModule):
            return super().templates(root, parameters)
        found = templates(parameters, self.example, self.passed)
        return {**found, **{name: None for name in self.compiled_in if name in found}}

    def guard(self, parameters: Sequence[inspect.Parameter], found: Any, values: Any) -> None:
        """One module that checks all arguments that are compiled in."""
        if isinstance(self.root, fx.GraphModule):
            return
        expected = guarded(parameters, found)
        if self.passed is not None:
            expected = {name: value for name, value in expected.items() if value is not OPEN}
        if expected:
            name, starred = type(self.root).__name__, [p.name for p in parameters if p.kind in VARIADIC]
            guard = ArgumentGuard(name, expected, starred)
            self.add_guard("arguments", guard, (), {key: values[key] for key in expected})

    # --- what the trace adds to the root ---

    def add_guard(self, path: str, module: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """Call a new module of the root's here."""
        name = self._add(path, module)
        node = self.create_proxy("call_module", name, args, kwargs).node
        node.meta["guard"] = True
        return node

    def _add(self, base: str, module: nn.Module) -> str:
        """Give the root a module under the first name that is free."""
        name = next(n for n in _names(base) if n not in self.added and not hasattr(self.root, n))
        self.added[name] = module
        note_module(self.root, name, module)
        return name

    def _adopt(self, m: nn.Module) -> None:
        """Give a module that no other module owns (it lies in a plain list or dictionary) a path on the root."""
        name = self._add(f"unregistered_{type(m).__name__}", m)
        assert self.submodule_paths is not None
        for path, part in m.named_modules():
            self.submodule_paths.setdefault(part, f"{name}.{path}" if path else name)

    def take_away(self, guard: fx.Node) -> None:
        """Erase a call of `_add`'s, and what it calls."""
        del self.added[str(guard.target)]
        self.graph.erase_node(guard)

    def forget_after(self, last: fx.Node) -> None:
        """Take back everything that was recorded after a node."""
        recorded = itertools.takewhile(lambda node: node is not last, reversed(list(self.graph.nodes)))
        for node in recorded:
            if node.op == "call_module" and str(node.target) in self.added:
                self.take_away(node)
            else:
                self.graph.erase_node(node)
        self.answers.note_erased()

    # --- operations ---

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], *rest: Any, **options: Any) -> fx.Proxy:
        """As fx's, but for what changes a list or dictionary that came from outside: a graph holds values."""
        args = tuple([a.item() if issubclass(type(a), np.generic) else a for a in args])  # to torch these are Python's
        owner: Any = args[0] if args else None
        if self._changes_container(kind, target, owner):
            self.stop("changes a list or dictionary that it was given")
        if target is operator.getitem and issubclass(type(owner), fx.Proxy) and is_shape(owner.node):
            self.answers.check_index(owner.node, args[1])
        return super().create_proxy(kind, target, args, *rest, **options)

    def _changes_container(self, kind: str, target: Any, owner: Any) -> bool:
        """Whether a call changes a list or dictionary; tensors have methods of the same names."""
        if kind == "call_method" and target in CHANGES_CONTAINERS and not hasattr(Tensor, target):
            return True
        assigns = target is operator.setitem or (kind == "call_method" and target == "sort")
        return assigns and self.answers.is_container(owner)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """As fx's, as long as the surroundings are those in which the trace began."""
        assert self._surroundings is not None
        self._surroundings.check_modes(self, kind)
        node = super().create_node(kind, *args, **kwargs)
        self._surroundings.check_draw(self, node)
        return node

    def create_arg(self, a: Any) -> Any:
        """torch.fx makes every dictionary a plain one; here an ordered one, or a dataclass that is one, stays so."""
        kind = type(a)
        if issubclass(kind, dict) and kind is not dict:
            return self._create_mapping(a)
        if issubclass(kind, FakeTensor) and isinstance(self.answers, SizedAnswers):
            self.stop("holds on to a value of the trace")
        return super().create_arg(a)

    def _create_mapping(self, a: Any) -> fx.Node:
        """A node that makes a dictionary of the same class."""
        if dataclasses.is_dataclass(a):
            items = {f.name: self.create_arg(getattr(a, f.name)) for f in dataclasses.fields(a)}
            return self.create_node("call_function", type(a), (), items)
        if type(a) is not OrderedDict:
            self.stop(f"makes a {type(a).__name__}, which a graph cannot")
        pairs = [(self.create_arg(key), self.create_arg(value)) for key, value in a.items()]
        return self.create_node("call_function", OrderedDict, (pairs,), {})

    def custom_function(
        self, function: type[torch.autograd.Function], forward: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """One call of a function with a backward of its own; gradient checkpointing is only what it runs."""
        if function is CheckpointFunction:
            _, run, _, *rest = args
            return run(*rest)
        before = next(iter(reversed(self.graph.nodes)))
        made = forward(*args)  # seen and forgotten: only what kind of result it has counts
        parts = made if isinstance(made, tuple) else None
        returned = (made,) if parts is None else parts
        if not all(part is None or isinstance(part, Tensor) for part in returned):
            self.stop(f"calls {function.__name__}, which returns other things than tensors")
        self.forget_after(before)
        given = args[1:] if isinstance(args[0], FunctionCtx) else args
        module = CustomFunction(function, None if parts is None else len(parts))
        name = self._add(f"custom_{function.__name__}", module)
        value = self.create_proxy("call_module", name, tuple(given), {})
        return value if parts is None else _parts_of(value, parts)

    # --- traced values ---

    def proxy(self, node: fx.Node) -> fx.Proxy:
        self.answers.note(node)
        value = self.answers.values.standing_for(self.answers.kind_of(node))(node, self)
        self.made.append(weakref.ref(value))
        return value

    def attribute_proxy(self, name: str, value: Tensor) -> fx.Proxy:
        """The traced value of a parameter or buffer, whose sizes are structure."""
        proxy = self.answers.values.tensor(super().attribute_proxy(name, value).node, self, value)
        self.made.append(weakref.ref(proxy))
        return proxy

    def attribute_of(self, value: fx.Proxy, name: str) -> fx.proxy.Attribute:
        """`x.shape`, or the method that `x.view` is."""
        values = self.answers.values
        made = (values.shape if name == "shape" else values.attribute)(value, name)
        self.made.append(weakref.ref(made))
        return made

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._is_none_of_ours() else super().getattr(attr, attr_val, parameter_proxy_cache)

    def rank_of(self, value: fx.Proxy) -> int:
        """As `Watched` has it."""
        return self.answers.rank_of(value)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """What torch.fx asks, too."""
        return self.answers.to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """As `to_bool`."""
        return self.answers.iter(obj)

    # --- modules ---

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.whole or isinstance(m, EMITTED):
            return True
        of = type(m)
        if of not in self._leaves:  # a subclass that computes what torch's own module computes is one too
            self._leaves[of] = computes_as_torch(of) or super().is_leaf_module(m, module_qualified_name)
        if not self._leaves[of] or computes_otherwise(m):  # replaced while the code ran
            return False
        altered = self.unread is not None and self.unread.is_altered(m)
        return not altered and not holds_values(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._is_none_of_ours():
            return forward(*args, **kwargs)
        self._check_call(m, (*args, *kwargs.values()))
        if not self._is_registered(m):
            if holds_values(m):  # made here of values: only its code goes into the graph
                return forward(*args, **kwargs)
            self._adopt(m)
        path = self.path_of_module(m)
        self._check_shared(m, path)
        value = self._record_call(m, forward, args, kwargs)
        if path in self.whole:
            spoil((*args, *kwargs.values()), m, self.stop)
        self._mark_call(m, value)
        return value

    def _is_none_of_ours(self) -> bool:
        """Whether no code of the model's runs: the tracer computes sizes, or another thread finds nn.Module lent."""
        return self.is_computing or threading.get_ident() != self.thread

    def _check_call(self, m: nn.Module, given: tuple[Any, ...]) -> None:
        """Stop before a call that is more than a forward, or is given what nobody can read."""
        if has_own_call(m):
            self.stop(f"calls {type(m).__name__}, whose class does more in a call than its forward")
        for value in given:
            if type(value) is Unknown:
                value.asked()

    def _is_registered(self, m: nn.Module) -> bool:
        """Whether a module has a path in the model."""
        return self.submodule_paths is None or m in self.submodule_paths

    def _check_shared(self, m: nn.Module, path: str) -> None:
        """Stop before code that does not trace is called where it and its caller depend on more than values."""
        if self.unread is not None and self.unread.sees_a_change(path):
            self.stop(f"changes what {path} may read, whose code does not trace")
        if path in self.whole and may_return_none(m) and tests_for_none(frame_of_caller(), self.outermost):
            self.stop(f"calls {path}, which may return None, and asks for that")

    def _record_call(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As fx's; the innermost call that fails is remembered."""
        before = generators() if self.world.careful else ()
        try:
            value = super().call_module(m, forward, args, kwargs)
            if self.world.careful and not same_generators(before, generators()):
                self.stop_in(self.path_of_module(m), RANDOM)
        except Exception:
            if not self._broken:
                self._broken = True
                self.broke_at = self.path_of_module(m)
            raise
        return value

    def _mark_call(self, m: nn.Module, value: Any) -> None:
        """Note what a call does beside what it returns."""
        if draws_or_keeps(m) and issubclass(type(value), fx.Proxy):
            value.node.meta["unread"] = True  # never dead, though nobody may read what it returns
        if isinstance(m, Guard):
            value.node.meta["guard"] = True


def _parts_of(value: Any, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """The items of a traced tuple, with None where the other has None."""
    return tuple([None if part is None else value[i] for i, part in enumerate(like)])


def _names(base: str) -> Iterator[str]:
    """A name, and the names to try after it."""
    yield base
    yield from (f"{base}_{i}" for i in itertools.count(1))
