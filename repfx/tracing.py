"""The tracer: torch.fx's, with our leaves, and one that also knows the sizes of an example.

`Tracer` stops at code that asks a traced value for a number or a truth.  `SizedTracer` answers where the
sizes, dtypes and devices of the example decide it alone, computed on fake tensors, which hold no values:
so no answer ever depends on data.  Each answer leaves a `SizeGuard` in the graph, which checks at run
time that it is still right.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

from repfx.arguments import OPEN, Example, Passed, SignatureTracer, example_values, guarded, templates
from repfx.inplace import MutableProxy, SizedParameterProxy
from repfx.modules import EMITTED, ArgumentGuard, Guard, SizeGuard
from repfx.questions import is_library, is_shape, kind, place, way_around_raise
from repfx.recording import RecordedProxy
from repfx.shapes import Shapes, part_sizes
from repfx.state import StateTracer

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


class Tracer(SignatureTracer, StateTracer):
    """torch.fx's tracer with our leaves, remembering the innermost module that stopped it."""

    proxy_buffer_attributes = True  # a buffer is read by name, like a parameter

    def __init__(self, whole: set[str], example: Example | None = None, passed: Passed | None = None) -> None:
        super().__init__(autowrap_functions=())
        self.whole = whole
        self.example, self.passed = example, passed
        self.compiled_in: dict[str, Any] = {}
        self._given: dict[str, Any] = {}  # the example's arguments by placeholder
        self.broke_at = ""
        self.refusal: fx.proxy.TraceError | None = None  # the last one; the model's own code may have caught it
        self.added: set[str] = set()  # names of the modules that the trace gave to the root
        self._broken = False
        self._leaves: dict[type, bool] = {}

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
            name = type(self.root).__name__
            self.add_guard("arguments", ArgumentGuard(name, expected), (), {key: values[key] for key in expected})

    def add_guard(self, path: str, module: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """Call a new module of the root's here."""
        names = (path if i == 0 else f"{path}_{i}" for i in range(sys.maxsize))
        name = self._add(names, module)
        node = self.create_proxy("call_module", name, args, kwargs).node
        node.meta["guard"] = True
        return node

    def _add(self, names: Iterator[str], module: nn.Module) -> str:
        """Give the root a module under the first name that is free."""
        name = next(n for n in names if not hasattr(self.root, n))
        self.root.add_module(name, module)
        self.added.add(name)
        return name

    def _adopt(self, m: nn.Module) -> None:
        """Give a module that no other module owns (it lies in a plain list or dictionary) a path on the root."""
        base = f"unregistered_{type(m).__name__}"
        names = (base if i == 0 else f"{base}_{i}" for i in range(sys.maxsize))
        name = self._add(names, m)
        assert self.submodule_paths is not None
        for path, part in m.named_modules():
            self.submodule_paths.setdefault(part, f"{name}.{path}" if path else name)

    def attribute_proxy(self, name: str, value: Tensor) -> fx.Proxy:
        if not isinstance(value, nn.Parameter):
            return super().attribute_proxy(name, value)
        return SizedParameterProxy(self, self.create_proxy("get_attr", name, (), {}).node, name, value)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return TracedProxy(node, self)

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

    def kind_of(self, node: fx.Node) -> type:
        """The type that the value of a node has at run time.  Raises `TraceError` where the graph does not tell."""
        if node.op != "placeholder":
            return kind(node, self.root, self.whole)
        given = self._given.get(str(node.target))
        return Tensor if given is None or isinstance(given, Tensor) else type(given)

    def check_attribute(self, node: fx.Node, name: str) -> None:
        """Raise `AttributeError` where the value has no such attribute: `hasattr(x, "logits")`."""
        if hasattr(Tensor, name):
            return
        try:
            of = self.kind_of(node)
        except fx.proxy.TraceError:
            return
        if not hasattr(of, name):
            raise AttributeError(f"{of.__name__} has no attribute {name}")

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

    def key_of(self, obj: fx.Proxy) -> Any:
        """Nothing tells what a value is found under in a table: `scales[x.shape[-1]]`."""
        self.stop("looks a value up that is known at run time only")

    def stop(self, what: str) -> NoReturn:
        """Give up on the module whose code runs, even if that code catches the error."""
        if not self._broken:
            self.broke_at = self.scope.module_path
        self.refusal = fx.proxy.TraceError(what)
        raise self.refusal

    def _count(self, node: fx.Node) -> int | None:
        """How many parts a split has, or a shape; a shape's rank is checked at run time."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        source = node.args[0] if node.args else None
        if name in ("split", "split_with_sizes", "chunk") and isinstance(source, fx.Node):
            dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
            total = self.known_shapes.size(source, dim) if isinstance(dim, int) else None
            sizes = part_sizes(node, total)
            return None if sizes is None else len(sizes)
        if is_shape(node) and isinstance(source, fx.Node):
            rank = self.known_shapes.rank(source)
            if rank is not None:
                self.add_guard("sizes", SizeGuard("length", rank, place(), ""), (fx.Proxy(node, self),), {})
            return rank
        return None

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
        return self._leaves[of] and ("forward" not in m.__dict__ or super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if has_own_call(m):
            self.stop(f"calls {type(m).__name__}, whose class does more in a call than its forward")
        if self.submodule_paths is not None and m not in self.submodule_paths:
            self._adopt(m)
        try:
            value = super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self._broken:
                self._broken = True
                self.broke_at = self.path_of_module(m)
            raise
        if isinstance(m, Guard):
            value.node.meta["guard"] = True
        return value


class TracedProxy(RecordedProxy, MutableProxy):
    """A traced value, which says what type the value has, and takes the way of a check that does not raise."""

    tracer: Any

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what isinstance() asks
        if is_library(sys._getframe(1).f_code.co_filename):
            return type(self)
        try:
            found: type = self.tracer.kind_of(self.node)
        except fx.proxy.TraceError as error:
            self.tracer.stop(str(error))
        return found

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        self.tracer.check_attribute(self.node, name)
        return TracedAttribute(self, name)

    def __hash__(self) -> int:
        if is_library(sys._getframe(1).f_code.co_filename):
            return object.__hash__(self)
        return hash(self.tracer.key_of(self))

    def __len__(self) -> int:
        return self.tracer.size_of(self)

    def __int__(self) -> int:
        return int(self.tracer.number_of(self))

    def __bool__(self) -> bool:
        way = way_around_raise(sys._getframe(1))
        return self.tracer.to_bool(self) if way is None else way


class TracedAttribute(fx.proxy.Attribute, TracedProxy):
    """`x.shape`, or the method that `x.view` is."""

    tracer: Any

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return TracedAttribute(self, name)


class SizedProxy(TracedProxy):
    """A traced value whose sizes are known for the example."""

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        self.tracer.check_attribute(self.node, name)
        return SizedAttribute(self, name)

    def __index__(self) -> int:
        value = operator.index(self.tracer.number_of(self))
        self.tracer.asked_by(sys._getframe(1))
        return value

    def __float__(self) -> float:
        value = float(self.tracer.number_of(self))
        self.tracer.asked_by(sys._getframe(1))
        return value

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.number_of(self), digits)

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        found: list[Any] = []
        tree_map(lambda x: found.append(x) if type(x) in (SizedProxy, SizedAttribute) else None, (args, kwargs))
        for proxy in found[:1]:
            proxy.tracer.take_back(sys._getframe(1))
        return super().__torch_function__(orig_method, types, args, kwargs)


class SizedAttribute(fx.proxy.Attribute, SizedProxy):
    """`x.shape`, whose length and items are known for the example."""

    tracer: Any

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return SizedAttribute(self, name)


class SizedTracer(Tracer):
    """A tracer that decides by the sizes of the example what those alone decide."""

    def __init__(self, whole: set[str], example: Example) -> None:
        super().__init__(whole, example)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.facts: dict[fx.Node, Any] = {}
        self.decisions: dict[fx.Node, str] = {}  # by guard
        self._asked: list[tuple[FrameType, int, fx.Node]] = []  # numbers asked for since the last operation
        self._computing = False
        shapes: list[str] = []
        tree_map(lambda x: shapes.append(str(tuple(x.shape))) if isinstance(x, Tensor) else None,
                 (example.args, dict(example.kwargs)))  # fmt: skip
        self.shapes = ", ".join(shapes)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def asked_by(self, frame: FrameType) -> None:
        """Note which instruction asked for the number that the last guard checks."""
        self._asked.append((frame, frame.f_lasti, next(reversed(self.graph.nodes))))

    def take_back(self, frame: FrameType) -> None:
        """Forget numbers that torch asked for only to see that they are, and then recorded as the values they are."""
        for asking, instruction, guard in self._asked:
            if asking is frame and instruction == frame.f_lasti:
                delattr(self.root, str(guard.target))
                self.graph.erase_node(guard)
                del self.decisions[guard]
        self._asked.clear()

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if not (kind == "call_module" and isinstance(self.root.get_submodule(target), Guard)):
            self._asked.clear()
            self._compute(proxy.node)
        return proxy

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._computing:
            return attr_val
        value = super().getattr(attr, attr_val, parameter_proxy_cache)
        if isinstance(value, fx.Proxy) and value.node not in self.facts:
            self._compute(value.node)
        return value

    def attribute_proxy(self, name: str, value: Tensor) -> fx.Proxy:
        return self.create_proxy("get_attr", name, (), {})

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        if issubclass(type(a), FakeTensor):
            self.stop("holds on to a value of the trace")
        return super().create_arg(a)

    def kind_of(self, node: fx.Node) -> type:
        if node not in self.facts:
            return super().kind_of(node)
        return Tensor if isinstance(self.facts[node], Tensor) else type(self.facts[node])

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A truth that sizes decide."""
        if not self._is_fact(obj.node):
            return super().to_bool(obj)
        return bool(self._decided(obj.node, bool(self.facts[obj.node]), "truth"))

    def number_of(self, obj: fx.Proxy) -> Any:
        """A number that sizes decide."""
        value = self.facts.get(obj.node)
        if not isinstance(value, int | float):
            return super().number_of(obj)
        return self._decided(obj.node, value, "value")

    def key_of(self, obj: fx.Proxy) -> Any:
        """A key that sizes decide."""
        if not self._is_fact(obj.node):
            return super().key_of(obj)
        return self._decided(obj.node, self.facts[obj.node], "value")

    def size_of(self, obj: fx.Proxy) -> int:
        """How many items a value has, where sizes decide that."""
        value = self.facts.get(obj.node)
        if not isinstance(value, Tensor | tuple | list) or (isinstance(value, Tensor) and not value.dim()):
            return super().size_of(obj)
        return int(self._decided(obj.node, len(value), "length"))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items, as many as the example has."""
        if not isinstance(self.facts.get(obj.node), Tensor | tuple | list):
            return super().iter(obj)
        if not is_shape(obj.node) and self._count(obj.node) is not None:
            return super().iter(obj)  # structure tells, for every size
        items = range(self.size_of(obj))
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in items])

    def _is_fact(self, node: fx.Node) -> bool:
        """Whether a value is known for the example, and no tensor."""
        return node in self.facts and not isinstance(self.facts[node], Tensor)

    def _decided(self, node: fx.Node, value: Any, kind: str) -> Any:
        where = place()
        guard = self.add_guard("sizes", SizeGuard(kind, value, where, self.shapes), (fx.Proxy(node, self),), {})
        self.decisions[guard] = f"{where}: decided by example inputs of shape {self.shapes}"
        return value

    def _compute(self, node: fx.Node) -> None:
        """What the node is for the example, as far as sizes tell."""
        if node.op == "placeholder":
            value = self._given.get(str(node.target).lstrip("*"))
            self.facts[node] = tree_map(lambda x: self.fake.from_tensor(x) if isinstance(x, Tensor) else x, value)
            return
        if any(source not in self.facts for source in node.all_input_nodes):
            return
        if node.op == "call_module" and str(node.target) in self.whole:
            return  # code that we do not know, which may keep what it is given
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.facts.__getitem__)
        self._computing = True
        try:
            with self.fake, torch.no_grad():
                self.facts[node] = self._run(node, args, kwargs)
        except Exception:  # whatever fake tensors cannot do, values decide
            self.facts.pop(node, None)
        finally:
            self._computing = False

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        match node.op:
            case "call_function":
                assert callable(node.target)
                return node.target(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            case "get_attr":
                value = operator.attrgetter(str(node.target))(self.root)
                return self.fake.from_tensor(value) if isinstance(value, Tensor) else value
            case _:
                raise NotImplementedError(node.op)
