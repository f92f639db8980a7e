"""Expressions of a proposal become nodes of the graph, each with its operation, its shape and its history.

A map is a node without a module yet; the module is written at the end (`repfx.emission.assembly`), from the float64 map
kept in `LiftedGraph.records`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from repfx.algebra import AffineConv
from repfx.graph import (
    PENDING,
    Affine,
    Concat,
    LiftedGraph,
    Normalised,
    Op,
    Opaque,
    Resampling,
    Sum,
)
from repfx.rewriting.attending import attended
from repfx.rewriting.history import call_of, record_of
from repfx.rewriting.proposal import Add, Apply, Attend, Cat, Expr, Plain, Proposal, Ref, Shared, Then, Through

Introduce = Callable[[fx.Node, Op, fx.Node], None]  # told of every new node, and of what it is to replace
Shape = tuple[int | None, ...] | None


@dataclass
class Builder:
    """Builds what replaces one value after the other of a proposal; what they share is built once."""

    lifted: LiftedGraph
    proposal: Proposal
    error: float | None  # of the replacement, on the probes
    introduce: Introduce
    _shared: dict[int, fx.Node] = field(default_factory=dict)  # what several expressions hold, by identity

    def build(self, expr: Expr, sink: fx.Node, absorbed: Sequence[fx.Node]) -> fx.Node:
        """The node that computes an expression in the place of `sink`; `absorbed` is what goes into it."""
        match expr:
            case Ref(node=node):
                return self.lifted.current(node)
            case Apply(map=map_, value=value):
                return self._mapped(map_, value, sink, absorbed)
            case Then(map=map_, value=inner):
                return self._mapped(map_, self.build(inner, sink, ()), sink, absorbed)
            case Shared():
                return self._part(expr, sink)
            case Add(values=values):
                return self._sum(self._build_all(values, sink, absorbed), sink)
            case Cat(values=values, dim=dim):
                return self._concatenation(self._build_all(values, sink, absorbed), dim, sink)
            case Through(node=node, value=inner):
                return self._once(expr, lambda: self._resampled(node, self.build(inner, sink, absorbed), sink))
            case Plain(node=node):
                return self._once(expr, lambda: self._normalised(node, sink))
            case Attend():
                return self._attention(expr, self._build_all(expr.values, sink, absorbed), sink)

    def _once(self, shared: object, build: Callable[[], fx.Node]) -> fx.Node:
        """What several expressions hold is built where it is met first."""
        if id(shared) not in self._shared:
            self._shared[id(shared)] = build()
        return self._shared[id(shared)]

    def _mapped(self, map_: AffineConv, value: fx.Node, sink: fx.Node, absorbed: Sequence[fx.Node]) -> fx.Node:
        """A map of a value; one that changes nothing is that value, and hides it from no neighbour."""
        lifted = self.lifted
        value = lifted.current(value)  # an earlier replacement of this proposal may stand for it
        if map_.is_identity:
            return value
        new = lifted.graph.call_module(PENDING, (value,))
        new.meta["nn_module_stack"] = sink.meta.get("nn_module_stack", {})
        self._define(new, Affine(value, map_.axes, lambda axes, channels: map_), sink)
        lifted.records[new] = record_of(lifted, map_, self.proposal, absorbed, self.error)
        lifted.context.shapes.set(new, self._shape(map_, value))
        return new

    def _shape(self, map_: AffineConv, value: fx.Node) -> tuple[int | None, ...] | None:
        """Partial shape of a map of a value."""
        if map_.axes:
            return (None, map_.out_channels, *(None,) * map_.axes)
        given = self.lifted.context.shapes.of(value)
        return None if given is None else (*given[:-1], map_.out_channels)

    def _part(self, expr: Shared, sink: fx.Node) -> fx.Node:
        """A part of a map that several replacements share."""
        lifted = self.lifted
        merged = [n for n in self.proposal.interior if isinstance(lifted.op(n), Affine | Sum)]
        whole = self._once(expr.map, lambda: self.build(Apply(expr.map, expr.value), sink, merged))
        new = self._mapped(expr.part, whole, sink, ())
        if new is not whole:
            lifted.records[new].sources = [lifted.place(sink)]
        return new

    def _sum(self, nodes: Sequence[fx.Node], sink: fx.Node) -> fx.Node:
        """The sum of some nodes, one after the other."""
        total = nodes[0]
        for node in nodes[1:]:
            left, total = total, self._made(operator.add, (total, node), sink)
            self._define(total, Sum(((left, 1.0), (node, 1.0))), sink)
            self.lifted.context.shapes.set(total, self.lifted.context.shapes.of(sink))
        return total

    def _concatenation(self, nodes: Sequence[fx.Node], dim: int, sink: fx.Node) -> fx.Node:
        """The concatenation of some nodes."""
        new = self._made(torch.cat, (nodes, dim), sink)
        last = dim == -1 or self.lifted.context.shapes.rank(sink) == dim + 1
        self._define(new, Concat(tuple(nodes), first=dim == 1, last=last), sink)
        return new

    def _attention(self, expr: Attend, nodes: Sequence[fx.Node], sink: fx.Node) -> fx.Node:
        """One attention of query, key and value."""
        lifted = self.lifted
        shape_of = lifted.context.constants.shape
        masks = [(bias, tuple(shape_of(bias) or ()), shape) for bias, shape in expr.bias]
        made = attended(lifted.graph, expr, nodes, masks)
        for new in made:
            self._stamp(new, sink)
            self._define(new, Opaque(), sink)
        lifted.calls[made[-1]] = call_of(lifted, self.proposal, expr.heads, self.error)
        return made[-1]

    def _resampled(self, node: fx.Node, value: fx.Node, sink: fx.Node) -> fx.Node:
        """The operation of `node` again, on another value."""
        lifted = self.lifted
        op = lifted.op(node)
        assert isinstance(op, Resampling)
        new = lifted.graph.node_copy(node, lambda n: value if n is op.source else n)
        new.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "made_by")}
        self._define(new, replace(op, source=value), sink)
        shapes = lifted.context.shapes
        shapes.set(new, _resampled_shape(op, shapes.of(node), shapes.of(value)))
        return new

    def _normalised(self, node: fx.Node, sink: fx.Node) -> fx.Node:
        """A normalisation without its own scale and shift, as a function: the module may be called elsewhere too."""
        lifted = self.lifted
        op = lifted.op(node)
        assert isinstance(op, Normalised)
        function, arguments = op.plain
        new = lifted.graph.call_function(function, (op.source, *arguments))  # type: ignore[arg-type]
        new.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
        self._define(new, Opaque(), sink)
        lifted.context.shapes.set(new, lifted.context.shapes.of(node))
        return new

    def _made(self, function: Callable[..., object], arguments: tuple[Any, ...], sink: fx.Node) -> fx.Node:
        """A call of a function that no user wrote."""
        new = self.lifted.graph.call_function(function, arguments)
        self._stamp(new, sink)
        return new

    def _stamp(self, node: fx.Node, sink: fx.Node) -> None:
        """Where a node belongs, and which rule put it there."""
        node.meta.update(nn_module_stack=sink.meta.get("nn_module_stack", {}), made_by=self.proposal.rule)

    def _define(self, node: fx.Node, op: Op, sink: fx.Node) -> None:
        self.lifted.define(node, op)
        self.introduce(node, op, sink)

    def _build_all(self, values: Sequence[Expr], sink: fx.Node, absorbed: Sequence[fx.Node]) -> list[fx.Node]:
        """Nodes of several expressions; what was absorbed is credited to the first map among them."""
        own = [set(v.absorbs) if isinstance(v, Apply) else set() for v in values]
        first = next((i for i, v in enumerate(values) if isinstance(v, Apply)), 0)
        own[first] |= set(absorbed) - set().union(*own)
        return [self.build(v, sink, sorted(filter(self.lifted.alive, o))) for v, o in zip(values, own)]


def _resampled_shape(op: Resampling, known: Shape, given: Shape) -> Shape:
    """The shape of a resampled value: that of the original operation, with the channels of what it reads now.

    The channels are axis 1 where there are spatial axes, else the last.
    """
    if known is None:
        return None
    sizes = list(known)
    for before in range(4):
        after = op.view(before)
        if after is not None:
            sizes[1 if after else -1] = None if given is None else given[1 if before else -1]
    return tuple(sizes)
