"""carry_permutations: a channel order moves into the weights of everything that reads it.

    Given:  y = order(conv(x))                 Result: y' = conv(x)
            z = y + conv2(gelu(conv1(y)))              z' = y' + conv2'(gelu(conv1'(y')))
            out = linear(mean(z))                      out = linear'(mean(z'))

The order spreads through operations that treat all channels alike (activations, sums, pooling,
depthwise convolutions) and ends in maps that mix channels, whose weights are reordered.  A residual
stream carries one order throughout.  Exact always.  Declined where the order would reach an output, or an
operation that tells channels apart (a split, a reshape, a normalisation over channels).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from repfx.algebra import AffineConv, Ints, form_of, select, take
from repfx.decline import Decline, Reason
from repfx.graph import (
    Affine,
    Alias,
    Concat,
    Constant,
    Input,
    LiftedGraph,
    Normalised,
    Op,
    Opaque,
    Resampling,
    Sum,
    applied,
)
from repfx.rewriting import Apply, Expr, Proposal, Ref


@dataclass(frozen=True)
class CarryPermutations:
    """Remove an explicit channel order by reordering the weights of all readers."""

    name: str = "carry_permutations"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a value with an explicit order."""
        order = _order_of(lifted, node)
        if order is None:
            return
        spread = _Spread(lifted)
        refused = spread.start(node, order) or spread.unsettled()
        yield refused.at(lifted.place(node)) if refused is not None else spread.proposal(self.name)


def _order_of(lifted: LiftedGraph, node: fx.Node) -> Ints | None:
    """The order that writing this map out would need: node = natural[order]."""
    op = lifted.op(node)
    if not isinstance(op, Affine) or op.axes is None:
        return None
    map_ = lifted.map_of(node, op.axes)
    if isinstance(map_, Decline):
        return None
    if map_.selection is not None and map_.is_pointwise:
        whole = len(map_.selection) == map_.in_channels and not map_.is_identity
        return map_.selection if whole and len(np.unique(map_.selection)) == map_.in_channels else None
    return form_of(map_).order


@dataclass
class _Spread:
    """Which values change their channel order, and the maps that make it so.

    `orders[v]` is the order with  old v = new v[order].
    """

    lifted: LiftedGraph
    orders: dict[fx.Node, Ints] = field(default_factory=dict)
    work: list[fx.Node] = field(default_factory=list)
    absorbing: set[fx.Node] = field(default_factory=set)
    made: dict[tuple[fx.Node, int, int], AffineConv | None] = field(default_factory=dict)  # new maps, by the orders
    first: bool = True  # the order is one of axis 1; else one of the last axis

    def start(self, node: fx.Node, order: Ints) -> Decline | None:
        """Spread from the value whose order is to go; the refusal if it cannot."""
        op = self.lifted.op(node)
        assert isinstance(op, Affine)
        self.first = op.axes != 0 or self.lifted.context.shapes.rank(node) == 2
        self.orders[node] = order
        self.work.append(node)
        while self.work:
            value = self.work.pop()
            refused = self._production(value) or self._readers(value)
            if refused is not None:
                return refused
        return None

    def unsettled(self) -> Decline | None:
        """The refusal where a map that was fine with one order is not with all of them."""
        maps = (n for n in sorted({*self.orders, *self.absorbing}) if isinstance(self.lifted.op(n), Affine))
        return next((self._stuck(node) for node in maps if self._map(node) is None), None)

    def _acts_on_order(self, map_node: fx.Node, value: fx.Node) -> bool:
        """Whether the channels of a map are the axis of `value` that is in another order."""
        op = self.lifted.op(map_node)
        assert isinstance(op, Affine)
        if self.lifted.context.shapes.rank(value) == 2:
            return op.axes == 0
        return (op.axes != 0) == self.first

    def _require(self, node: fx.Node, order: Ints) -> Decline | None:
        known = self.orders.get(node)
        if known is not None:
            if np.array_equal(known, order):
                return None
            return Decline(Reason.NOT_EXACT, "would need two channel orders at once", self.lifted.place(node))
        self.orders[node] = order
        self.work.append(node)
        return None

    def _production(self, node: fx.Node) -> Decline | None:
        """Can `node` be made in its new order?"""
        order = self.orders[node]
        match self.lifted.op(node):
            case Affine(source=source):
                if not self._acts_on_order(node, node):
                    return self._stuck(node)
                if self._map(node) is not None:
                    return None
                old = self._old(node)
                if old is not None and _one_to_one(old) and source not in self.orders:
                    return self._require(source, order)
                return self._stuck(node)
            case Alias(source=source) | Resampling(source=source, first=True):
                return self._require(source, order)
            case Sum(terms=terms):
                return next((r for t, _ in terms if (r := self._require(t, order)) is not None), None)
            case Opaque(inputs=inputs) if inputs and self.first:
                return next((r for i in inputs if (r := self._require(i, order)) is not None), None)
            case Concat() | Constant() | Input() | Resampling() | Normalised() | Opaque():
                return self._stuck(node)

    def _readers(self, node: fx.Node) -> Decline | None:
        """Can every reader of `node` live with the new order?"""
        order = self.orders[node]
        for reader in self.lifted.readers(node):
            refused = self._reader(reader, node, order)
            if refused is not None:
                return refused
        return None

    def _reader(self, reader: fx.Node, value: fx.Node, order: Ints) -> Decline | None:
        if not self.lifted.alive(reader) or reader.op == "output":
            return Decline(Reason.OUTSIDE_USE, "its channel order reaches an output, which must keep it")
        match self.lifted.op(reader):
            case Affine(source=source) if source is not value:
                return self._stuck(reader)  # lifted over an earlier value: it looks through this one
            case Affine():
                if not self._acts_on_order(reader, value):
                    return self._stuck(reader)
                self.absorbing.add(reader)
                if reader in self.orders or self._map(reader) is not None:
                    return None
                old = self._old(reader)
                if old is None:
                    return self._stuck(reader)
                natural = self._through(reader, old)
                if natural is None:
                    return self._stuck(reader)
                return self._require(reader, natural)
            case Alias() | Sum() | Resampling(first=True):
                return self._require(reader, order)
            case Opaque(inputs=inputs) if inputs and self.first:
                return self._require(reader, order)
            case Concat() | Constant() | Input() | Resampling() | Normalised() | Opaque():
                return self._stuck(reader)

    def _old(self, node: fx.Node) -> AffineConv | None:
        op = self.lifted.op(node)
        if not isinstance(op, Affine) or op.axes is None:
            return None
        map_ = self.lifted.map_of(node, op.axes)
        return None if isinstance(map_, Decline) else map_

    def _reads_reordered(self, node: fx.Node, old: AffineConv) -> AffineConv | None:
        op = self.lifted.op(node)
        assert isinstance(op, Affine)
        order = self.orders.get(op.source)
        if order is None:
            return old
        if len(order) != old.in_channels:
            return None
        merged = applied(old, select(old.in_channels, order, old.axes))
        return merged if isinstance(merged, AffineConv) else None

    def _map(self, node: fx.Node) -> AffineConv | None:
        """The new map of an affine node under the orders so far, or None where it costs more."""
        op = self.lifted.op(node)
        assert isinstance(op, Affine)
        key = (node, id(self.orders.get(op.source)), id(self.orders.get(node)))
        if key not in self.made:
            self.made[key] = self._reordered(node)
        return self.made[key]

    def _reordered(self, node: fx.Node) -> AffineConv | None:
        old = self._old(node)
        if old is None:
            return None
        new = self._reads_reordered(node, old)
        if new is None:
            return None
        own = self.orders.get(node)
        if own is not None:
            if len(own) != new.out_channels:
                return None
            new = take(new, np.argsort(own))
        return new if _no_worse(new, old) else None

    def _through(self, node: fx.Node, old: AffineConv) -> Ints | None:
        """The order that a reader which mixes no channels passes on."""
        new = self._reads_reordered(node, old)
        if new is None:
            return None
        if new.selection is not None and new.is_pointwise and len(new.selection) == new.in_channels:
            return new.selection
        if _one_to_one(old):
            return new.incidence.firsts
        return form_of(new).order

    def _stuck(self, node: fx.Node) -> Decline:
        return Decline(
            Reason.NOT_EXACT, f"its channel order cannot pass {self.lifted.place(node)}, which tells channels apart"
        )

    def proposal(self, rule: str) -> Proposal:
        """All reordered maps at once."""
        replacements: list[tuple[fx.Node, Expr]] = []
        interior, across, outputs = [], [], []
        touched = {*self.orders, *self.absorbing}
        for node in sorted(touched):
            op = self.lifted.op(node)
            if not isinstance(op, Affine):
                across.append(node)
                continue
            new = self._map(node)
            assert new is not None
            expr: Expr = Ref(op.source) if new.is_identity else Apply(new, op.source)
            replacements.append((node, expr))
            interior.append(node)
            if node not in self.orders:
                outputs.append(node)
        return Proposal(
            rule,
            tuple(replacements),
            tuple(interior),
            "channel order moved into weights",
            tuple(across),
            tuple(outputs),
        )


def _one_to_one(map_: AffineConv) -> bool:
    """Whether output c reads input c alone."""
    return map_.in_channels == map_.out_channels and map_.incidence.one_to_one


def _no_worse(new: AffineConv, old: AffineConv) -> bool:
    a, b = form_of(new), form_of(old)
    if new.is_identity:
        return True
    return a.kind is b.kind and a.macs <= b.macs and (not a.gathers or b.gathers) and a.order is None
