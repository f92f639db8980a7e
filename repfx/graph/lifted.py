"""The lifted graph: an fx graph, what each node computes, and who reads whom.

Reading is free for everyone; only the engine changes it (`repfx.rewriting.engine` and what it uses).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import fx, nn

from repfx.algebra import AffineConv, form_of
from repfx.decline import Decline, Reason
from repfx.graph.context import Context
from repfx.graph.dead_code import has_effect
from repfx.graph.kinds import OpKind
from repfx.graph.nodes import argument, place_of
from repfx.graph.operation_table import OPERATIONS, operation_named
from repfx.graph.ops import (
    Affine,
    Alias,
    Concat,
    Constant,
    Input,
    Normalised,
    Op,
    Opaque,
    Resampling,
    Sum,
    affine_sources,
)

_LOOK_THROUGH = 24  # operations between a value and the understood operation that they prepare


@dataclass
class Record:
    """The history of one rewritten value."""

    map: AffineConv
    sources: list[str] = field(default_factory=list)  # module paths that went into it
    kinds: Counter[str] = field(default_factory=Counter)  # operations that went into it
    rules: list[str] = field(default_factory=list)
    note: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Call:
    """The history of a value that one call computes without a map of its own: an attention."""

    text: str
    rule: str
    place: str
    kinds: Counter[str]
    sources: tuple[str, ...]
    note: str = ""
    error: float | None = None


class LiftedGraph:
    """One captured graph with its lifted operations."""

    def __init__(self, graph: fx.Graph, context: Context) -> None:
        self.graph = graph
        self.context = context
        self.root = context.root
        self.records: dict[fx.Node, Record] = {}
        self.calls: dict[fx.Node, Call] = {}
        self.dominators: object = None  # kept by repfx.regions
        self._ops: dict[fx.Node, Op] = {}
        self._named_by: dict[fx.Node, dict[fx.Node, None]] = {}  # whose operation names a value
        self._renamed: dict[fx.Node, fx.Node] = {}
        self._former: dict[fx.Node, fx.Node] = {}  # what a new node was called before
        self._maps: dict[tuple[fx.Node, int], AffineConv] = {}
        self._built: dict[fx.Node, dict[tuple[int, int | None], AffineConv | Decline]] = {}
        self._original = set(graph.nodes)

    def define(self, node: fx.Node, op: Op) -> None:
        """`node` computes `op`."""
        self._ops[node] = op
        for value in _named(op):
            self._named_by.setdefault(value, {})[node] = None

    def forget(self, node: fx.Node) -> None:
        """`node` has left the graph."""
        del self._ops[node]
        self.records.pop(node, None)
        self.calls.pop(node, None)

    def nodes(self) -> list[fx.Node]:
        """All nodes in order of execution."""
        return list(self.graph.nodes)

    @property
    def plain(self) -> LiftedGraph:
        """This graph; of a reader that notes what is looked at, the graph that it reads."""
        return self

    def op(self, node: fx.Node) -> Op:
        """What a node computes, over the values as they are named now."""
        return self._ops[node]

    def alive(self, node: fx.Node) -> bool:
        """Whether a node is still in the graph."""
        return node in self._ops

    def current(self, node: fx.Node) -> fx.Node:
        """The node that stands for a value now, after rewriting."""
        while node in self._renamed:
            node = self._renamed[node]
        return node

    @property
    def is_rewritten(self) -> bool:
        """Whether anything was rewritten."""
        return bool(self._renamed)

    def first_name(self, node: fx.Node) -> fx.Node:
        """The node that stood for this value before any rewriting."""
        while node in self._former:
            node = self._former[node]
        return node

    def rename(self, old: fx.Node, new: fx.Node) -> None:
        """`new` now stands for the value of `old`."""
        self._renamed[old] = new
        if new not in self._original:
            self._former.setdefault(new, old)
        for node in self._named_by.pop(old, ()):
            if node in self._ops:
                self.define(node, _renamed(self._ops[node], old, new))

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The values an affine node reads."""
        return affine_sources(self.op(node))

    def is_affine(self, node: fx.Node) -> bool:
        """Whether a node is an affine function of other values."""
        return not isinstance(self.op(node), Constant | Input | Resampling | Normalised | Opaque)

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that use this value.

        What only prepares an understood operation (a split, a stack, a view, the reading of a size) is
        looked through to that operation.
        """
        named = [dependent for dependent in self.dependents(node) if self._maps_from(dependent, node)]
        if all(d in node.users and self._is_plain(d) for d in named):
            return [u for u in node.users if u in named or self.is_live(u)]
        out: dict[fx.Node, None] = {}
        for user in node.users:
            for reader in self._reached(node, user):
                out[reader] = None
        return self._by_name(out, named)

    def _maps_from(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node is an affine function of a value."""
        return node in self._ops and self.is_affine(node) and source in self.sources(node)

    def _is_plain(self, node: fx.Node) -> bool:
        """Whether an affine node reads just the values that it names: nothing only prepares it."""
        sources = self.sources(node)
        return all(given in sources for given in node.all_input_nodes)

    def is_live(self, node: fx.Node) -> bool:
        """Whether anything comes of a node."""
        return bool(node.users) or node.op == "output" or has_effect(node)

    def _by_name(self, found: dict[fx.Node, None], named: list[fx.Node]) -> list[fx.Node]:
        """The readers, of which some (a pad whose frame is then written) only prepare others that name the value."""
        if all(d in found for d in named) and len(named) < 2:
            return list(found)
        inner = self._prepared_for(named)
        covered = inner.union(named)
        found.update(dict.fromkeys(named))

        def only_prepares(reader: fx.Node) -> bool:
            return reader in inner and bool(reader.users) and covered.issuperset(reader.users)

        return [reader for reader in found if not only_prepares(reader)]

    def dependents(self, node: fx.Node) -> Iterable[fx.Node]:
        """Nodes whose operation names this value."""
        return self._named_by.get(node, {})

    def _reached(self, node: fx.Node, user: fx.Node) -> list[fx.Node]:
        """The readers of `node` behind one of its users: the user itself, unless it only prepares others."""
        found: list[fx.Node] = []
        between: list[fx.Node] = []
        seen, work = {user}, [user]
        while work:
            step = work.pop()
            if self._maps_from(step, node):
                found.append(step)
                continue
            if not self.is_live(step):
                return found
            if step.op == "output" or has_effect(step) or len(seen) > _LOOK_THROUGH:
                return [user]
            between.append(step)
            fresh = [u for u in step.users if u not in seen]
            seen.update(fresh)
            work.extend(fresh)
        if not between:
            return found
        return found if self._prepared_for(found).issuperset(between) else [user]

    def _prepared_for(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """What only prepares some of these affine nodes."""
        prepared: set[fx.Node] = set()
        for node in nodes:
            prepared |= self._prepared(node)
        return prepared

    def _prepared(self, node: fx.Node) -> set[fx.Node]:
        """What stands between an affine node and the values it reads: its split, stack, view, size reads."""
        sources = set(self.sources(node))
        seen: set[fx.Node] = set()
        work = list(node.all_input_nodes)
        while work:
            step = work.pop()
            if step not in sources and step not in seen and len(seen) <= _LOOK_THROUGH:
                seen.add(step)
                work.extend(step.all_input_nodes)
        return seen

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that are given this value as it is; `readers` looks through those that only prepare others."""
        return list(node.users)

    def given(self, node: fx.Node) -> list[fx.Node]:
        """The values that a node is given, whatever it makes of them."""
        return list(node.all_input_nodes)

    def past_aliases(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
        """The value that a node is another name of, and the names passed on the way."""
        names: list[fx.Node] = []
        while isinstance(op := self.op(node), Alias):
            names.append(node)
            node = op.source
        return node, names

    def setting(
        self, node: fx.Node, module: type[nn.Module], function: Callable[..., object], position: int, name: str
    ) -> object:
        """What the call of a module of this type, or of this function, sets by that name; None for any other node."""
        if node.op == "call_module":
            called = self.context.module(node)
            return getattr(called, name) if type(called) is module else None
        is_called = node.op == "call_function" and node.target is function
        return argument(node, position, name) if is_called else None

    def is_output(self, node: fx.Node) -> bool:
        """Whether a node is the end of the graph, where values leave it."""
        return node.op == "output"

    def is_aliased(self, node: fx.Node) -> bool:
        """Whether an in-place operation may write into the memory of this value."""
        return bool(node.meta.get("aliased"))

    def reader_name(self, reader: fx.Node) -> str:
        """What reads a value, for people: the output, or a place."""
        return "the output" if self.is_output(reader) else self.place(reader)

    def rank(self, node: fx.Node) -> int | None:
        """Number of axes of a value, if known."""
        return self.context.shapes.rank(node)

    def size(self, node: fx.Node, axis: int) -> int | None:
        """Size of a value along one axis, if known; it may be the example's."""
        return self.context.shapes.size(node, axis)

    def place(self, node: fx.Node) -> str:
        """Module path of a node, for people."""
        if node in self.records and self.records[node].sources:
            sources = self.records[node].sources
            return common_path(sources) or sources[0]
        return place_of(node)

    def channels(self, node: fx.Node, axes: int) -> int | None:
        """Channel count of a value, as a map over that many spatial axes sees it.

        None where the example alone has it: a map has one number of channels, for every input.
        """
        axis = 1 if axes else -1
        first, sure = self.first_name(node), self.context.sure
        if sure is not None and first in self._original and node not in self.records:
            return sure.size(first, axis)
        return self.context.shapes.size(node, axis)

    def map_of(self, node: fx.Node, axes: int) -> AffineConv | Decline:
        """The map of an `Affine` node over its one source."""
        op = self.op(node)
        assert isinstance(op, Affine)
        known = self._maps.get((node, axes))
        if known is not None:
            return known
        map_ = self.built(node, op, axes, self.channels(op.source, axes))
        if isinstance(map_, AffineConv):
            self._maps[node, axes] = map_
        return map_

    def own_map(self, node: fx.Node) -> AffineConv | None:
        """The map of a node over the spatial axes that it says it has; None where it says none, or is no map of one."""
        op = self.op(node)
        if not isinstance(op, Affine) or op.axes is None:
            return None
        map_ = self.map_of(node, op.axes)
        return None if isinstance(map_, Decline) else map_

    def built(self, node: fx.Node, op: Affine, axes: int, channels: int | None) -> AffineConv | Decline:
        """What `op`, the operation of `node`, is over that many spatial axes of that many channels; made once."""
        made = self._built.setdefault(node, {})
        known = made.get((axes, channels))
        if known is None:
            known = made[axes, channels] = op.build(axes, channels)
        return known

    def maps_built(self, node: fx.Node) -> Iterable[tuple[tuple[int, int | None], AffineConv | Decline]]:
        """The maps that the operation of a node was found to be, with what was asked."""
        return self._built.get(node, {}).items()

    def kind(self, node: fx.Node) -> str:
        """A word for what a node is, for the record."""
        if node in self.records:
            return str(form_of(self.records[node].map))
        match self.op(node):
            case Sum(terms=terms):
                return "add" if len(terms) > 1 else "scale"
            case Affine() as op:
                return "slice" if self._is_slice(node, op) else self._word(node)
            case Opaque():
                return self._word(node).lower() if node.op == "call_module" else _called(node)
            case op:
                return {Concat: "cat", Alias: "no-op", Normalised: "norm scale"}.get(type(op), "op")

    def _is_slice(self, node: fx.Node, op: Affine) -> bool:
        map_ = None if op.axes is None else self.map_of(node, op.axes)
        return isinstance(map_, AffineConv) and map_.selection is not None

    def _word(self, node: fx.Node) -> str:
        """What an operation is called in a report: by its kind, or as the code calls it."""
        if node.op != "call_module":
            info = operation_named(node)
            return _called(node) if info is None else _WORDS.get(info.kind, _called(node))
        module = self.context.module(node)
        info = OPERATIONS.like(module)
        return type(module).__name__ if info is None else _LAYERS.get(info.kind, type(module).__name__)

    def unknown_channels(self, node: fx.Node) -> Decline:
        """The refusal for a value whose channel count structure does not give."""
        return Decline(
            Reason.UNKNOWN_FACT,
            "reads a value whose channel count is not known",
            self.place(node),
            "pass example_inputs",
        )

    def declines(self) -> Iterator[Decline]:
        """Refusals of the lifting."""
        for node in self.graph.nodes:
            op = self._ops.get(node)
            if isinstance(op, Opaque | Resampling) and op.decline is not None and node.users:
                yield op.decline


def _named(op: Op) -> tuple[fx.Node, ...]:
    """The values that an operation names."""
    match op:
        case Opaque(inputs=inputs):
            return inputs
        case Resampling(source=source) | Normalised(source=source):
            return (source,)
        case _:
            return affine_sources(op)


def _renamed(op: Op, old: fx.Node, new: fx.Node) -> Op:
    """The same operation, with one value under its new name."""

    def now(node: fx.Node) -> fx.Node:
        return new if node is old else node

    match op:
        case Affine() | Alias() | Resampling() | Normalised():
            return replace(op, source=now(op.source))
        case Sum(terms=terms):
            return replace(op, terms=tuple((now(t), factor) for t, factor in terms))
        case Concat(parts=parts):
            return replace(op, parts=tuple(now(p) for p in parts))
        case Opaque(inputs=inputs):
            return replace(op, inputs=tuple(now(i) for i in inputs))
        case _:
            return op


def common_path(paths: list[str]) -> str:
    """Longest common module path, "stages.0.blocks.1" of "stages.0.blocks.1.norm" and ".conv"."""
    split = [path.split(":")[0].split(".") for path in paths]
    common = []
    for names in zip(*split):
        if len(set(names)) != 1:
            break
        common.append(names[0])
    return ".".join(common)


_LAYERS = {OpKind.CONVOLUTION: "conv", OpKind.LINEAR: "linear", OpKind.BATCH_NORM: "batch norm"}
_WORDS = {OpKind.ITEM: "slice", OpKind.MULTIPLY: "scale", OpKind.ADD: "shift"}  # of a map that a function is


def _called(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
