"""What the model's code may know of a traced value where the sizes of an example are known too.

It answers where the sizes, dtypes and devices of the example decide alone, computed on fake tensors, which hold no
values: so no answer ever depends on data.  Each answer leaves a `SizeGuard` in the graph, which checks at run time
that it is still right.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from repfx.graph import is_shape, module_at
from repfx.introspection import place
from repfx.layers import SizeGuard
from repfx.tracing.answers import Answers
from repfx.tracing.signature import Example
from repfx.tracing.traced_values import SIZED

if TYPE_CHECKING:
    from repfx.tracing.tracer import Tracer


class SizedAnswers(Answers):
    """What the sizes of the example decide alone, and structure."""

    values = SIZED

    def __init__(self, tracer: Tracer, example: Example, spells: bool) -> None:
        super().__init__(tracer)
        self.spells = spells  # whether sizes are written out as they are: `cache[f"{h}x{w}"]`
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.facts: dict[fx.Node, Any] = {}
        self.decisions: dict[fx.Node, str] = {}  # by guard, as long as the trace runs
        self._asked: list[tuple[tuple[FrameType, int], fx.Node]] = []  # numbers asked for since the last operation
        tensors = [x for x in tree_leaves((example.args, dict(example.kwargs))) if isinstance(x, Tensor)]
        self.example_shapes = ", ".join(str(tuple(x.shape)) for x in tensors)

    def note(self, node: fx.Node) -> None:
        if not node.meta.get("guard"):
            self._asked.clear()
            self._compute(node)

    def note_erased(self) -> None:
        alive = set(self.tracer.graph.nodes)
        self.decisions = {guard: text for guard, text in self.decisions.items() if guard in alive}

    def forget(self) -> None:
        super().forget()
        self.facts = {}
        self.conditions = list(dict.fromkeys(self.decisions.values()))
        self.decisions = {}
        self._asked.clear()

    # --- numbers that only torch asked for ---

    def asked_by(self, instruction: tuple[FrameType, int]) -> None:
        """Note which instruction asked for the number that the last guard checks."""
        self._asked.append((instruction, next(iter(reversed(self.tracer.graph.nodes)))))

    def take_back(self, instruction: tuple[FrameType, int]) -> None:
        """Forget numbers that torch asked for only to see that they are, and then recorded as the values they are."""
        for asking, guard in self._asked:
            if asking[0] is instruction[0] and asking[1] == instruction[1]:
                self.tracer.take_away(guard)
                del self.decisions[guard]
        self._asked.clear()

    # --- answers ---

    def kind_of(self, node: fx.Node) -> type | None:
        if node not in self.facts:
            return super().kind_of(node)
        fact = self.facts[node]
        return Tensor if isinstance(fact, Tensor) else type(fact)

    def check_attribute(self, node: fx.Node, name: str) -> None:
        if node not in self.facts or not hasattr(self.facts[node], name):
            super().check_attribute(node, name)

    def text_of(self, obj: fx.Proxy, write: Callable[[Any], str]) -> str:
        """Text that sizes decide, where it is more than a message."""
        if not self.spells or not self._is_fact(obj.node):
            return super().text_of(obj, write)
        return write(self._decide_value(obj.node))

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A truth that sizes decide."""
        if not self._is_fact(obj.node):
            return super().to_bool(obj)
        return bool(self._decide(obj.node, bool(self.facts[obj.node]), "truth"))

    def is_number(self, node: fx.Node) -> bool:
        """Whether a value is a number that sizes decide."""
        return isinstance(self.facts.get(node), int | float)

    def is_whole(self, node: fx.Node) -> bool:
        """Whether a value is a whole number, or not known to be anything else."""
        return node not in self.facts or isinstance(self.facts[node], int)

    def number_of(self, obj: fx.Proxy) -> Any:
        """A number that sizes decide."""
        return self._decide_value(obj.node) if self.is_number(obj.node) else super().number_of(obj)

    def object_of(self, obj: fx.Proxy, name: str) -> Any:
        """The very object that the attribute is for the example."""
        return self._decide_value(obj.node) if self._is_fact(obj.node) else super().object_of(obj, name)

    def key_of(self, obj: fx.Proxy) -> Any:
        """A key that sizes decide."""
        return self._decide_value(obj.node) if self._is_fact(obj.node) else super().key_of(obj)

    def check_index(self, shape: fx.Node, index: Any) -> None:
        """As without an example, which tells how many sizes there are."""
        sizes = self.facts.get(shape)
        if sizes is None or type(index) is not int:
            super().check_index(shape, index)
        elif not -len(sizes) <= index < len(sizes):
            self._decide(shape, len(sizes), "length")
            raise IndexError("tuple index out of range")

    def size_of(self, obj: fx.Proxy) -> int:
        """How many items a value has, where sizes decide that."""
        value = self.facts.get(obj.node)
        is_scalar = isinstance(value, Tensor) and not value.dim()
        if is_scalar or not isinstance(value, Tensor | tuple | list):
            return super().size_of(obj)
        return int(self._decide(obj.node, len(value), "length"))

    def unpack(self, obj: fx.Proxy, count: int) -> Any:
        value = self.facts.get(obj.node)
        if not isinstance(value, Tensor | tuple | list) or self.count(obj.node) is not None:
            return super().unpack(obj, count)
        if self.size_of(obj) != count:
            raise ValueError(f"cannot unpack {len(value)} values into {count}")
        return self.tracer.unpack(obj, count)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items, as many as the example has."""
        if not isinstance(self.facts.get(obj.node), Tensor | tuple | list):
            return super().iter(obj)
        if not is_shape(obj.node) and self.count(obj.node) is not None:
            return super().iter(obj)  # structure tells, for every size
        return self._items(obj, self.size_of(obj))

    def _is_fact(self, node: fx.Node) -> bool:
        """Whether a value is known for the example, and no tensor."""
        return node in self.facts and not isinstance(self.facts[node], Tensor)

    def _decide_value(self, node: fx.Node) -> Any:
        return self._decide(node, self.facts[node], "value")

    def _decide(self, node: fx.Node, value: Any, kind: str) -> Any:
        """Take this for what the value is, and let a guard check it."""
        where, tracer = place(), self.tracer
        guard = SizeGuard(kind, value, where, self.example_shapes)
        call = tracer.add_guard("sizes", guard, (fx.Proxy(node, tracer),), {})
        call.meta["decides"] = kind
        self.decisions[call] = f"{where}: decided by example inputs of shape {self.example_shapes}"
        return value

    # --- facts ---

    def _compute(self, node: fx.Node) -> None:
        """What the node is for the example, as far as sizes tell."""
        if node.op == "placeholder":
            value = self.given.get(str(node.target).lstrip("*"))
            self.facts[node] = tree_map(self._without_values, value)
            return
        for source in node.all_input_nodes:
            if source not in self.facts and source.op == "get_attr":  # a constant that the code has made
                self._compute(source)
        if any(source not in self.facts for source in node.all_input_nodes):
            return
        if node.op == "call_module" and str(node.target) in self.tracer.whole:
            return  # code that we do not know, which may keep what it is given
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.facts.__getitem__)
        self.tracer.is_computing = True
        try:
            with self.fake, torch.no_grad():
                self.facts[node] = self._run(node, args, kwargs)
        except Exception:  # whatever fake tensors cannot do, values decide
            self.facts.pop(node, None)
        finally:
            self.tracer.is_computing = False

    def _without_values(self, value: Any) -> Any:
        return self.fake.from_tensor(value) if isinstance(value, Tensor) else value

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        root = self.tracer.root
        match node.op:
            case "call_function":
                assert callable(node.target)
                return node.target(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "call_module":
                return module_at(root, str(node.target))(*args, **kwargs)
            case "get_attr":
                return self._without_values(operator.attrgetter(str(node.target))(root))
            case _:
                raise NotImplementedError(node.op)
