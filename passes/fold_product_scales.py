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
from repfx.attention import name_of, product_of, readers_of, scalar_factor, viewed
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
            found = _folded(self.name, lifted, node, source, value)
            if found is None:
                continue
            yield found
            if not lifted.alive(node):
                return


def _folded(
    rule: str, lifted: LiftedGraph, node: fx.Node, source: fx.Node, value: fx.Node
) -> Proposal | Decline | None:
    """`node` = factor * source becomes `source`, the factor in the map that `value` is a view of."""
    place = lifted.place(node)
    made = value
    while (above := viewed(lifted, made)) is not None:
        made = above
    op = lifted.op(made)
    if not isinstance(op, Affine) or op.axes is None:
        return None
    map_ = lifted.map_of(made, op.axes)
    if isinstance(map_, Decline):
        return None
    found = readers_of(lifted, made, map_.out_channels, map_.axes)
    strand = found.views.get(value)
    if strand is None or any(view.meta.get("aliased") for view in found.views):
        return None
    product = product_of(lifted, source)
    if product is not None and product.left.node is product.right.node:
        return Decline(Reason.NOT_EXACT, "scales the product of a value with itself", place)
    users = [user for user in source.users if not is_size(user)]
    if product is not None and users != [node]:
        return Decline(Reason.OUTSIDE_USE, "its scores are read before they are scaled", place)
    scaled = set(strand.channels.tolist())
    last = source if product is not None else None
    behind = _behind(lifted, node) if product is None else set()
    for reader, view in found.ends:
        if reader is last and view in (value, *_turns(lifted, source, value)):
            last = None  # once: the product may read these channels in both factors
            continue
        if reader in behind or view in behind or scaled.isdisjoint(found.views[view].channels.tolist()):
            continue
        other = "the output" if reader.op == "output" else lifted.place(reader)
        fact = f"its factor cannot go into {lifted.place(made)}: those channels are also read by {other}"
        return Decline(Reason.OUTSIDE_USE, fact, place)
    return _proposal(rule, lifted, node, source, made, map_, strand.channels, list(found.views))


def _turns(lifted: LiftedGraph, source: fx.Node, value: fx.Node) -> tuple[fx.Node, ...]:
    product = product_of(lifted, source)
    assert product is not None
    return product.left.turns if product.left.node is value else product.right.turns


def _behind(lifted: LiftedGraph, node: fx.Node) -> set[fx.Node]:
    """A scaled view and all views of it."""
    seen, work = {node}, [node]
    while work:
        value = work.pop()
        for user in value.users:
            if user not in seen and user.op != "output" and viewed(lifted, user) is value:
                seen.add(user)
                work.append(user)
    return seen


def _proposal(
    rule: str,
    lifted: LiftedGraph,
    node: fx.Node,
    source: fx.Node,
    made: fx.Node,
    map_: AffineConv,
    channels: Ints,
    views: list[fx.Node],
) -> Proposal | Decline:
    op = lifted.op(made)
    assert isinstance(op, Affine)
    factor = _factor(lifted, node)

    def scale() -> Tensor:
        number = factor()
        whole = torch.ones(map_.out_channels, dtype=torch.float64, device=number.device)
        rows = torch.as_tensor(channels, device=number.device)
        return whole.index_put((rows,), number.reshape(()).expand(len(channels)))

    merged = applied(pointwise(map_.out_channels, map_.axes, scale, None), map_)
    if isinstance(merged, Decline):
        return merged.at(lifted.place(node))
    carried = {v for v in views if v is not made and v is not node}
    product = product_of(lifted, source)
    if product is not None:
        carried |= {source, *product.left.turns, *product.right.turns}
        for operand in (product.left, product.right):
            carried |= _made_of(lifted, operand.node)  # whose shape the probes then know
        carried -= {made}
    carried |= _sizes(carried)
    ends = [v for v in carried if not is_size(v) and not any(u in carried or u is node for u in v.users)]
    ends = [v for v in ends if name_of(v) not in ("chunk", "split", "split_with_sizes", "unbind")]
    return Proposal(
        rule,
        ((made, Apply(merged, op.source)), (node, Ref(source))),
        (made, node),
        "scale of the scores in the projection",
        tuple(sorted(carried)),
        tuple(sorted({node, *ends})),
    )


def _made_of(lifted: LiftedGraph, node: fx.Node) -> set[fx.Node]:
    """A view, all it is a view of, and the affine map behind it."""
    found: set[fx.Node] = set()
    while (above := viewed(lifted, node)) is not None:
        found.add(node)
        node = above
    return {*found, node} if isinstance(lifted.op(node), Affine) else set()


def _sizes(nodes: set[fx.Node]) -> set[fx.Node]:
    """The numbers read from shapes that these nodes are given."""
    found: set[fx.Node] = set()
    work = [n for node in nodes for n in node.all_input_nodes]
    while work:
        node = work.pop()
        if node not in found and is_size(node):
            found.add(node)
            work.extend(node.all_input_nodes)
    return found


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
