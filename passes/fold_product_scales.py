"""fold_product_scales: a scalar factor of a product goes into the map that makes one of its factors.

    Given:  q, k, v = parts of linear(x); scores = (q @ k^T) * scale        Result: scores = q' @ k^T
    Given:  q, k, v = parts of linear(x); scores = (q * scale) @ k^T        Result: scores = q' @ k^T

with  q', k, v = parts of linear'(x),  where linear' is linear with the rows of q times `scale`.  Between the
map and the product stand views only (reshapes, transpositions, splits); `repfx.attention.strands` follows the channels
through them.  Exact always: a product is linear in each factor.  Declined where those channels, or the
product before it is scaled, are read elsewhere too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from repfx.algebra import AffineConv, Ints, pointwise
from repfx.attention import (
    Product,
    Readers,
    is_split,
    is_view_of,
    product_of,
    readers_of,
    scalar_factor,
    viewed,
    views_of,
)
from repfx.decline import Decline, Reason
from repfx.graph import ANY, Affine, LiftedGraph, Op, Sum, applied, is_size
from repfx.rewriting import Apply, Proposal, Ref


@dataclass(frozen=True)
class FoldProductScales:
    """Remove the factor of a product, or of a view that a product reads, by scaling the rows of a projection."""

    name: str = "fold_product_scales"
    about: tuple[type[Op], ...] = ANY
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Into the map behind the left factor, else behind the right one."""
        source = scalar_factor(lifted, node)
        product = None if source is None else product_of(lifted, source)
        if source is None or (product is None and viewed(lifted, source) is None):
            return  # the factor of an affine value is a chain
        candidates = [source] if product is None else [product.left.node, product.right.node]
        for value in candidates:
            strand = _scaled_strand(lifted, node, source, product, value)
            if strand is None:
                continue
            yield _refusal(lifted, strand) or _proposal(self.name, lifted, strand)
            if not lifted.alive(node):
                return


@dataclass(frozen=True, eq=False)
class _Strand:
    """`node` = factor * source; `value`, which is the source or a factor of it, is a view of what `map` makes."""

    node: fx.Node
    source: fx.Node
    product: Product | None  # that `source` is, if it is one
    value: fx.Node
    made: fx.Node
    map: AffineConv  # of `made`
    channels: Ints  # of `made`, which `value` holds
    readers: Readers  # of `made`


def _scaled_strand(
    lifted: LiftedGraph, node: fx.Node, source: fx.Node, product: Product | None, value: fx.Node
) -> _Strand | None:
    """The channels that would take the factor up; None where no map makes them, or where memory is written into."""
    made = views_of(lifted, value)[-1]
    map_ = lifted.own_map(made)
    if map_ is None:
        return None
    readers = readers_of(lifted, made, map_.out_channels, map_.axes)
    if value not in readers.views or any(lifted.is_aliased(view) for view in readers.views):
        return None
    return _Strand(node, source, product, value, made, map_, readers.views[value].channels, readers)


# --- who else reads these channels ------------------------------------------------------------------


def _refusal(lifted: LiftedGraph, strand: _Strand) -> Decline | None:
    """Why the channels may not be scaled, if so."""
    place = lifted.place(strand.node)
    if _is_squared(strand.product):
        return Decline(Reason.NOT_EXACT, "scales the product of a value with itself", place)
    if strand.product is not None and _read(lifted, strand.source) != [strand.node]:
        return Decline(Reason.OUTSIDE_USE, "its scores are read before they are scaled", place)
    other = _other_reader(lifted, strand)
    if other is None:
        return None
    fact = f"those channels are also read by {lifted.reader_name(other)}"
    return Decline(Reason.OUTSIDE_USE, f"its factor cannot go into {lifted.place(strand.made)}: {fact}", place)


def _is_squared(product: Product | None) -> bool:
    return product is not None and product.left.node is product.right.node


def _read(lifted: LiftedGraph, node: fx.Node) -> list[fx.Node]:
    """The readers of a value that want more of it than its size."""
    return [user for user in lifted.users(node) if not is_size(user)]


def _other_reader(lifted: LiftedGraph, strand: _Strand) -> fx.Node | None:
    """What reads these channels and is not scaled by the factor."""
    scaled = set(strand.channels.tolist())
    behind = _with_views(lifted, strand.node) if strand.product is None else set()
    allowed = _through_one_factor(strand)
    for reader, view in strand.readers.ends:
        if (reader, view) in allowed:
            allowed = set()  # once: the product may read these channels in both factors
            continue
        untouched = scaled.isdisjoint(strand.readers.views[view].channels.tolist())
        if not untouched and behind.isdisjoint((reader, view)):
            return reader
    return None


def _through_one_factor(strand: _Strand) -> set[tuple[fx.Node, fx.Node]]:
    """The product and the views that it reads as the factor to be scaled."""
    if strand.product is None:
        return set()
    left, right = strand.product.left, strand.product.right
    turns = left.turns if left.node is strand.value else right.turns
    return {(strand.source, view) for view in (strand.value, *turns)}


def _with_views(lifted: LiftedGraph, node: fx.Node) -> set[fx.Node]:
    """A scaled view and all views of it, which the factor reaches as before."""
    seen, work = {node}, [node]
    while work:
        value = work.pop()
        views = [user for user in lifted.users(value) if user not in seen and is_view_of(lifted, user, value)]
        seen.update(views)
        work += views
    return seen


# --- the rows of the map, scaled --------------------------------------------------------------------


def _proposal(rule: str, lifted: LiftedGraph, strand: _Strand) -> Proposal | Decline:
    node, made = strand.node, strand.made
    op = lifted.op(made)
    assert isinstance(op, Affine)
    merged = applied(_scale(lifted, strand), strand.map)
    if isinstance(merged, Decline):
        return merged.at(lifted.place(node))
    carried = _carried(lifted, strand)
    outputs = {node, *_ends(lifted, carried, node)}
    replacements = ((made, Apply(merged, op.source)), (node, Ref(strand.source)))
    note = "scale of the scores in the projection"
    return Proposal(rule, replacements, (made, node), note, tuple(sorted(carried)), tuple(sorted(outputs)))


def _scale(lifted: LiftedGraph, strand: _Strand) -> AffineConv:
    """The factor on the channels of the strand, one on all others."""
    factor, count, channels = _factor(lifted, strand.node), strand.map.out_channels, strand.channels

    def scale() -> Tensor:
        number = factor()
        whole = torch.ones(count, dtype=torch.float64, device=number.device)
        rows = torch.as_tensor(channels, device=number.device)
        return whole.index_put((rows,), number.reshape(()).expand(len(channels)))

    return pointwise(count, strand.map.axes, scale, None)


def _factor(lifted: LiftedGraph, node: fx.Node) -> Callable[[], Tensor]:
    match lifted.op(node):
        case Sum(terms=((_, number),)):
            return lambda: torch.tensor(number, dtype=torch.float64)
        case Affine(build=build):
            one = build(0, 1)
            assert isinstance(one, AffineConv)
            return lambda: one.values().planes
        case _:
            raise AssertionError("no scalar factor")


# --- what the probes compute again ------------------------------------------------------------------


def _carried(lifted: LiftedGraph, strand: _Strand) -> set[fx.Node]:
    """Everything between the map and the product that holds scaled channels, and the sizes that it needs."""
    carried = {*strand.readers.views, *_product_and_factors(lifted, strand)}
    carried -= {strand.made, strand.node}
    return carried | _sizes(lifted, carried)


def _product_and_factors(lifted: LiftedGraph, strand: _Strand) -> set[fx.Node]:
    """The product and all that its factors are views of, whose shape the probes then know."""
    product = strand.product
    if product is None:
        return set()
    found = {strand.source, *product.left.turns, *product.right.turns}
    for operand in (product.left, product.right):
        views = views_of(lifted, operand.node)
        if isinstance(lifted.op(views[-1]), Affine):
            found.update(views)
    return found


def _sizes(lifted: LiftedGraph, nodes: set[fx.Node]) -> set[fx.Node]:
    """The numbers read from shapes that these nodes are given."""
    found: set[fx.Node] = set()
    work = [given for node in nodes for given in lifted.given(node)]
    while work:
        node = work.pop()
        if node not in found and is_size(node):
            found.add(node)
            work.extend(lifted.given(node))
    return found


def _ends(lifted: LiftedGraph, carried: set[fx.Node], node: fx.Node) -> list[fx.Node]:
    """The last values of what is carried, apart from those that go on into `node`; no sizes, no tuples of parts."""
    last = [value for value in carried if {*carried, node}.isdisjoint(lifted.users(value))]
    return [value for value in last if not is_size(value) and not is_split(value)]
