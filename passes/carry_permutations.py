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

from collections.abc import Iterable, Iterator
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
    map_ = lifted.own_map(node)
    if map_ is None:
        return None
    if map_.selection is None or not map_.is_pointwise:
        return form_of(map_).order
    is_order = len(map_.selection) == len(np.unique(map_.selection)) == map_.in_channels
    return map_.selection if is_order and not map_.is_identity else None


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
        self.first = self._affine(node).axes != 0 or self.lifted.rank(node) == 2
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
        for node in sorted({*self.orders, *self.absorbing}):
            if isinstance(self.lifted.op(node), Affine) and self._map(node) is None:
                return self._stuck(node)
        return None

    # --- where an order must hold, and where it ends ---

    def _require(self, nodes: Iterable[fx.Node], order: Ints) -> Decline | None:
        """These values must be in this order."""
        for node in nodes:
            known = self.orders.get(node)
            if known is None:
                self.orders[node] = order
                self.work.append(node)
            elif not np.array_equal(known, order):
                return Decline(Reason.NOT_EXACT, "would need two channel orders at once", self.lifted.place(node))
        return None

    def _production(self, node: fx.Node) -> Decline | None:
        """Can `node` be made in its new order?"""
        op = self.lifted.op(node)
        if isinstance(op, Affine):
            return self._affine_production(node, op.source)
        given = self._treated_alike(op)
        return self._require(given, self.orders[node]) if given else self._stuck(node)

    def _affine_production(self, node: fx.Node, source: fx.Node) -> Decline | None:
        """A map of channels gives its outputs in the new order; one of single channels needs its input so."""
        if not self._acts_on_order(node, node):
            return self._stuck(node)
        if self._map(node) is not None:
            return None
        old = self.lifted.own_map(node)
        if old is None or source in self.orders or not _one_to_one(old):
            return self._stuck(node)
        return self._require([source], self.orders[node])

    def _readers(self, node: fx.Node) -> Decline | None:
        """Can every reader of `node` live with the new order?"""
        for reader in self.lifted.readers(node):
            refused = self._reader(reader, node)
            if refused is not None:
                return refused
        return None

    def _reader(self, reader: fx.Node, value: fx.Node) -> Decline | None:
        if not self.lifted.alive(reader) or self.lifted.is_output(reader):
            return Decline(Reason.OUTSIDE_USE, "its channel order reaches an output, which must keep it")
        op = self.lifted.op(reader)
        if isinstance(op, Affine):
            return self._affine_reader(reader, op.source, value)
        return self._require([reader], self.orders[value]) if self._treated_alike(op) else self._stuck(reader)

    def _affine_reader(self, reader: fx.Node, source: fx.Node, value: fx.Node) -> Decline | None:
        """A map of channels takes the order up; one of single channels passes it on."""
        if source is not value or not self._acts_on_order(reader, value):  # it may look through this value
            return self._stuck(reader)
        self.absorbing.add(reader)
        if reader in self.orders or self._map(reader) is not None:
            return None
        passed_on = self._passed_on(reader)
        return self._stuck(reader) if passed_on is None else self._require([reader], passed_on)

    def _treated_alike(self, op: Op) -> tuple[fx.Node, ...]:
        """The values whose channels an operation treats all alike, so that their order is its own; () for others."""
        match op:
            case Alias(source=source) | Resampling(source=source, first=True):
                return (source,)
            case Sum(terms=terms):
                return tuple(term for term, _ in terms)
            case Opaque(inputs=inputs) if self.first:
                return inputs
            case Affine() | Concat() | Constant() | Input() | Resampling() | Normalised() | Opaque():
                return ()

    def _acts_on_order(self, map_node: fx.Node, value: fx.Node) -> bool:
        """Whether the channels of a map are the axis of `value` that is in another order."""
        op = self._affine(map_node)
        if self.lifted.rank(value) == 2:
            return op.axes == 0
        return (op.axes != 0) == self.first

    def _stuck(self, node: fx.Node) -> Decline:
        fact = f"its channel order cannot pass {self.lifted.place(node)}, which tells channels apart"
        return Decline(Reason.NOT_EXACT, fact)

    # --- the maps under the orders so far ---

    def _affine(self, node: fx.Node) -> Affine:
        op = self.lifted.op(node)
        assert isinstance(op, Affine)
        return op

    def _map(self, node: fx.Node) -> AffineConv | None:
        """The new map of an affine node under the orders so far, or None where it costs more."""
        key = (node, id(self.orders.get(self._affine(node).source)), id(self.orders.get(node)))
        if key not in self.made:
            self.made[key] = self._reordered(node)
        return self.made[key]

    def _reordered(self, node: fx.Node) -> AffineConv | None:
        old, new = self.lifted.own_map(node), self._reads_reordered(node)
        if old is None or new is None:
            return None
        own = self.orders.get(node)
        if own is not None:
            if len(own) != new.out_channels:
                return None
            new = take(new, np.argsort(own))
        return new if _no_worse(new, old) else None

    def _reads_reordered(self, node: fx.Node) -> AffineConv | None:
        """The map of a node that gives the old channels and reads its source in the new order."""
        old = self.lifted.own_map(node)
        order = self.orders.get(self._affine(node).source)
        if old is None or order is None:
            return old
        if len(order) != old.in_channels:
            return None
        merged = applied(old, select(old.in_channels, order, old.axes))
        return None if isinstance(merged, Decline) else merged

    def _passed_on(self, node: fx.Node) -> Ints | None:
        """The order that a reader which mixes no channels passes on."""
        old, new = self.lifted.own_map(node), self._reads_reordered(node)
        if old is None or new is None:
            return None
        if new.selection is not None and new.is_pointwise and len(new.selection) == new.in_channels:
            return new.selection
        return new.incidence.firsts if _one_to_one(old) else form_of(new).order

    def proposal(self, rule: str) -> Proposal:
        """All reordered maps at once."""
        touched = sorted({*self.orders, *self.absorbing})
        maps = [node for node in touched if isinstance(self.lifted.op(node), Affine)]
        return Proposal(
            rule,
            tuple((node, self._expression(node)) for node in maps),
            tuple(maps),
            "channel order moved into weights",
            across=tuple(node for node in touched if node not in maps),
            outputs=tuple(node for node in maps if node not in self.orders),
        )

    def _expression(self, node: fx.Node) -> Expr:
        new, source = self._map(node), self._affine(node).source
        assert new is not None
        return Ref(source) if new.is_identity else Apply(new, source)


def _one_to_one(map_: AffineConv) -> bool:
    """Whether output c reads input c alone."""
    return map_.in_channels == map_.out_channels and map_.incidence.one_to_one


def _no_worse(new: AffineConv, old: AffineConv) -> bool:
    """Whether a map without its order is written at no higher cost."""
    if new.is_identity:
        return True
    now, before = form_of(new), form_of(old)
    return (
        now.kind is before.kind
        and now.macs <= before.macs
        and (before.gathers or not now.gathers)
        and now.order is None
    )
