"""A tracer that also knows the sizes of an example.

It answers where the sizes, dtypes and devices of the example decide alone, computed on fake tensors, which hold no
values: so no answer ever depends on data.  Each answer leaves a `SizeGuard` in the graph, which checks at run time
that it is still right.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

from repfx.graph import is_shape, module_at
from repfx.introspection import place
from repfx.layers import SizeGuard
from repfx.tracing.recording import RecordingTracer
from repfx.tracing.signature import Example
from repfx.tracing.traced_values import SizedAttribute, SizedMapping, SizedProxy, SizedSequence, SizedShape, SizedTensor
from repfx.tracing.tracer import Tracer


class SizedTracer(Tracer):
    """A tracer that decides by the sizes of the example what those alone decide."""

    value_type = SizedProxy
    tensor_type = SizedTensor
    sequence_type = SizedSequence
    mapping_type = SizedMapping
    attribute_type = SizedAttribute
    shape_type = SizedShape
    spells = False  # whether sizes are written out as they are: `cache[f"{h}x{w}"]`

    def __init__(self, whole: set[str], example: Example) -> None:
        super().__init__(whole, example)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.facts: dict[fx.Node, Any] = {}
        self.decisions: dict[fx.Node, str] = {}  # by guard, as long as the trace runs
        self.conditions: list[str] = []  # all of them, once each
        self._asked: list[tuple[tuple[FrameType, int], fx.Node]] = []  # numbers asked for since the last operation
        self.is_computing = False
        shapes: list[str] = []
        tree_map(lambda x: shapes.append(str(tuple(x.shape))) if isinstance(x, Tensor) else None,
                 (example.args, dict(example.kwargs)))  # fmt: skip
        self.shapes = ", ".join(shapes)

    def forget(self) -> None:
        super().forget()
        self.facts = {}
        self.conditions = list(dict.fromkeys(self.decisions.values()))
        self.decisions = {}
        self._asked.clear()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if not node.meta.get("guard"):
            self._asked.clear()
            self._compute(node)
        return super().proxy(node)

    def asked_by(self, instruction: tuple[FrameType, int]) -> None:
        """Note which instruction asked for the number that the last guard checks."""
        self._asked.append((instruction, next(iter(reversed(self.graph.nodes)))))

    def take_back(self, instruction: tuple[FrameType, int]) -> None:
        """Forget numbers that torch asked for only to see that they are, and then recorded as the values they are."""
        for asking, guard in self._asked:
            if asking[0] is instruction[0] and asking[1] == instruction[1]:
                self.take_away(guard)
                del self.decisions[guard]
        self._asked.clear()

    def forget_after(self, last: fx.Node) -> None:
        super().forget_after(last)
        alive = set(self.graph.nodes)
        self.decisions = {guard: text for guard, text in self.decisions.items() if guard in alive}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.is_computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        if issubclass(type(a), FakeTensor):
            self.stop("holds on to a value of the trace")
        return super().create_arg(a)

    def kind_of(self, node: fx.Node) -> type | None:
        if node not in self.facts:
            return super().kind_of(node)
        return Tensor if isinstance(self.facts[node], Tensor) else type(self.facts[node])

    def check_attribute(self, node: fx.Node, name: str) -> None:
        if node not in self.facts or not hasattr(self.facts[node], name):
            super().check_attribute(node, name)

    def text_of(self, obj: fx.Proxy, write: Callable[[Any], str]) -> str:
        """Text that sizes decide, where it is more than a message."""
        if not self.spells or not self._is_fact(obj.node):
            return super().text_of(obj, write)
        return write(self._decided(obj.node, self.facts[obj.node], "value"))

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A truth that sizes decide."""
        if not self._is_fact(obj.node):
            return super().to_bool(obj)
        return bool(self._decided(obj.node, bool(self.facts[obj.node]), "truth"))

    def is_number(self, node: fx.Node) -> bool:
        """Whether a value is a number that sizes decide."""
        return isinstance(self.facts.get(node), int | float)

    def is_whole(self, node: fx.Node) -> bool:
        """Whether a value is a whole number, or not known to be anything else."""
        return node not in self.facts or isinstance(self.facts[node], int)

    def number_of(self, obj: fx.Proxy) -> Any:
        """A number that sizes decide."""
        value = self.facts.get(obj.node)
        if not isinstance(value, int | float):
            return super().number_of(obj)
        return self._decided(obj.node, value, "value")

    def object_of(self, obj: fx.Proxy, name: str) -> Any:
        """The very object that the attribute is for the example."""
        if not self._is_fact(obj.node):
            return super().object_of(obj, name)
        return self._decided(obj.node, self.facts[obj.node], "value")

    def _check_index(self, shape: fx.Node, index: Any) -> None:
        """As without an example, which tells how many sizes there are."""
        sizes = self.facts.get(shape)
        if sizes is None or type(index) is not int:
            super()._check_index(shape, index)
        elif not -len(sizes) <= index < len(sizes):
            self._decided(shape, len(sizes), "length")
            raise IndexError("tuple index out of range")

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

    def unpack(self, obj: fx.Proxy, count: int) -> Any:
        value = self.facts.get(obj.node)
        if not isinstance(value, Tensor | tuple | list) or self._count(obj.node) is not None:
            return super().unpack(obj, count)
        if self.size_of(obj) != count:
            raise ValueError(f"cannot unpack {len(value)} values into {count}")
        return RecordingTracer.unpack(self, obj, count)

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
        guard.meta["decides"] = kind
        self.decisions[guard] = f"{where}: decided by example inputs of shape {self.shapes}"
        return value

    def _compute(self, node: fx.Node) -> None:
        """What the node is for the example, as far as sizes tell."""
        if node.op == "placeholder":
            value = self._given.get(str(node.target).lstrip("*"))
            self.facts[node] = tree_map(lambda x: self.fake.from_tensor(x) if isinstance(x, Tensor) else x, value)
            return
        for source in node.all_input_nodes:
            if source not in self.facts and source.op == "get_attr":  # a constant that the code has made
                self._compute(source)
        if any(source not in self.facts for source in node.all_input_nodes):
            return
        if node.op == "call_module" and str(node.target) in self.whole:
            return  # code that we do not know, which may keep what it is given
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.facts.__getitem__)
        self.is_computing = True
        try:
            with self.fake, torch.no_grad():
                self.facts[node] = self._run(node, args, kwargs)
        except Exception:  # whatever fake tensors cannot do, values decide
            self.facts.pop(node, None)
        finally:
            self.is_computing = False

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        match node.op:
            case "call_function":
                assert callable(node.target)
                return node.target(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "call_module":
                return module_at(self.root, str(node.target))(*args, **kwargs)
            case "get_attr":
                value = operator.attrgetter(str(node.target))(self.root)
                return self.fake.from_tensor(value) if isinstance(value, Tensor) else value
            case _:
                raise NotImplementedError(node.op)
