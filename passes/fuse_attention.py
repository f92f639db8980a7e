"""fuse_attention: attention that is written out is one call, for all heads at once.

    Given:  head_i = softmax(scale q_i(x) k_i(x)^T + bias_i) v_i(x)        # one after the other
            y = cat([head_1, ..., head_h], -1)
    Result: q, k, v = parts of linear(x)
            y = scaled_dot_product_attention(q, k, v, bias)                # all heads stacked

    (heads that are calls already are stacked alike)

    Given:  y = softmax(scale q k^T + bias) v                              # q, k, v already divided into heads
    Result: y = scaled_dot_product_attention(q, k, v, bias, scale)

Exact for every number of images and tokens; a constant bias or mask keeps its meaning, except that a row of
nothing but -inf gives zeros where the original gives NaN.  A scalar factor of the scores goes into the
queries' projection, or stays the call's own scale.  Declined where heads differ in size or in what they
read, where the softmax is not over the keys, where scores, weights or a projection are read elsewhere,
where a mask comes from the input or is no constant added to the scores, where weights are dropped at
random, and, for heads that are already stacked, where values and keys differ in size (no fused kernel).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from repfx.algebra import AffineConv, Kind, concat, form_of, identity, scaled, select
from repfx.attention import Attention, Operand, attention_of, name_of, product_of, selection, viewed
from repfx.decline import Decline, Reason
from repfx.graph import ANY, Affine, Alias, Concat, LiftedGraph, Op, Sum, applied, argument, shifted_by, used_outside
from repfx.rewriting import Apply, Attend, Expr, Proposal, Ref, Shared

Bias = tuple[tuple[fx.Node, tuple[int, ...]], ...]


@dataclass(frozen=True)
class FuseAttention:
    """Write attention as `scaled_dot_product_attention`, the heads of a concatenation stacked."""

    name: str = "fuse_attention"
    about: tuple[type[Op], ...] = ANY
    last_first: bool = True

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Proposals and refusals for one concatenation or one product."""
        op = lifted.op(node)
        if isinstance(op, Concat):
            yield from _heads(self.name, lifted, node, op)
            return
        if product_of(lifted, node) is None:
            return  # calls are joined, not rewritten one by one
        found = attention_of(lifted, node)
        if isinstance(found, Decline):
            yield found
        elif found is not None:
            yield _single(self.name, lifted, found)


# --- heads one after the other ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Projection:
    """What makes the queries, keys or values of one head: `map` of `source`, over single tokens."""

    source: fx.Node
    map: AffineConv
    nodes: tuple[fx.Node, ...]


def _heads(rule: str, lifted: LiftedGraph, node: fx.Node, op: Concat) -> Iterator[Proposal | Decline]:
    found = [attention_of(lifted, _past_aliases(lifted, part)) for part in op.parts]
    heads = [head for head in found if isinstance(head, Attention)]
    place = lifted.place(node)
    refused = next((head for head in found if isinstance(head, Decline)), None)
    if refused is not None:
        yield refused
        return
    if not heads or len(heads) < len(found):
        return
    if not op.last or op.order is not None:
        yield Decline(Reason.NOT_EXACT, "joins attention heads along another axis than their channels", place)
        return
    # one linear for everything; one each for queries, keys and values; the projections as they are
    for deep, joint in ((True, True), (True, False), (False, False)):
        if lifted.alive(node):
            proposal = _stacked(rule, lifted, node, op, heads, deep=deep, joint=joint)
            yield proposal
            if isinstance(proposal, Decline):
                return


def _past_aliases(lifted: LiftedGraph, node: fx.Node) -> fx.Node:
    while isinstance(op := lifted.op(node), Alias):
        node = op.source
    return node


def _stacked(
    rule: str, lifted: LiftedGraph, node: fx.Node, op: Concat, heads: Sequence[Attention], *, deep: bool, joint: bool
) -> Proposal | Decline:
    """All heads as one attention; `deep`: their projections are stacked too, `joint`: into one linear."""
    place = lifted.place(node)
    operands = [(head.query, head.key, head.value) for head in heads]
    if any(operand.transposed for three in operands for operand in three):
        return Decline(Reason.NOT_EXACT, "holds a head whose queries, keys or values are no rows of tokens", place)
    roles: list[list[_Projection]] = [[], [], []]
    for three in operands:
        for role, operand in zip(roles, three):
            made = _projection(lifted, operand.node, deep=deep)
            if isinstance(made, Decline):
                return made
            role.append(made)
    names = ("queries", "keys", "values")
    for name, role in zip(names, roles):
        widths = sorted({made.map.out_channels for made in role})
        if len(widths) > 1:
            fact = f"has heads whose {name} have {' and '.join(map(str, widths))} channels; they cannot be stacked"
            return Decline(Reason.NOT_EXACT, fact, place)
        if len({made.source for made in role}) > 1:
            return Decline(Reason.NOT_EXACT, f"has heads whose {name} are made of different values", place)
    queries, keys, values = roles
    if queries[0].map.out_channels != keys[0].map.out_channels:
        return Decline(Reason.NOT_EXACT, "multiplies queries and keys of different sizes", place)
    bias = _biases(lifted, heads, {role[0].source for role in roles})
    if isinstance(bias, Decline):
        return bias.at(place)
    if len({head.causal for head in heads}) > 1:
        return Decline(Reason.NOT_EXACT, "has heads with and heads without a causal mask", place)
    factors = [_scaling(lifted, head, made.map.out_channels) for head, made in zip(heads, queries)]
    plain = factors[0] if isinstance(factors[0], float) and len(set(map(str, factors))) == 1 else None
    scale = 1.0
    maps = [made.map for made in queries]
    if plain is not None and not all(form_of(map_).kind is Kind.LINEAR for map_ in maps):
        scale = plain
    else:
        for i, (head, factor) in enumerate(zip(heads, factors)):
            own = scaled(maps[i], factor) if isinstance(factor, float) else _times(lifted, maps[i], head.scales)
            if isinstance(own, Decline):
                return own.at(place)
            maps[i] = own if factor != 1.0 else maps[i]
    stacks: list[AffineConv] = []
    for own_maps in (maps, [m.map for m in keys], [m.map for m in values]):
        stack = own_maps[0] if len(own_maps) == 1 else concat(own_maps)
        if isinstance(stack, Decline):
            return stack.at(place)
        stacks.append(stack)
    query, key, value = _joined([role[0].source for role in roles], stacks, joint=joint)
    interior = {node, *(p for head in heads for p in head.nodes), *(n for role in roles for m in role for n in m.nodes)}
    for part in op.parts:
        while isinstance(alias := lifted.op(part), Alias):
            interior.add(part)
            part = alias.source
    interior = _without_shared_turns(lifted, heads, interior)
    note = f"{len(heads)} heads in one attention, for every number of tokens"
    attend = Attend(query, key, value, heads=len(heads), scale=scale, causal=heads[0].causal, bias=bias)
    return Proposal(rule, ((node, attend),), tuple(sorted(interior)), note)


def _without_shared_turns(lifted: LiftedGraph, heads: Sequence[Attention], inside: set[fx.Node]) -> set[fx.Node]:
    """Transpositions that something else reads too stay where they are."""
    turns = {turn for head in heads for operand in (head.query, head.key, head.value) for turn in operand.turns}
    return {n for n in inside if n not in turns or all(user in inside for user in n.users)}


def _projection(lifted: LiftedGraph, node: fx.Node, *, deep: bool) -> _Projection | Decline:
    """The map of single tokens that makes a value: copies and factors, and one linear among them, if `deep`.

    Else the head's own copy alone, and factors.
    """
    chain: list[fx.Node] = []
    current, linear, copied = node, False, False
    while True:
        step = _step(lifted, current)
        if step is None:
            break
        source, kind = step
        if (kind is Kind.LINEAR and (linear or not deep)) or (kind is Kind.COPY and copied and not deep):
            break
        linear, copied = linear or kind is Kind.LINEAR, copied or kind is Kind.COPY
        chain.append(current)
        current = source
    channels = lifted.channels(current, 0)
    if channels is None and chain:
        op = lifted.op(chain[-1])
        first = op.build(0, None) if isinstance(op, Affine) else None
        channels = first.in_channels if isinstance(first, AffineConv) else None
    if channels is None:
        remedy = "read it by a linear, or divide it by a split into sizes"
        fact = "is attended to; structure does not give its number of channels"
        return Decline(Reason.UNKNOWN_FACT, fact, lifted.place(current), remedy)
    map_: AffineConv = identity(channels, 0)
    for one in reversed(chain):
        result = _after(lifted, one, map_)
        if isinstance(result, Decline):
            return result.at(lifted.place(one))
        map_ = result
    return _Projection(current, map_, tuple(chain))


def _step(lifted: LiftedGraph, node: fx.Node) -> tuple[fx.Node, Kind] | None:
    """(what a map of single tokens reads, what it is)."""
    match lifted.op(node):
        case Alias(source=source):
            return source, Kind.IDENTITY
        case Sum(terms=((source, _),)):
            return source, Kind.SCALE
        case Affine(source=source, axes=0 | None, build=build):
            map_ = build(0, lifted.channels(source, 0))
            return None if isinstance(map_, Decline) else (source, form_of(map_).kind)
        case _:
            return None


def _after(lifted: LiftedGraph, node: fx.Node, inner: AffineConv) -> AffineConv | Decline:
    match lifted.op(node):
        case Sum(terms=((_, factor),), shift=shift):
            own = inner if factor == 1.0 else scaled(inner, factor)
            return shifted_by(own, shift) if shift else own
        case Affine(build=build):
            outer = build(0, inner.out_channels)
            return outer if isinstance(outer, Decline) else applied(outer, inner)
        case _:
            return inner


def _scaling(lifted: LiftedGraph, head: Attention, size: int) -> float | None:
    """The product of the factors of a head of that size, or None where one of them is a constant tensor."""
    total = size**-0.5 if head.scale is None else head.scale
    for node in head.scales:
        op = lifted.op(node)
        if not isinstance(op, Sum):
            return None
        total *= op.terms[0][1]
    return total


def _times(lifted: LiftedGraph, map_: AffineConv, scales: Sequence[fx.Node]) -> AffineConv | Decline:
    """The map times all factors of the scores that it makes."""
    for node in scales:
        result = _after(lifted, node, map_)
        if isinstance(result, Decline):
            return result
        map_ = result
    return map_


def _joined(sources: Sequence[fx.Node], stacks: Sequence[AffineConv], *, joint: bool) -> tuple[Expr, Expr, Expr]:
    """Query, key and value; if `joint`, linears of one value are one linear, whose parts they are."""
    exprs: list[Expr] = [Ref(s) if m.is_identity else Apply(m, s) for s, m in zip(sources, stacks)]
    linears = [i for i, m in enumerate(stacks) if form_of(m).kind is Kind.LINEAR]
    for source in dict.fromkeys(sources) if joint else ():
        own = [i for i in linears if sources[i] is source]
        whole = concat([stacks[i] for i in own]) if len(own) > 1 else None
        if not isinstance(whole, AffineConv):
            continue
        start = 0
        for i in own:
            part = np.arange(start, start + stacks[i].out_channels)
            exprs[i] = Shared(whole, source, select(whole.out_channels, part, 0))
            start += stacks[i].out_channels
    query, key, value = exprs
    return query, key, value


# --- constants beside the scores --------------------------------------------------------------------


def _biases(lifted: LiftedGraph, heads: Sequence[Attention], sources: set[fx.Node]) -> Bias | Decline:
    """The constants of all heads, one for all or one for each; () where there are none."""
    given = [head.bias for head in heads]
    known = [bias for bias in given if bias is not None]
    if not known:
        return ()
    if len(known) < len(given):
        return Decline(Reason.NOT_EXACT, "has heads with and heads without a bias")
    shapes = []
    for bias in known:
        shape = _usable(lifted, bias, sources)
        if isinstance(shape, Decline):
            return shape
        if len(shape) > 2 and any(s != 1 for s in shape[:-2]):
            return Decline(Reason.NOT_EXACT, f"adds a bias of shape {tuple(shape)} to the scores of one head")
        shapes.append((1,) * (2 - len(shape)) + tuple(shape)[-2:])
    if len(set(shapes)) > 1:
        return Decline(Reason.NOT_EXACT, "adds biases of different shapes to the scores of its heads")
    if len(set(known)) == 1:
        return ((known[0], shapes[0]),)
    rank = lifted.context.shapes.rank(heads[0].out)
    lead = (1,) if rank == 3 else ()
    whole = _rows_of(lifted, known)
    if whole is not None:
        return ((whole, (*lead, len(known), *shapes[0])),)
    return tuple((bias, (*lead, 1, *shape)) for bias, shape in zip(known, shapes))


def _rows_of(lifted: LiftedGraph, biases: Sequence[fx.Node]) -> fx.Node | None:
    """The constant whose first axis the biases go through, one by one, or None."""
    whole = biases[0].args[0] if biases[0].args else None
    if not isinstance(whole, fx.Node):
        return None
    shape = lifted.context.constants.shape(whole)
    own = lifted.context.constants.shape(biases[0])
    if shape is None or own is None or shape[0] != len(biases) or tuple(shape[1:]) != tuple(own):
        return None
    rows = all(b.target is operator.getitem and b.args == (whole, i) for i, b in enumerate(biases))
    return whole if rows else None


def _usable(lifted: LiftedGraph, bias: fx.Node, sources: set[fx.Node]) -> torch.Size | Decline:
    """Shape of a constant that may be added to the scores inside the call."""
    shape = lifted.context.constants.shape(bias)
    if shape is None:
        return Decline(Reason.UNKNOWN_FACT, "adds a constant of unknown shape to its scores")
    if len(shape) == 0 or len(shape) > 4:
        return Decline(Reason.NOT_EXACT, f"adds a constant of shape {tuple(shape)} to its scores")
    dtype = lifted.context.constants.dtype(bias)
    if dtype not in {p.dtype for p in lifted.root.parameters() if p.is_floating_point()}:
        return Decline(Reason.NOT_EXACT, f"adds a constant of {dtype} to its scores, which is not the weights' type")
    rows = shape[-2] if len(shape) > 1 else 1
    if len(sources) > 1 or rows not in (1, shape[-1]):
        fact = "adds a bias to scores whose queries, keys and values are different tokens; it may widen them"
        return Decline(Reason.NOT_EXACT, fact)
    return shape


# --- heads that are stacked already -----------------------------------------------------------------


def _single(rule: str, lifted: LiftedGraph, found: Attention) -> Proposal | Decline:
    place = lifted.place(found.out)
    shapes = lifted.context.shapes
    operands = (found.query, found.key, found.value)
    ranks = {shapes.rank(operand.node) for operand in operands}
    if None in ranks:
        return Decline(Reason.UNKNOWN_FACT, "attends to values whose rank is not known", place, "pass example_inputs")
    if ranks not in ({3}, {4}):
        fact = "attends to values of other axes than images, heads, tokens and channels"
        return Decline(Reason.NOT_EXACT, fact, place)
    sizes = [_size(lifted, operand) for operand in operands]
    if None in sizes:
        fact = "attends to values whose head size is not known"
        return Decline(Reason.UNKNOWN_FACT, fact, place, "pass example_inputs")
    if len(set(sizes)) > 1:
        fact = f"has {sizes[1]} channels per key and {sizes[2]} per value; the fused kernels need one size"
        return Decline(Reason.COST, fact, place)
    scale = _scaling(lifted, found, sizes[0] or 1)
    if scale is None:
        return Decline(Reason.NOT_EXACT, "scales its scores by a tensor that no projection can take", place)
    bias: Bias = ()
    if found.bias is not None:
        shape = _usable(lifted, found.bias, {_tokens_of(lifted, operand.node) for operand in operands})
        if isinstance(shape, Decline):
            return shape.at(place)
        if len(shape) == 4 and shape[0] != 1:
            return Decline(Reason.NOT_EXACT, "adds a bias of its own to each image", place)
        rank = ranks.pop()
        assert rank is not None
        if len(shape) > 2 and any(s not in (1, h) for s, h in zip(shape[-3:-2], _heads_of(lifted, found))):
            return Decline(Reason.NOT_EXACT, "adds a bias that may widen the scores to more heads", place)
        wide = (1,) * (4 - len(shape)) + tuple(shape) if len(shape) > 2 else (1,) * (2 - len(shape)) + tuple(shape)
        bias = ((found.bias, wide),)
        if rank == 3 and len(wide) > 2:
            return Decline(Reason.NOT_EXACT, f"adds a bias of shape {tuple(shape)} to scores of three axes", place)
    attend = Attend(
        Ref(found.query.node),
        Ref(found.key.node),
        Ref(found.value.node),
        scale=scale,
        bias=bias,
        query_transposed=found.query.transposed,
        key_transposed=found.key.transposed,
        value_transposed=found.value.transposed,
    )
    interior = _without_shared_turns(lifted, [found], set(found.nodes))
    leak = used_outside(lifted, sorted(interior), [found.out])
    if leak is not None:
        reader = "the output" if leak[1].op == "output" else lifted.place(leak[1])
        return Decline(Reason.OUTSIDE_USE, f"is read inside the attention and by {reader}", lifted.place(leak[0]))
    return Proposal(rule, ((found.out, attend),), tuple(sorted(interior)), "for every number of tokens")


def _tokens_of(lifted: LiftedGraph, node: fx.Node) -> fx.Node:
    """The value whose tokens these are, all of them: back through views that drop none."""
    while (above := viewed(lifted, node)) is not None and _keeps_tokens(lifted, node, above):
        node = above
    return node


def _keeps_tokens(lifted: LiftedGraph, node: fx.Node, source: fx.Node) -> bool:
    if selection(lifted, node) is not None:
        return True
    if name_of(node) == "getitem" and name_of(source) not in ("chunk", "split", "split_with_sizes", "unbind"):
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return all(isinstance(item, int) or item in (None, Ellipsis, slice(None)) for item in items)
    if name_of(node) in ("split", "split_with_sizes") and not isinstance(argument(node, 1, "split_size"), int):
        rank, dim = lifted.context.shapes.rank(source), argument(node, 2, "dim", 0)
        return isinstance(dim, int) and rank is not None and dim % rank == rank - 1
    return True


def _heads_of(lifted: LiftedGraph, found: Attention) -> tuple[int | None]:
    return (lifted.context.shapes.size(found.query.node, -3),)


def _size(lifted: LiftedGraph, operand: Operand) -> int | None:
    """Channels per head."""
    return lifted.context.shapes.size(operand.node, -2 if operand.transposed else -1)
