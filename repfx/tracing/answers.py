"""What the model's code may know of a traced value where structure alone tells, and a refusal where it does not.

`repfx.tracing.sized_answers` knows the sizes of an example and can answer more.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from repfx.graph import SPLITS, Shapes, argument, is_shape, module_at, part_sizes, split_dim
from repfx.introspection import frame_of_caller, may_be_caught, place
from repfx.layers import SizeGuard
from repfx.tracing.proxy_queries import kind
from repfx.tracing.traced_values import UNSIZED, TracedProxy, TracedTensor, Values

if TYPE_CHECKING:
    from repfx.tracing.tracer import Tracer

AS_TEXT = "writes a value out as text"


def is_assertion(node: fx.Node) -> bool:
    """Whether a node checks something and computes nothing."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("_assert", "assert_fn")


class Answers:
    """What structure tells."""

    values: Values = UNSIZED  # the classes that stand for values

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.given: dict[str, Any] = {}  # the example's arguments by placeholder
        self.conditions: list[str] = []  # what the sizes of an example have decided, once each
        self.words: dict[str, str] = {}  # what stands for values in texts, and the module that wrote it
        self._kinds: dict[fx.Node, type | None] = {}

    def note(self, node: fx.Node) -> None:
        """An operation was recorded."""

    def note_erased(self) -> None:
        """Operations were taken back."""

    def forget(self) -> None:
        """Let go of what was collected, all but the conditions."""
        self._kinds = {}
        self.__dict__.pop("shapes", None)

    @functools.cached_property
    def shapes(self) -> Shapes:
        """What structure tells of the shapes so far."""
        return Shapes(self.tracer.root, lambda node: None)

    # --- of what type is it? ---

    def kind_of(self, node: fx.Node) -> type | None:
        """The type that the value of a node has at run time; None where the graph does not tell."""
        if node not in self._kinds:
            self._kinds[node] = self._kind_from_graph(node)
        return self._kinds[node]

    def _kind_from_graph(self, node: fx.Node) -> type | None:
        if node.op == "placeholder":
            return self._kind_of_argument(node)
        root = self.tracer.root
        unread = node.op == "call_module" and str(node.target) in self.tracer.whole
        if unread and module_at(root, str(node.target))._forward_hooks:
            return None  # a hook may return anything
        return kind(node, self.kind_of, root)

    def _kind_of_argument(self, node: fx.Node) -> type | None:
        """Tensor, or what the example gives.  What an unread module's code passes to another is not known."""
        target = str(node.target)
        if target.startswith("*"):
            return dict if target.startswith("**") else tuple
        if self.tracer.example is None:
            is_passed = self.tracer.passed is not None and not isinstance(self.tracer.root, fx.GraphModule)
            return None if is_passed else Tensor
        given = self.given.get(target)
        return Tensor if given is None or isinstance(given, Tensor) else type(given)

    def type_of(self, value: TracedProxy) -> type:
        """What `isinstance(value, ...)` goes by."""
        found = self.kind_of(value.node)
        if found is None:
            self.tracer.stop(f"asks what type {value.node.name} has, which nothing tells")
        return found

    def is_container(self, value: Any) -> bool:
        """Whether something is a list or dictionary that came from outside."""
        found = self.kind_of(value.node) if issubclass(type(value), fx.Proxy) else None
        return found is not None and issubclass(found, list | dict)

    def check_attribute(self, node: fx.Node, name: str) -> None:
        """Raise `AttributeError` where the value has no such attribute: `hasattr(x, "logits")`."""
        found = self.kind_of(node)
        if found is None or hasattr(found, name):
            return
        given = self.given.get(str(node.target)) if node.op == "placeholder" else None
        if not hasattr(given, name):
            raise AttributeError(f"{found.__name__!r} object has no attribute {name!r}")

    def gradient_fact(self, value: TracedTensor, name: str) -> Any:
        """What depends on whether gradients are recorded: answered as in the world of this trace.

        `repfx.tracing.worlds` traces in both worlds, and a module that goes another way in the other one is an island.
        """
        held, gradients = value.held, self.tracer.world.gradients
        match name:
            case "requires_grad":
                return gradients if held is None else held.requires_grad
            case "is_leaf":
                return held is not None or value.node.op == "placeholder" or not gradients
            case "grad_fn" if held is not None or not gradients:
                return None
            case "retains_grad" | "volatile" if not gradients:
                return False
            case _:
                self.tracer.stop(f"asks for .{name} of a value, which is no function of the inputs")

    # --- how many items are in it? ---

    def unpack(self, obj: fx.Proxy, count: int) -> Any:
        """The items of a value that is unpacked into so many names; another number of items is checked for."""
        known = self.count(obj.node)
        if known is None and _asks_for(obj.node) != count:  # a chunk has no more parts, and misses one if it has fewer
            if may_be_caught(frame_of_caller(), self.tracer.outermost):
                self.tracer.stop("unpacks a value whose length nothing tells, and goes on where that fails")
            self._guard_length(obj.node, count)
        if known is not None and known != count:
            raise ValueError(f"{'too many' if known > count else 'not enough'} values to unpack (expected {count})")
        return self.tracer.unpack(obj, count)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a split or of a shape, where structure tells how many there are."""
        count = self.count(obj.node)
        if count is None:
            self.tracer.stop(f"loops over {obj.node.name}, whose length nothing tells")
        return self._items(obj, count)

    def _items(self, obj: fx.Proxy, count: int) -> Iterator[Any]:
        make = self.tracer.create_proxy
        return iter([make("call_function", operator.getitem, (obj, i), {}) for i in range(count)])

    def size_of(self, obj: fx.Proxy) -> int:
        """How many items a value has."""
        count = self.count(obj.node)
        if count is None:
            self.tracer.stop(f"asks for the length of {obj.node.name}, which nothing tells")
        return count

    def rank_of(self, value: fx.Proxy) -> int:
        """How many dimensions a value has; one, which is not as good as a number, for all that is known."""
        rank = self.shapes.rank(value.node)
        return 1 if rank is None else rank

    def count(self, node: fx.Node) -> int | None:
        """How many items a value has: a split, a shape, a tensor; a shape's rank is checked at run time."""
        if self.kind_of(node) is Tensor:
            return self.shapes.size(node, 0)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        name = _name(node)
        if name == "unbind":
            return self._size(source, argument(node, 1, "dim", 0))
        if name in SPLITS:
            return self._count_parts(node, source, name)
        if name == "getitem" and isinstance(node.args[1], slice) and is_shape(source):
            return self._count_slice(source, node.args[1])
        return self._count_sizes(node, source) if is_shape(node) else None

    def _count_parts(self, node: fx.Node, source: fx.Node, name: str) -> int | None:
        """Into how many parts a value is split."""
        sizes = part_sizes(node, self._size(source, split_dim(node, name)))
        return None if sizes is None else len(sizes)

    def _size(self, source: fx.Node, dim: Any) -> int | None:
        """A size of a value, as far as structure tells it and along which axis."""
        return self.shapes.size(source, dim) if isinstance(dim, int) else None

    def _count_slice(self, shape: fx.Node, taken: slice) -> int | None:
        """How many sizes are taken from a shape."""
        whole = self.count(shape)
        plain = all(end is None or isinstance(end, int) for end in (taken.start, taken.stop))
        return None if whole is None or not plain else len(range(whole)[taken])

    def _count_sizes(self, shape: fx.Node, source: fx.Node) -> int | None:
        """How many sizes a shape has."""
        rank = self.shapes.rank(source)
        if rank is not None:
            self._guard_length(shape, rank)
        return rank

    def _guard_length(self, node: fx.Node, length: int) -> None:
        guard = SizeGuard("length", length, place(), "")
        self.tracer.add_guard("sizes", guard, (fx.Proxy(node, self.tracer),), {})

    def check_index(self, shape: fx.Node, index: Any) -> None:
        """Raise where a shape has no such item; where nothing tells, and the model would go on, that is no graph."""
        if type(index) is not int:
            return
        rank = self.shapes.rank(shape.args[0]) if isinstance(shape.args[0], fx.Node) else None
        if rank is not None and not -rank <= index < rank:
            raise IndexError("tuple index out of range")
        if rank is None and may_be_caught(frame_of_caller(), self.tracer.outermost):
            self.tracer.stop("reads a size that there may be none of, and goes on where that fails")

    # --- what is it? ---

    def text_of(self, obj: fx.Proxy, write: Callable[[Any], str]) -> str:
        """A word that stands for a value in a text, for the message of an assertion and for nothing else."""
        device = next((p.device for p in self.tracer.root.parameters()), None)
        if self.kind_of(obj.node) is torch.device and device is not None:
            guard = SizeGuard("value", device, place(), f"weights on {device}")
            self.tracer.add_guard("sizes", guard, (fx.Proxy(obj.node, self.tracer),), {})
            return write(device)
        word = f"<value {len(self.words)} of the trace>"
        self.words[word] = self.tracer.scope.module_path
        return word

    def stray_word(self) -> str | None:
        """Where a value was written into a text that is not the message of an assertion; None if nowhere."""
        if not self.words:
            return None
        assertions = [node for node in self.tracer.graph.nodes if is_assertion(node)]
        messages = " ".join(str(a) for node in assertions for a in (*node.args, *node.kwargs.values()))
        return next((path for word, path in self.words.items() if word not in messages), None)

    def holds(self, obj: fx.Proxy, item: Any) -> bool:
        """Whether a value contains another: `3 in x.shape`."""
        return self.to_bool(self.tracer.create_proxy("call_function", operator.contains, (obj, item), {}))

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Nothing tells whether a value is true."""
        self.tracer.stop("branches on a value that is known at run time only")

    def number_of(self, obj: fx.Proxy) -> Any:
        """Nothing tells what number a value is."""
        self.tracer.stop("needs a number that is known at run time only")

    def object_of(self, obj: fx.Proxy, name: str) -> Any:
        """Nothing tells which object an attribute is: `x.dtype is torch.float64`."""
        self.tracer.stop(f"asks which object .{name} of a value is, which is known at run time only")

    def key_of(self, obj: fx.Proxy) -> Any:
        """Nothing tells what a value is found under in a table: `scales[x.shape[-1]]`."""
        self.tracer.stop("looks a value up that is known at run time only")


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _asks_for(node: fx.Node) -> Any:
    """How many parts a split by number asks for: 2 of `x.chunk(2, 1)`."""
    if _name(node) not in ("chunk", "tensor_split", "hsplit"):
        return None
    return node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()), None)
