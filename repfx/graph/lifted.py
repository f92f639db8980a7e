"""The lifted graph: an fx graph, what each node computes, and who reads whom.

Reading is free for everyone; only the engine changes it (`repfx.rewriting.engine` and what it uses).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import fx, nn

from repfx.algebra import AffineConv, form_of
from repfx.decline import Decline, Reason
from repfx.graph.context import Context
from repfx.graph.dead_code import has_effect
from repfx.graph.nodes import place_of
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
        named = [d for d in self.dependents(node) if d in self._ops and self.is_affine(d) and node in self.sources(d)]
        if all(d in node.users and self._is_plain(d) for d in named):
            return [u for u in node.users if u in named or self.is_live(u)]
        out: dict[fx.Node, None] = {}
        for user in node.users:
            for reader in self._reached(node, user):
                out[reader] = None
        return self._by_name(out, named)

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
        covered = set(named).union(*(self._prepared(d) for d in named))
        inner = set().union(*(self._prepared(d) for d in named))
        found.update(dict.fromkeys(named))
        return [r for r in found if not (r in inner and r.users and all(u in covered for u in r.users))]

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
            if step in self._ops and self.is_affine(step) and node in self.sources(step):
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
        understood = set().union(*(self._prepared(reader) for reader in found))
        return found if all(step in understood for step in between) else [user]

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
            case Concat():
                return "cat"
            case Alias():
                return "no-op"
            case Normalised():
                return "norm scale"
            case Affine(axes=axes):
                map_ = self.map_of(node, axes or 0) if axes is not None else None
                if isinstance(map_, AffineConv) and map_.selection is not None:
                    return "slice"
                if node.op == "call_module":
                    return _module_word(self.context.module(node))
                name = getattr(node.target, "__name__", str(node.target))
                return {"getitem": "slice", "mul": "scale", "truediv": "scale", "add": "shift"}.get(name, name)
            case Opaque() if node.op == "call_module":
                return _module_word(self.context.module(node)).lower()
            case Opaque():
                return str(getattr(node.target, "__name__", node.target))
            case _:
                return "op"

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
        case Affine(source=source) | Alias(source=source):
            return replace(op, source=now(source))
        case Resampling(source=source):
            return replace(op, source=now(source))
        case Normalised(source=source):
            return replace(op, source=now(source))
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


def _module_word(module: nn.Module) -> str:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch norm"
    return type(module).__name__
