"""Alike stretches of a graph: the blocks of a network that differ in nothing but their weights.

A stretch is the nodes of one module's call.  Each node is described by what it computes, by the structure of its
module, and by how far back the values stand that it reads; so two stretches with equal descriptions are the
same graph, node by node, and what is decided about one of them from its own nodes holds for the other.
Whatever a description cannot tell (an island, a hook, an index whose numbers are structure) is like nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repfx.graph import Affine, Concat, LiftedGraph, Sum, affine_sources, attribute

_MARKS = frozenset(("aliased", "overwriters", "overwrites", "unread", "guard"))  # what a node does to memory, or checks
_STATE = frozenset(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = frozenset(
    (int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout, type(Ellipsis))
)
_COUNTER = "num_batches_tracked"  # of a batch norm: no number that anything depends on


@dataclass(frozen=True)
class Family:
    """Alike stretches, by the places of their first nodes; each is `length` nodes long."""

    length: int
    starts: tuple[int, ...]
    given: tuple[int, ...]  # values from outside that a stretch reads, counted from its start


@dataclass
class Layout:
    """All nodes of a graph in order, and the families among them."""

    nodes: list[fx.Node]
    place: dict[fx.Node, int]
    families: list[Family] = field(default_factory=list)

    def stretch(self, family: Family, start: int) -> list[fx.Node]:
        """The nodes of one stretch."""
        return self.nodes[start : start + family.length]


@dataclass
class _Call:
    """One call of a module: its nodes, from `start` on, and the calls in it."""

    path: str
    start: int
    stop: int = 0
    inner: list[_Call] = field(default_factory=list)


def alike(lifted: LiftedGraph) -> Layout:
    """The largest stretches that occur more than once."""
    nodes = lifted.nodes()
    place = {node: i for i, node in enumerate(nodes)}
    layout = Layout(nodes, place)
    calls = _calls(nodes)
    if not calls.inner:
        return layout
    contents = _contents(lifted, layout, calls)
    for members in _largest(calls, contents):
        given = _given(lifted, layout, members[0])
        same: dict[Hashable, list[int]] = {}
        for member in members:
            facts = tuple(_facts(lifted, nodes[member.start + offset]) for offset in given)
            same.setdefault(facts, []).append(member.start)
        length = members[0].stop - members[0].start
        layout.families += [Family(length, tuple(starts), given) for starts in same.values() if len(starts) > 1]
    return layout


def _contents(lifted: LiftedGraph, layout: Layout, calls: _Call) -> dict[int, Hashable]:
    """What each call does, by its identity: its nodes, and which of their values are read behind it."""
    described = _Describer(lifted, layout.place).all(layout.nodes)
    readers = ((*node.users, *lifted.dependents(node)) for node in layout.nodes)
    last = np.array([max(map(layout.place.__getitem__, found), default=-1) for found in readers])
    contents: dict[int, Hashable] = {}
    for call in _all(calls):
        escaping = np.flatnonzero(last[call.start : call.stop] >= call.stop)
        contents[id(call)] = (described[call.start : call.stop].tobytes(), escaping.tobytes())
    return contents


def _largest(calls: _Call, contents: Mapping[int, Hashable]) -> list[list[_Call]]:
    """The outermost calls whose content occurs more than once, those of one content together."""
    occurring = Counter(contents.values())
    chosen: dict[Hashable, list[_Call]] = {}
    work = list(reversed(calls.inner))
    while work:
        call = work.pop()
        content = contents[id(call)]
        if occurring[content] > 1 and call.stop - call.start > 1:
            chosen.setdefault(content, []).append(call)
        else:
            work.extend(reversed(call.inner))
    return list(chosen.values())


def _all(call: _Call) -> Iterator[_Call]:
    for inner in call.inner:
        yield inner
        yield from _all(inner)


def _calls(nodes: Sequence[fx.Node]) -> _Call:
    """The tree of module calls that made the nodes."""
    root = _Call("", 0, len(nodes))
    opened = [root]
    for i, node in enumerate(nodes):
        stack = list(node.meta.get("nn_module_stack") or ())
        kept, shared = 0, min(len(stack), len(opened) - 1)
        while kept < shared and opened[kept + 1].path == stack[kept]:
            kept += 1
        for call in opened[kept + 1 :]:
            call.stop = i
        del opened[kept + 1 :]
        for path in stack[kept:]:
            call = _Call(path, i)
            opened[-1].inner.append(call)
            opened.append(call)
    for call in opened:
        call.stop = len(nodes)
    return root


def _given(lifted: LiftedGraph, layout: Layout, call: _Call) -> tuple[int, ...]:
    """What a stretch reads from outside."""
    found = set()
    for node in layout.nodes[call.start : call.stop]:
        for source in (*node.all_input_nodes, *affine_sources(lifted.op(node))):
            found.add(layout.place[source] - call.start)
    return tuple(sorted(offset for offset in found if not 0 <= offset < call.stop - call.start))


def _facts(lifted: LiftedGraph, node: fx.Node) -> Hashable:
    """What is known of a value that a stretch is given."""
    context = lifted.context
    if not _MARKS.isdisjoint(node.meta) or _may_index(lifted, node):
        return object()
    further = () if context.sure is None else (context.sure.of(node), context.structure.of(node))
    return context.shapes.of(node), context.constants.is_constant(node), further


def _may_index(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether a value is a constant whose numbers may decide: an index."""
    constants = lifted.context.constants
    if not constants.is_constant(node):
        return False
    meta = constants.meta(node)
    return meta is None or not meta.is_floating_point()


class _Describer:
    """A number for what each node is; equal numbers, equal descriptions."""

    def __init__(self, lifted: LiftedGraph, place: dict[fx.Node, int]) -> None:
        self._lifted = lifted
        self._place = place
        self._numbers: dict[Hashable, int] = {}
        self._used: dict[int, int] = {}  # where each tensor was used last
        self._modules: dict[str, Hashable] = {}

    def all(self, nodes: Sequence[fx.Node]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The numbers of all nodes."""
        numbers = self._numbers
        found = [numbers.setdefault(self._node(i, node), len(numbers)) for i, node in enumerate(nodes)]
        return np.array(found, np.int64)

    def _node(self, i: int, node: fx.Node) -> Hashable:
        context = self._lifted.context
        read = self._read(node) if _MARKS.isdisjoint(node.meta) else None
        if read is None:
            return object()  # like nothing else
        target, tensors = read
        known = None if context.sure is None else context.shapes.of(node)  # the example's
        given = self._value(i, node.args), self._value(i, node.kwargs) if node.kwargs else None
        return node.op, target, self._ties(i, tensors), given, known, self._op(i, node)

    def _read(self, node: fx.Node) -> tuple[Hashable, Sequence[Tensor]] | None:
        """What a node calls or holds, and its tensors; None where that cannot be told."""
        match node.op:
            case "call_module":
                return self._called(node)
            case "get_attr":
                value = attribute(self._lifted.root, str(node.target))
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    return None
                return _tensor(value), (value,)
            case "placeholder" | "output":
                return None
            case _:
                return None if _may_index(self._lifted, node) else (node.target, ())

    def _called(self, node: fx.Node) -> tuple[Hashable, Sequence[Tensor]] | None:
        """The module that is called, and its tensors; None for one that is never looked into."""
        path = str(node.target)
        if path in self._lifted.context.whole:
            return None
        module = self._lifted.context.module(node)
        held = (*module._parameters.values(), *module._buffers.values())
        return self._module(path, module), [tensor for tensor in held if tensor is not None]

    def _ties(self, i: int, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        """How far back each tensor was used last; 0 where it was not."""
        ties = []
        for tensor in tensors:
            ties.append(i - self._used.get(id(tensor), i))
            self._used[id(tensor)] = i
        return tuple(ties)

    def _op(self, i: int, node: fx.Node) -> Hashable:
        op, place = self._lifted.op(node), self._place
        sources = tuple([i - place[source] for source in affine_sources(op)])
        match op:
            case Affine(axes=axes):
                return Affine, axes, sources
            case Sum(terms=terms, shift=shift):
                return Sum, tuple([factor for _, factor in terms]), shift, sources
            case Concat(first=first, last=last, order=order):
                return Concat, first, last, None if order is None else order.tobytes(), sources
            case _:
                return type(op), sources

    def _value(self, i: int, value: object) -> Hashable:
        """An argument, its nodes by how far back they stand."""
        if isinstance(value, fx.Node):
            return "node", i - self._place[value]
        if type(value) in _PLAIN:
            return type(value), value
        if isinstance(value, list | tuple):
            return type(value).__name__, tuple([self._value(i, v) for v in value])
        if isinstance(value, slice):
            return "slice", *(self._value(i, v) for v in (value.start, value.stop, value.step))
        if isinstance(value, dict):
            return "dict", tuple([(k, self._value(i, v)) for k, v in value.items()])
        return object()

    def _module(self, path: str, module: nn.Module) -> Hashable:
        found = self._modules.get(path)
        if found is None:
            found = self._modules[path] = _module(module)
        return found


def _module(module: nn.Module) -> Hashable:
    """Everything about a module without children but the numbers of its weights."""
    if module._modules or any(getattr(module, name) for name in _HOOKS):
        return object()
    content: list[Any] = [type(module)]
    for name, value in module.__dict__.items():
        if name not in _STATE:
            content += [name, type(value), _plain(value)]
    for name, parameter in module._parameters.items():
        content += [name, None if parameter is None else _tensor(parameter)]
    for name, buffer in module._buffers.items():
        content += [name, None if buffer is None else _buffer(name, buffer)]
    return tuple(content)


def _plain(value: object) -> Hashable:
    """A number, a word, or several of them; anything else is like nothing."""
    if type(value) in _PLAIN:
        return value
    if type(value) in (list, tuple) and all(type(part) in _PLAIN for part in value):  # type: ignore[attr-defined]
        return tuple(value)  # type: ignore[arg-type]
    return object()


def _buffer(name: str, buffer: Tensor) -> Hashable:
    return _tensor(buffer) if buffer.is_floating_point() or name == _COUNTER else object()


def _tensor(tensor: Tensor) -> Hashable:
    return type(tensor), tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride()
