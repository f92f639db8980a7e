"""What was done to one stretch of a graph is done to those like it, each with its own weights.

The first stretch of a family (`repfx.rewriting.isomorphism`) was rewritten by proposals that looked at nothing
outside it.  Its new nodes are made again for another stretch: every map is derived in the same way from the maps of the
other stretch's own operations, whose structure must be the same.  Anything that does not fit leaves the other stretch
as it was, to be rewritten by proposals of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from repfx.algebra import AffineConv
from repfx.decline import Decline
from repfx.graph import Affine, Concat, LiftedGraph, Op, Record, Sum, place_of
from repfx.rewriting.history import larger
from repfx.rewriting.isomorphism import Family, Layout
from repfx.rewriting.proposal import Add, Apply, Cat, Expr, Proposal, Ref, Then

Check = Callable[[Proposal], float | None]


class UnlikeError(Exception):
    """A stretch is not what the first one was, or holds what cannot be made again."""


@dataclass(frozen=True, eq=False)
class _Origin:
    """A map that the operation of a node of the first stretch is, or why it is none."""

    node: fx.Node
    axes: int
    channels: int | None
    map: AffineConv | Decline


@dataclass
class Effect:
    """What became of the first stretch of a family."""

    lifted: LiftedGraph
    layout: Layout
    family: Family
    made: list[fx.Node]  # the new nodes that are left, in order
    anchors: Mapping[fx.Node, fx.Node]  # the node of the stretch before which each was put
    moved: list[tuple[fx.Node, fx.Node]]  # nodes of the stretch, and what stands for their values now
    dead: list[fx.Node]
    given: dict[fx.Node, fx.Node]  # what stands for a value from outside, and that value
    origins: dict[int, _Origin]  # of which node's operation a map is


def effect_on(
    lifted: LiftedGraph, layout: Layout, family: Family, made: Sequence[fx.Node], anchors: Mapping[fx.Node, fx.Node]
) -> Effect | None:
    """What was done to the first stretch; None where it was nothing, or cannot be made again."""
    stretch = layout.stretch(family, family.starts[0])
    left = sorted(filter(lifted.alive, made))
    dead = [node for node in stretch if not lifted.alive(node)]
    if not dead or not all(_can_be_made_again(lifted, node) for node in left):
        return None
    given = _given(lifted, layout, family)
    if given is None:
        return None
    standing = [(node, lifted.current(node)) for node in stretch]
    moved = [(node, now) for node, now in standing if now is not node and lifted.alive(now)]
    return Effect(lifted, layout, family, left, anchors, moved, dead, given, _origins(lifted, stretch))


def _origins(lifted: LiftedGraph, stretch: Sequence[fx.Node]) -> dict[int, _Origin]:
    """Of which node's operation each map is, by the map's identity."""
    found: dict[int, _Origin] = {}
    for node in stretch:
        for (axes, channels), map_ in lifted.maps_built(node):
            found[id(map_)] = _Origin(node, axes, channels, map_)
    return found


def _given(lifted: LiftedGraph, layout: Layout, family: Family) -> dict[fx.Node, fx.Node] | None:
    """What stands for each value that the first stretch is given; None where one stands for two of them."""
    given: dict[fx.Node, fx.Node] = {}
    for offset in family.given:
        value = layout.nodes[family.starts[0] + offset]
        if given.setdefault(lifted.current(value), value) is not value:
            return None  # one value now, where others may be given two
    return given


def _can_be_made_again(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether all of a new node is its operation over other values, and the map that its record keeps."""
    if node in lifted.calls:
        return False
    match lifted.op(node):
        case Affine():
            return node in lifted.records
        case Sum() | Concat():
            return True
        case _:
            return False


@dataclass
class Repetition:
    """The first stretch's rewriting on its way to another stretch of the family."""

    effect: Effect
    start: int  # of the other stretch

    def __post_init__(self) -> None:
        self._lifted = self.effect.lifted
        self._shift = self.start - self.effect.family.starts[0]
        self._twins: dict[fx.Node, fx.Node] = {}
        self._maps: dict[int, AffineConv] = {}

    def run(self, check: Check | None) -> bool:
        """Rewrite the other stretch; False, and nothing changed, where it cannot be done alike."""
        try:
            records = self._records(check)
        except UnlikeError:
            return False
        for node in self.effect.made:
            self._make(node, records.get(node))
        for old, now in self.effect.moved:
            node, twin = self._other(old), self._standing(now)
            shapes = self._lifted.context.shapes
            if shapes.of(twin) is None:
                shapes.set(twin, shapes.of(node))
            node.replace_all_uses_with(twin)
            self._lifted.rename(node, twin)
        for old in reversed(self.effect.dead):
            node = self._other(old)
            self._lifted.graph.erase_node(node)
            self._lifted.forget(node)
        return True

    def _other(self, node: fx.Node) -> fx.Node:
        """The node of the other stretch, or of what it is given, that stands where `node` does."""
        layout = self.effect.layout
        return layout.nodes[layout.place[node] + self._shift]

    def _standing(self, node: fx.Node) -> fx.Node:
        """What stands, for the other stretch, where `node` does now for the first."""
        if node in self._twins:
            return self._twins[node]
        return self._lifted.current(self._value(node))

    def _value(self, node: fx.Node) -> fx.Node:
        """The original value of the other stretch where `node`, an original or given, stands for one of the first."""
        layout, family = self.effect.layout, self.effect.family
        if node in self.effect.given:
            return self._other(self.effect.given[node])
        if not 0 <= layout.place.get(node, -1) - family.starts[0] < family.length:
            raise UnlikeError
        return self._other(node)

    def _map(self, map_: AffineConv) -> AffineConv:
        """The map that is derived from the other stretch's operations as `map_` is from the first one's."""
        work = [map_]
        while work:
            top = work[-1]
            if id(top) in self._maps:
                work.pop()
                continue
            missing = self._missing(top)
            if missing:
                work += missing
            else:
                self._maps[id(top)] = self._remade(top)
        return self._maps[id(map_)]

    def _missing(self, map_: AffineConv) -> list[AffineConv]:
        """What a map is derived from, as far as the other stretch's is not known yet."""
        if id(map_) in self.effect.origins:
            return []
        if map_.is_given:
            raise UnlikeError  # numbers of which nothing tells whose they are
        return [given for given in map_.inputs if id(given) not in self._maps]

    def _remade(self, map_: AffineConv) -> AffineConv:
        """The other stretch's map, once all that it is derived from is known."""
        origin = self.effect.origins.get(id(map_))
        if origin is not None:
            return self._derived(origin)
        return map_.fed([self._maps[id(given)] for given in map_.inputs]) if map_.inputs else map_

    def _derived(self, origin: _Origin) -> AffineConv:
        """The map of the other stretch's operation; of the same structure."""
        made = self._built(origin)
        if not isinstance(made, AffineConv):
            raise UnlikeError
        return made

    def _built(self, origin: _Origin) -> AffineConv | Decline:
        """What the other stretch's operation is where the first one's is `origin`: alike, or `UnlikeError`."""
        other = self._other(origin.node)
        op = self._lifted.op(other) if self._lifted.alive(other) else None
        if not isinstance(op, Affine):
            raise UnlikeError
        made = self._lifted.built(other, op, origin.axes, origin.channels)
        if isinstance(made, AffineConv) and isinstance(origin.map, AffineConv):
            same = made.structure == origin.map.structure
        else:
            same = type(made) is type(origin.map)
        if not same:
            raise UnlikeError
        return made

    def _records(self, check: Check | None) -> dict[fx.Node, Record]:
        """The records of the new nodes, for the other stretch; checked."""
        places = self._places()
        for origin in self.effect.origins.values():
            self._built(origin)  # also where nothing of it is left: what was decided rested on it
        records: dict[fx.Node, Record] = {}
        for node in self.effect.made:
            for given in self._lifted.sources(node):
                if given not in self.effect.made:
                    self._value(given)
            record = self._lifted.records.get(node)
            if record is not None:
                records[node] = self._record(record, places)
        self._check(check, records)
        return records

    def _places(self) -> dict[str, str]:
        """Where the other stretch has what the first one has at a place."""
        places: dict[str, str] = {}
        for node in self.effect.layout.stretch(self.effect.family, self.effect.family.starts[0]):
            own, other = place_of(node), place_of(self._other(node))
            if places.setdefault(own, other) != other:
                raise UnlikeError
        return places

    def _record(self, record: Record, places: Mapping[str, str]) -> Record:
        """The same history, of the other stretch."""
        if record.note or not all(source in places for source in record.sources):
            raise UnlikeError
        sources = [places[source] for source in record.sources]
        return Record(self._map(record.map), sources, Counter(record.kinds), list(record.rules))

    def _check(self, check: Check | None, records: Mapping[fx.Node, Record]) -> None:
        """Every value that is replaced is one that can be, and passes the probes."""
        last = {now: old for old, now in self.effect.moved}  # what is behind the others, which are the same value
        for old, now in self.effect.moved:
            if now not in self.effect.made:
                self._value(now)
            elif check is not None and last[now] is old:
                error = check(self._proposal(old, now, records))
                for record in records.values():
                    record.error = larger(record.error, error)

    def _proposal(self, old: fx.Node, now: fx.Node, records: Mapping[fx.Node, Record]) -> Proposal:
        """The replacement of one value of the other stretch, with everything that it replaces."""
        sink, leaves = self._other(old), set[fx.Node]()
        expr = self._computed(now, records, leaves)
        inside = self._between(sink, leaves)
        return Proposal("repeated", ((sink, expr),), tuple(sorted(inside)))

    def _between(self, sink: fx.Node, leaves: set[fx.Node]) -> set[fx.Node]:
        """What is computed on the way from the leaves to the sink, both of the other stretch."""
        inside, work = {sink}, [sink]
        while work:
            for source in self._read(work.pop()):
                if source in leaves or source in inside or self._lifted.context.constants.is_constant(source):
                    continue
                if source not in self.effect.layout.place:
                    raise UnlikeError
                inside.add(source)
                work.append(source)
        return inside

    def _read(self, node: fx.Node) -> Sequence[fx.Node]:
        return self._lifted.sources(node) or node.all_input_nodes

    def _computed(self, now: fx.Node, records: Mapping[fx.Node, Record], leaves: set[fx.Node]) -> Expr:
        """What a new node of the first stretch computes, over the original values of the other one."""
        match self._lifted.op(now):
            case Affine(source=source):
                given, map_ = self._expression(source, records, leaves), records[now].map
                return Apply(map_, given.node) if isinstance(given, Ref) else Then(map_, given)
            case Sum(terms=terms, shift=0.0) if all(factor == 1.0 for _, factor in terms):
                return Add(tuple(self._expression(t, records, leaves) for t, _ in terms))
            case Concat(parts=parts):
                return Cat(tuple(self._expression(p, records, leaves) for p in parts), int(str(now.args[1])))
            case _:
                raise UnlikeError

    def _expression(self, now: fx.Node, records: Mapping[fx.Node, Record], leaves: set[fx.Node]) -> Expr:
        """A value of the first stretch for the other one: an original value, noted as a leaf, or what it computes."""
        former = next((old for old, moved in self.effect.moved if moved is now), None)
        if former is not None:
            value = self._other(former)
        elif now not in self.effect.made:
            value = self._lifted.current(self._value(now))
        else:
            return self._computed(now, records, leaves)
        leaves.add(value)
        return Ref(value)

    def _make(self, node: fx.Node, record: Record | None) -> None:
        """The twin of a new node."""
        lifted = self._lifted
        anchor = self._other(self.effect.anchors[node])
        with lifted.graph.inserting_before(anchor):
            twin = lifted.graph.node_copy(node, self._standing)
        twin.meta = {k: v for k, v in node.meta.items() if k != "nn_module_stack"}
        twin.meta["nn_module_stack"] = anchor.meta.get("nn_module_stack", {})
        self._twins[node] = twin
        lifted.define(twin, self._operation(lifted.op(node), record))
        if record is not None:
            lifted.records[twin] = record
        lifted.context.shapes.set(twin, lifted.context.shapes.of(node))

    def _operation(self, op: Op, record: Record | None) -> Op:
        match op:
            case Affine(source=source, axes=axes):
                assert record is not None
                return Affine(self._standing(source), axes, lambda axes, channels: record.map)
            case Sum(terms=terms):
                return replace(op, terms=tuple((self._standing(t), factor) for t, factor in terms))
            case Concat(parts=parts):
                return replace(op, parts=tuple(self._standing(p) for p in parts))
            case _:
                raise AssertionError("nothing else is made again")
