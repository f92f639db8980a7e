"""Expressions of a proposal become nodes of the graph, each with its operation, its shape and its history.

A map is a node without a module yet; the module is written at the end (`repfx.emission.assembly`), from the float64 map
kept in `LiftedGraph.records`.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from repfx.algebra import AffineConv
from repfx.graph import (
    PENDING,
    Affine,
    Call,
    Concat,
    LiftedGraph,
    Normalised,
    Op,
    Opaque,
    Record,
    Resampling,
    Sum,
    common_path,
)
from repfx.rewriting.attending import attended
from repfx.rewriting.proposal import Add, Apply, Attend, Cat, Expr, Plain, Proposal, Ref, Shared, Then, Through


@dataclass
class Builder:
    """Builds what replaces one value after the other of a proposal; what they share is built once."""

    lifted: LiftedGraph
    proposal: Proposal
    error: float | None  # of the replacement, on the probes
    introduce: Callable[[fx.Node, Op, fx.Node], None]  # told of every new node, and of what it is to replace
    _shared: dict[int, fx.Node] = field(default_factory=dict)

    def build(self, expr: Expr, sink: fx.Node, absorbed: Sequence[fx.Node]) -> fx.Node:
        """The node that computes an expression in the place of `sink`; `absorbed` is what goes into it."""
        lifted = self.lifted
        match expr:
            case Ref(node=node):
                return lifted.current(node)
            case Apply(map=map_, value=given):
                value = lifted.current(given)  # an earlier replacement of this proposal may stand for it
                new = lifted.graph.call_module(PENDING, (value,))
                new.meta["nn_module_stack"] = sink.meta.get("nn_module_stack", {})
                self._define(new, Affine(value, map_.axes, lambda axes, channels: map_), sink)
                lifted.records[new] = _record(lifted, map_, self.proposal, absorbed, self.error)
                shape = (None, map_.out_channels, *(None,) * map_.axes) if map_.axes else self._tokens(value, map_)
                lifted.context.shapes.set(new, shape)
                return new
            case Shared(map=map_, value=value, part=part):
                if id(map_) not in self._shared:
                    merged = [n for n in self.proposal.interior if isinstance(lifted.op(n), Affine | Sum)]
                    self._shared[id(map_)] = self.build(Apply(map_, value), sink, merged)
                new = self.build(Apply(part, self._shared[id(map_)]), sink, ())
                lifted.records[new].sources = [lifted.place(sink)]
                return new
            case Add(values=values):
                nodes = self._build_all(values, sink, absorbed)
                total = nodes[0]
                for node in nodes[1:]:
                    left = total
                    total = lifted.graph.call_function(operator.add, (left, node))
                    total.meta.update(nn_module_stack=sink.meta.get("nn_module_stack", {}), made_by=self.proposal.rule)
                    self._define(total, Sum(((left, 1.0), (node, 1.0))), sink)
                    lifted.context.shapes.set(total, lifted.context.shapes.of(sink))
                return total
            case Cat(values=values, dim=dim):
                nodes = self._build_all(values, sink, absorbed)
                new = lifted.graph.call_function(torch.cat, (nodes, dim))
                new.meta.update(nn_module_stack=sink.meta.get("nn_module_stack", {}), made_by=self.proposal.rule)
                rank = lifted.context.shapes.rank(sink)
                self._define(new, Concat(tuple(nodes), first=dim == 1, last=dim == -1 or rank == dim + 1), sink)
                return new
            case Then(map=map_, value=given):
                value = self.build(given, sink, ())
                return self.build(Apply(map_, value), sink, absorbed)
            case Through(node=node, value=given):
                if id(expr) not in self._shared:
                    value = self.build(given, sink, absorbed)
                    self._shared[id(expr)] = self._resampled(node, value, sink)
                return self._shared[id(expr)]
            case Plain(node=node):
                if id(expr) not in self._shared:
                    self._shared[id(expr)] = self._normalised(node, sink)
                return self._shared[id(expr)]
            case Attend(values=values, bias=bias, heads=heads):
                nodes = self._build_all(values, sink, absorbed)
                shapes = lifted.context.constants.shape
                masks = [(b, tuple(shapes(b) or ()), shape) for b, shape in bias]
                made = attended(lifted.graph, expr, nodes, masks)
                for new in made:
                    new.meta.update(nn_module_stack=sink.meta.get("nn_module_stack", {}), made_by=self.proposal.rule)
                    self._define(new, Opaque(), sink)
                lifted.calls[new] = _call(lifted, self.proposal, sink, heads, self.error)
                return new

    def _resampled(self, node: fx.Node, value: fx.Node, sink: fx.Node) -> fx.Node:
        """The operation of `node` again, on another value."""
        lifted = self.lifted
        op = lifted.op(node)
        assert isinstance(op, Resampling)
        new = lifted.graph.node_copy(node, lambda n: value if n is op.source else n)
        new.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "made_by")}
        self._define(new, replace(op, source=value), sink)
        known, given = lifted.context.shapes.of(node), lifted.context.shapes.of(value)
        if known is not None:
            sizes = list(known)
            for before in range(4):  # the channels are axis 1 where there are spatial axes, else the last
                after = op.view(before)
                if after is not None:
                    sizes[1 if after else -1] = None if given is None else given[1 if before else -1]
            known = tuple(sizes)
        lifted.context.shapes.set(new, known)
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

    def _define(self, node: fx.Node, op: Op, sink: fx.Node) -> None:
        self.lifted.define(node, op)
        self.introduce(node, op, sink)

    def _tokens(self, value: fx.Node, map_: AffineConv) -> tuple[int | None, ...] | None:
        """Partial shape of a map of the last axis."""
        given = self.lifted.context.shapes.of(value)
        return None if given is None else (*given[:-1], map_.out_channels)

    def _build_all(self, values: Sequence[Expr], sink: fx.Node, absorbed: Sequence[fx.Node]) -> list[fx.Node]:
        """Nodes of several expressions; what was absorbed is credited to the first map among them."""
        own = [set(v.absorbs) if isinstance(v, Apply) else set() for v in values]
        first = next((i for i, v in enumerate(values) if isinstance(v, Apply)), 0)
        own[first] |= set(absorbed) - set().union(*own)
        return [self.build(v, sink, _in_order(self.lifted, o)) for v, o in zip(values, own)]


def _call(lifted: LiftedGraph, proposal: Proposal, sink: fx.Node, heads: int, error: float | None) -> Call:
    """The history of an attention that is one call now."""
    inside = sorted(n for n in proposal.interior if lifted.alive(n) and isinstance(lifted.op(n), Opaque | Concat))
    kinds = Counter(lifted.kind(node) for node in inside)
    text = f"scaled_dot_product_attention{f' of {heads} heads' if heads else ''}"
    sources = tuple(lifted.place(node) for node in inside)
    return Call(text, proposal.rule, common_path(list(sources)), kinds, sources, proposal.note, error)


def _in_order(lifted: LiftedGraph, nodes: set[fx.Node]) -> list[fx.Node]:
    """The nodes in order of execution."""
    return sorted(n for n in nodes if lifted.alive(n))


def _record(
    lifted: LiftedGraph, map_: AffineConv, proposal: Proposal, absorbed: Sequence[fx.Node], error: float | None
) -> Record:
    record = Record(map_, note=proposal.note, error=error)
    for node in sorted(absorbed):
        old = lifted.records.get(node)
        if node.meta.get("made_by"):
            continue  # no operation of the user's: an earlier rewrite put it there
        if isinstance(lifted.op(node), Resampling):
            continue  # it stays, on another value
        if old is None:
            record.kinds[lifted.kind(node)] += 1
            if not isinstance(lifted.op(node), Normalised):  # what normalises keeps its place
                record.sources.append(lifted.place(node))
            continue
        record.kinds.update(old.kinds)
        record.sources += old.sources
        record.rules += [rule for rule in old.rules if rule not in record.rules]
        record.note = record.note or old.note
        known = [e for e in (record.error, old.error) if e is not None]
        record.error = max(known) if known else None
    if proposal.rule not in record.rules:
        record.rules.append(proposal.rule)
    return record
