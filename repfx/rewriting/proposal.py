"""What a pass is: a function from one value of a lifted graph to proposals and refusals.

A pass owns no state and mutates nothing.  A proposal replaces values by expressions over other values;
the engine (`repfx.rewriting.engine`) takes it through one gate before anything changes.  The engine asks every
pass about every value once, and again only after something that the answer rested on has changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from torch import fx

from repfx.algebra import AffineConv
from repfx.decline import Decline
from repfx.graph import LiftedGraph, Op, Region


@dataclass(frozen=True)
class Ref:
    """A value as it is."""

    node: fx.Node


@dataclass(frozen=True, eq=False)
class Apply:
    """An affine map of a value: it will be one emitted module.

    `absorbs` names the replaced nodes that went into this map, where a proposal has several.
    """

    map: AffineConv
    value: fx.Node
    absorbs: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class Add:
    """The sum of values, in order."""

    values: tuple[Expr, ...]


@dataclass(frozen=True)
class Cat:
    """The concatenation of values along `dim`."""

    values: tuple[Expr, ...]
    dim: int


@dataclass(frozen=True, eq=False)
class Shared:
    """A part of a map of a value; replacements of one proposal that name the same map share its result."""

    map: AffineConv
    value: fx.Node
    part: AffineConv  # a selection of the map's outputs


@dataclass(frozen=True, eq=False)
class Through:
    """What `node`, a resampling, makes of another value: the same operation again, read from `value`.

    `Through` and `Plain` objects that several replacements of one proposal hold are computed once.
    """

    node: fx.Node
    value: Expr
    density: Fraction  # positions of `value` for one of the result


@dataclass(frozen=True, eq=False)
class Plain:
    """What `node`, a normalisation, makes of its source without its own scale and shift."""

    node: fx.Node


@dataclass(frozen=True, eq=False)
class Then:
    """An affine map of what an expression gives."""

    map: AffineConv
    value: Expr


@dataclass(frozen=True)
class Attend:
    """softmax(scale query key^T + bias) value, as one call of scaled_dot_product_attention.

    With `heads` the values are (..., N, heads * d), divided into heads and joined again; with 0 they are
    attended as they stand, read transposed where it says so.  `bias` holds constants and the shapes to read
    them in: one for all heads, or one for each, joined along the heads' axis, the third from the end.
    """

    query: Expr
    key: Expr
    value: Expr
    heads: int = 0
    scale: float = 1.0
    causal: bool = False
    bias: tuple[tuple[fx.Node, tuple[int, ...]], ...] = ()
    query_transposed: bool = False
    key_transposed: bool = False
    value_transposed: bool = False

    @property
    def values(self) -> tuple[Expr, Expr, Expr]:
        """Query, key and value."""
        return self.query, self.key, self.value


Expr = Ref | Apply | Add | Cat | Shared | Through | Plain | Then | Attend


@dataclass(frozen=True, eq=False)
class Proposal:
    """Replace each node by an expression; the `interior` (replaced nodes included) disappears.

    With `across`, the values between replaced nodes change too (a channel order), and only `outputs`
    are compared by the verification.  A `further` proposal is another try at what was refused before: that it costs
    more too is not worth a line.
    """

    rule: str
    replacements: tuple[tuple[fx.Node, Expr], ...]
    interior: tuple[fx.Node, ...]
    note: str = ""
    across: tuple[fx.Node, ...] = ()  # untouched nodes that carry changed values
    outputs: tuple[fx.Node, ...] = ()
    further: bool = False


def as_one_map(rule: str, region: Region, *, further: bool = False) -> Proposal:
    """All of a region as the one map that it computes."""
    return Proposal(rule, ((region.sink, Apply(region.map, region.source)),), region.nodes, further=further)


class Pass(Protocol):
    """One idea.  `name` is its file's name.

    It is asked about the values whose operation is one of `about`; with `last_first`, about later values first.
    """

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> tuple[type[Op], ...]: ...

    @property
    def last_first(self) -> bool: ...

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Proposals and refusals about one value, in the order they should be tried.

        After an accepted proposal the graph is another one: ask `lifted.alive` before going on.
        """
        ...
