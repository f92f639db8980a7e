"""The tracer: torch.fx's, with our leaves, which stops at what it cannot answer truthfully.

Code that asks a traced value for a number or a truth stops it; `repfx.tracing.example_tracer` knows the sizes of an
example and can answer more.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import CheckpointFunction

from repfx.graph import SPLITS, Shapes, is_shape, module_at, note_module, part_sizes, split_dim
from repfx.introspection import CHANGES_CONTAINERS, frame_of_caller, may_be_caught, place, tests_for_none
from repfx.layers import EMITTED, OPEN, ArgumentGuard, CustomFunction, Guard, SizeGuard
from repfx.state import Unknown, Unread, spoil
from repfx.tracing.islands import may_return_none
from repfx.tracing.proxy_queries import kind
from repfx.tracing.signature import VARIADIC, Example, Passed, SignatureTracer, example_values, guarded, templates
from repfx.tracing.surroundings import WorldTracer
from repfx.tracing.traced_values import (
    TracedAttribute,
    TracedMapping,
    TracedProxy,
    TracedSequence,
    TracedShape,
    TracedTensor,
)

_OWN_FORWARD = (
    nn.modules.batchnorm._BatchNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


COMPUTING = ("forward", "_conv_forward", "_output_padding")  # what torch's own layers compute with


def _computes_as(of: type[nn.Module], kind: type[nn.Module]) -> bool:
    """Whether a class has all that its torch class computes with from there."""
    return all(getattr(of, name, None) is getattr(kind, name, None) for name in COMPUTING)


def has_own_call(module: nn.Module) -> bool:
    """Whether calling a module is more than calling its forward, by its class."""
    if isinstance(module, fx.GraphModule):
        return False
    of = type(module)
    return of.__call__ is not nn.Module.__call__ or of._call_impl is not nn.Module._call_impl


AS_TEXT = "writes a value out as text"


def is_assertion(node: fx.Node) -> bool:
    """Whether a node checks something and computes nothing."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("_assert", "assert_fn")


class Tracer(SignatureTracer, WorldTracer):
    """torch.fx's tracer with our leaves, remembering the innermost module that stopped it."""

    proxy_buffer_attributes = True  # a buffer is read by name, like a parameter
    value_type: type[TracedProxy] = TracedProxy
    tensor_type: type[TracedTensor] = TracedTensor
    sequence_type: type[TracedProxy] = TracedSequence
    mapping_type: type[TracedProxy] = TracedMapping
    attribute_type: type[fx.proxy.Attribute] = TracedAttribute
    shape_type: type[fx.proxy.Attribute] = TracedShape

    def __init__(self, whole: set[str], example: Example | None = None, passed: Passed | None = None) -> None:
        super().__init__(autowrap_functions=())
        self.whole = whole
        self.example, self.passed = example, passed
        self.compiled_in: dict[str, Any] = {}
        self._given: dict[str, Any] = {}  # the example's arguments by placeholder
        self.broke_at = ""
        self.refusal: fx.proxy.TraceError | None = None  # the last one; the model's own code may have caught it
        self.added: dict[str, nn.Module] = {}  # what the trace gives to the root, once the root's code has run
        self.outermost: FrameType | None = None  # where the trace began
        self._broken = False
        self._leaves: dict[type, bool] = {}
        self._kinds: dict[fx.Node, type | None] = {}
        self.made: list[weakref.ref[Any]] = []  # all traced values
        self.unread: Unread | None = None  # what code that is not traced may read and write, if there is such code
        self.words: dict[str, str] = {}  # what stands for values in texts, and the module that wrote it

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.outermost = frame_of_caller(0)
        try:
            graph = super().trace(root, concrete_args)
            stray = self.stray_word()
            if stray is not None:
                self.stop_in(stray, AS_TEXT)
            for name, module in self.added.items():
                self.root.add_module(name, module)
            return graph
        finally:
            if self.unread is not None:
                self.unread.show()
            self.forget()

    def create_args_for_root(self, *args: Any, **options: Any) -> Any:
        """As the signature's; from here on the model's code runs."""
        found = super().create_args_for_root(*args, **options)
        if self.unread is not None:
            self.unread.hide()
        return found

    def forget(self) -> None:
        """Let go of what the trace has collected: torch.fx leaves the tracer in a reference cycle."""
        self.outermost = None
        self._kinds = {}
        self.__dict__.pop("known_shapes", None)

    def templates(self, root: nn.Module, parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
        """What of the arguments is compiled in."""
        if self.example is not None:
            self._given = example_values(parameters, self.example)
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

    def add_guard(self, path: str, module: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """Call a new module of the root's here."""
        names = (path if i == 0 else f"{path}_{i}" for i in range(sys.maxsize))
        name = self._add(names, module)
        node = self.create_proxy("call_module", name, args, kwargs).node
        node.meta["guard"] = True
        return node

    def _add(self, names: Iterator[str], module: nn.Module) -> str:
        """Give the root a module under the first name that is free."""
        name = next(n for n in names if n not in self.added and not hasattr(self.root, n))
        self.added[name] = module
        note_module(self.root, name, module)
        return name

    def take_away(self, guard: fx.Node) -> None:
        """Erase a call of `_add`'s, and what it calls."""
        del self.added[str(guard.target)]
        self.graph.erase_node(guard)

    def _adopt(self, m: nn.Module) -> None:
        """Give a module that no other module owns (it lies in a plain list or dictionary) a path on the root."""
        base = f"unregistered_{type(m).__name__}"
        names = (base if i == 0 else f"{base}_{i}" for i in range(sys.maxsize))
        name = self._add(names, m)
        assert self.submodule_paths is not None
        for path, part in m.named_modules():
            self.submodule_paths.setdefault(part, f"{name}.{path}" if path else name)

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], *rest: Any, **options: Any) -> fx.Proxy:
        """As fx's, but for what changes a list or dictionary that came from outside: a graph holds values."""
        args = tuple([a.item() if issubclass(type(a), np.generic) else a for a in args])  # to torch these are Python's
        owner: Any = args[0] if args else None
        changes = kind == "call_method" and target in CHANGES_CONTAINERS and not hasattr(Tensor, target)
        assigns = target is operator.setitem or (kind == "call_method" and target == "sort")
        if changes or (assigns and self._is_container(owner)):
            self.stop("changes a list or dictionary that it was given")
        if target is operator.getitem and issubclass(type(owner), fx.Proxy) and is_shape(owner.node):
            self._check_index(owner.node, args[1])
        return super().create_proxy(kind, target, args, *rest, **options)

    def _check_index(self, shape: fx.Node, index: Any) -> None:
        """Raise where a shape has no such item; where nothing tells, and the model would go on, that is no graph."""
        if type(index) is not int:
            return
        rank = self.known_shapes.rank(shape.args[0]) if isinstance(shape.args[0], fx.Node) else None
        if rank is not None and not -rank <= index < rank:
            raise IndexError("tuple index out of range")
        if rank is None and may_be_caught(frame_of_caller(), self.outermost):
            self.stop("reads a size that there may be none of, and goes on where that fails")

    def _is_container(self, value: Any) -> bool:
        kind = self.kind_of(value.node) if issubclass(type(value), fx.Proxy) else None
        return kind is not None and issubclass(kind, list | dict)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def attribute_proxy(self, name: str, value: Tensor) -> fx.Proxy:
        proxy = self.tensor_type(super().attribute_proxy(name, value).node, self, value)
        self.made.append(weakref.ref(proxy))
        return proxy

    def proxy(self, node: fx.Node) -> fx.Proxy:
        value = self.type_for(self.kind_of(node))(node, self)
        self.made.append(weakref.ref(value))
        return value

    def type_for(self, kind: type | None) -> type[TracedProxy]:
        """Which traced values stand for this type."""
        if kind is Tensor:
            return self.tensor_type
        if kind is not None and issubclass(kind, tuple | list):
            return self.sequence_type
        return self.mapping_type if kind is not None and issubclass(kind, dict) else self.value_type

    def create_arg(self, a: Any) -> Any:
        """torch.fx makes every dictionary a plain one; here an ordered one, or a dataclass that is one, stays so."""
        if issubclass(type(a), dict) and type(a) is not dict:
            if dataclasses.is_dataclass(a):
                items = {f.name: self.create_arg(getattr(a, f.name)) for f in dataclasses.fields(a)}
                return self.create_node("call_function", type(a), (), items)
            if type(a) is not OrderedDict:
                self.stop(f"makes a {type(a).__name__}, which a graph cannot")
            pairs = [(self.create_arg(key), self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        return super().create_arg(a)

    # --- what the model's code may know of a value ---

    def kind_of(self, node: fx.Node) -> type | None:
        """The type that the value of a node has at run time; None where the graph does not tell."""
        if node not in self._kinds:
            self._kinds[node] = self._kind_from_graph(node)
        return self._kinds[node]

    def _kind_from_graph(self, node: fx.Node) -> type | None:
        if node.op == "placeholder":
            return self._kind_of_argument(node)
        hooked = node.op == "call_module" and str(node.target) in self.whole
        if hooked and module_at(self.root, str(node.target))._forward_hooks:
            return None  # a hook may return anything
        return kind(node, self.kind_of, self.root)

    def _kind_of_argument(self, node: fx.Node) -> type | None:
        """Tensor, or what the example gives.  What an unread module's code passes to another is not known."""
        target = str(node.target)
        if target.startswith("*"):
            return dict if target.startswith("**") else tuple
        if self.example is None:
            return None if self.passed is not None and not isinstance(self.root, fx.GraphModule) else Tensor
        given = self._given.get(target)
        return Tensor if given is None or isinstance(given, Tensor) else type(given)

    def type_of(self, value: TracedProxy) -> type:
        """What `isinstance(value, ...)` goes by."""
        found = self.kind_of(value.node)
        if found is None:
            self.stop(f"asks what type {value.node.name} has, which nothing tells")
        return found

    def check_attribute(self, node: fx.Node, name: str) -> None:
        """Raise `AttributeError` where the value has no such attribute: `hasattr(x, "logits")`."""
        found = self.kind_of(node)
        if found is None or hasattr(found, name):
            return
        given = self._given.get(str(node.target)) if node.op == "placeholder" else None
        if not hasattr(given, name):
            raise AttributeError(f"{found.__name__!r} object has no attribute {name!r}")

    def rank_of(self, value: fx.Proxy) -> int:
        rank = self.known_shapes.rank(value.node)
        return 1 if rank is None else rank  # not as good as a number, for all that is known

    def gradient_fact(self, value: TracedTensor, name: str) -> Any:
        """What depends on whether gradients are recorded: answered as in the world of this trace.

        `repfx.capture.trace` traces in both worlds, and a module that goes another way in the other one is an island.
        """
        held = value.held
        match name:
            case "requires_grad":
                return self.gradients if held is None else held.requires_grad
            case "is_leaf":
                return held is not None or value.node.op == "placeholder" or not self.gradients
            case "grad_fn" if held is not None or not self.gradients:
                return None
            case "retains_grad" | "volatile" if not self.gradients:
                return False
            case _:
                self.stop(f"asks for .{name} of a value, which is no function of the inputs")

    def text_of(self, obj: fx.Proxy, write: Callable[[Any], str]) -> str:
        """A word that stands for a value in a text, for the message of an assertion and for nothing else."""
        device = next((p.device for p in self.root.parameters()), None)
        if self.kind_of(obj.node) is torch.device and device is not None:
            guard = SizeGuard("value", device, place(), f"weights on {device}")
            self.add_guard("sizes", guard, (fx.Proxy(obj.node, self),), {})
            return write(device)
        word = f"<value {len(self.words)} of the trace>"
        self.words[word] = self.scope.module_path
        return word

    def stray_word(self) -> str | None:
        """Where a value was written into a text that is not the message of an assertion; None if nowhere."""
        if not self.words:
            return None
        messages = " ".join(str(a) for n in self.graph.nodes if is_assertion(n) for a in (*n.args, *n.kwargs.values()))
        return next((path for word, path in self.words.items() if word not in messages), None)

    def holds(self, obj: fx.Proxy, item: Any) -> bool:
        """Whether a value contains another: `3 in x.shape`."""
        return self.to_bool(self.create_proxy("call_function", operator.contains, (obj, item), {}))

    def unpack(self, obj: fx.Proxy, count: int) -> Any:
        """The items of a value that is unpacked into so many names; another number of items is checked for."""
        known = self._count(obj.node)
        if known is None and _asks_for(obj.node) != count:  # a chunk has no more parts, and misses one if it has fewer
            if may_be_caught(frame_of_caller(), self.outermost):
                self.stop("unpacks a value whose length nothing tells, and goes on where that fails")
            self._guard_length(obj.node, count)
        if known is not None and known != count:
            raise ValueError(f"{'too many' if known > count else 'not enough'} values to unpack (expected {count})")
        return super().unpack(obj, count)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a split or of a shape, where structure tells how many there are."""
        count = self._count(obj.node)
        if count is None:
            self.stop(f"loops over {obj.node.name}, whose length nothing tells")
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(count)])

    def size_of(self, obj: fx.Proxy) -> int:
        """How many items a value has."""
        count = self._count(obj.node)
        if count is None:
            self.stop(f"asks for the length of {obj.node.name}, which nothing tells")
        return count

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Nothing tells whether a value is true."""
        self.stop("branches on a value that is known at run time only")

    def number_of(self, obj: fx.Proxy) -> Any:
        """Nothing tells what number a value is."""
        self.stop("needs a number that is known at run time only")

    def object_of(self, obj: fx.Proxy, name: str) -> Any:
        """Nothing tells which object an attribute is: `x.dtype is torch.float64`."""
        self.stop(f"asks which object .{name} of a value is, which is known at run time only")

    def key_of(self, obj: fx.Proxy) -> Any:
        """Nothing tells what a value is found under in a table: `scales[x.shape[-1]]`."""
        self.stop("looks a value up that is known at run time only")

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

    def custom_function(
        self, function: type[torch.autograd.Function], forward: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """One call of a function with a backward of its own; gradient checkpointing is only what it runs."""
        if function is CheckpointFunction:
            _, run, _, *rest = args
            return run(*rest)
        before = next(iter(reversed(self.graph.nodes)))
        made = forward(*args)  # seen and forgotten: only what kind of result it has counts
        parts = made if isinstance(made, tuple) else (made,)
        if not all(part is None or isinstance(part, Tensor) for part in parts):
            self.stop(f"calls {function.__name__}, which returns other things than tensors")
        self.forget_after(before)
        given = args[1:] if isinstance(args[0], torch.autograd.function.FunctionCtx) else args
        module = CustomFunction(function, len(made) if isinstance(made, tuple) else None)
        base = f"custom_{function.__name__}"
        name = self._add((base if i == 0 else f"{base}_{i}" for i in range(sys.maxsize)), module)
        value: Any = self.create_proxy("call_module", name, tuple(given), {})
        if not isinstance(made, tuple):
            return value
        return tuple([None if part is None else value[i] for i, part in enumerate(made)])

    def forget_after(self, last: fx.Node) -> None:
        """Take back everything that was recorded after a node."""
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                return
            if node.op == "call_module" and str(node.target) in self.added:
                self.take_away(node)
            else:
                self.graph.erase_node(node)

    def _count(self, node: fx.Node) -> int | None:
        """How many items a value has: a split, a shape, a tensor; a shape's rank is checked at run time."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        source = node.args[0] if node.args else None
        if self.kind_of(node) is Tensor:
            return self.known_shapes.size(node, 0)
        if name == "unbind" and isinstance(source, fx.Node):
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            return self.known_shapes.size(source, dim) if isinstance(dim, int) else None
        if name in SPLITS and isinstance(source, fx.Node):
            dim = split_dim(node, name)
            sizes = part_sizes(node, self.known_shapes.size(source, dim) if isinstance(dim, int) else None)
            return None if sizes is None else len(sizes)
        if name == "getitem" and isinstance(source, fx.Node) and isinstance(node.args[1], slice) and is_shape(source):
            whole = self._count(source)
            plain = all(n is None or isinstance(n, int) for n in (node.args[1].start, node.args[1].stop))
            return None if whole is None or not plain else len(range(whole)[node.args[1]])
        if is_shape(node) and isinstance(source, fx.Node):
            rank = self.known_shapes.rank(source)
            if rank is not None:
                self._guard_length(node, rank)
            return rank
        return None

    def _guard_length(self, node: fx.Node, length: int) -> None:
        self.add_guard("sizes", SizeGuard("length", length, place(), ""), (fx.Proxy(node, self),), {})

    @functools.cached_property
    def known_shapes(self) -> Shapes:
        """What structure tells of the shapes so far."""
        return Shapes(self.root, lambda node: None)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.whole or isinstance(m, EMITTED):
            return True
        of = type(m)
        if of not in self._leaves:  # a subclass that computes what torch's own module computes is one too
            own = any(issubclass(of, kind) and _computes_as(of, kind) for kind in _OWN_FORWARD)
            self._leaves[of] = own or super().is_leaf_module(m, module_qualified_name)
        if not self._leaves[of] or not m.__dict__.keys().isdisjoint(COMPUTING):  # replaced while the code ran
            return False
        altered = self.unread is not None and self.unread.is_altered(m)
        return not altered and not _holds_values(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)  # another thread, which does not know that nn.Module is lent
        if has_own_call(m):
            self.stop(f"calls {type(m).__name__}, whose class does more in a call than its forward")
        for unknown in (a for a in (*args, *kwargs.values()) if type(a) is Unknown):
            unknown.asked()
        registered = self.submodule_paths is None or m in self.submodule_paths
        if not registered and _holds_values(m):  # made here of values: only its code goes into the graph
            return forward(*args, **kwargs)
        if not registered:
            self._adopt(m)
        elif self.unread is not None and self.unread.sees_a_change(self.path_of_module(m)):
            self.stop(f"changes what {self.path_of_module(m)} may read, whose code does not trace")
        unread = self.whole and self.path_of_module(m) in self.whole
        if unread and may_return_none(m) and tests_for_none(frame_of_caller(), self.outermost):
            self.stop(f"calls {self.path_of_module(m)}, which may return None, and asks for that")
        try:
            value = super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self._broken:
                self._broken = True
                self.broke_at = self.path_of_module(m)
            raise
        if unread:
            spoil((*args, *kwargs.values()), m, self.stop)
        if m.training and isinstance(m, _MOVING) and issubclass(type(value), fx.Proxy):
            value.node.meta["unread"] = True  # it draws, or keeps statistics, though nobody may read what it returns
        if isinstance(m, Guard):
            value.node.meta["guard"] = True
        return value


_MOVING = (
    nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d,
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip


def _holds_values(module: nn.Module) -> bool:
    """Whether attributes of a module are traced values: `nn.Upsample(size=y.shape[2:])`."""
    for value in module.__dict__.values():
        items = value if type(value) in (tuple, list) else (value,)
        if any(issubclass(type(item), fx.Proxy) for item in items):
            return True
    return False


def _asks_for(node: fx.Node) -> Any:
    """How many parts a split by number asks for: 2 of `x.chunk(2, 1)`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name not in ("chunk", "tensor_split", "hsplit"):
        return None
    return node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()), None)
