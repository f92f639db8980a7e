"""stack_heads: attention heads that are joined by a concatenation are one attention over stacked heads.

    Given:  head_i = softmax(scale q_i(x) k_i(x)^T + bias_i) v_i(x)        # or a call of its own
            y = cat([head_1, ..., head_h], -1)
    Result: q, k, v = parts of linear(x)
            y = scaled_dot_product_attention(q, k, v, bias)                # all heads stacked

Exact when all heads have one size and read one value each for their queries, keys and values, for every number of
images and tokens; a constant bias or mask keeps its meaning, except that a row of nothing but -inf gives zeros
where the original gives NaN.  Factors of the scores go into the queries' projection, or one factor of all stays the
call's own scale.  Declined where heads differ in size, in what they read, in their bias or in their causal mask, where
they are joined along another axis than their channels or are no rows of tokens, where structure does not give
their number of channels, where a bias is no constant that the call can take, where a call's weights are dropped at
random or its mask comes from the input, and where scores, weights or a projection are read elsewhere.  Why a
part that is written out is no attention is said by fuse_attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from repfx.algebra import AffineConv, Kind, concat, form_of, scaled, select
from repfx.attention import (
    Attention,
    Projection,
    attention_of,
    bias_of_all,
    is_call,
    projection_of,
    scaled_by,
    scaling_of,
    without_shared_turns,
)
from repfx.decline import Decline, Reason
from repfx.graph import Concat, LiftedGraph, Op
from repfx.rewriting import Apply, Attend, Expr, Proposal, Ref, Shared

Roles = Sequence[Sequence[Projection]]  # the queries, the keys and the values of all heads

_ROLES = ("queries", "keys", "values")
_STACKINGS = (  # what becomes of the projections: one linear; one for each role; they stay
    {"deep": True, "joint": True},
    {"deep": True, "joint": False},
    {"deep": False, "joint": False},
)


@dataclass(frozen=True)
class StackHeads:
    """Write heads one after the other as one `scaled_dot_product_attention`, and stack their projections."""

    name: str = "stack_heads"
    about: tuple[type[Op], ...] = (Concat,)
    last_first: bool = True

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Proposals and refusals for one concatenation of heads."""
        op = lifted.op(node)
        assert isinstance(op, Concat)
        heads = _heads(lifted, op)
        if isinstance(heads, Decline):
            yield heads
            return
        if heads is None:
            return
        if not op.last or op.order is not None:
            fact = "joins attention heads along another axis than their channels"
            yield Decline(Reason.NOT_EXACT, fact, lifted.place(node))
            return
        for stacking in _STACKINGS:
            if not lifted.alive(node):
                return
            proposal = _stacked(self.name, lifted, node, op, heads, **stacking)
            yield proposal
            if isinstance(proposal, Decline):
                return


def _heads(lifted: LiftedGraph, op: Concat) -> list[Attention] | Decline | None:
    """The heads that a concatenation joins; None where one of its parts is no attention."""
    outs = [lifted.past_aliases(part)[0] for part in op.parts]
    found = [attention_of(lifted, out) for out in outs]
    for out, head in zip(outs, found):
        if isinstance(head, Decline) and is_call(out):
            return head
    heads = [head for head in found if isinstance(head, Attention)]
    return heads if len(heads) == len(found) else None


def _stacked(
    rule: str, lifted: LiftedGraph, node: fx.Node, op: Concat, heads: Sequence[Attention], *, deep: bool, joint: bool
) -> Proposal | Decline:
    """All heads as one attention; `deep`: their projections are stacked too, `joint`: into one linear."""
    place = lifted.place(node)
    roles = _projections(lifted, heads, place, deep=deep)
    if isinstance(roles, Decline):
        return roles
    refused = _unlike(roles)
    if refused is not None:
        return refused.at(place)
    sources = [role[0].source for role in roles]
    bias = bias_of_all(lifted, heads, set(sources))
    if isinstance(bias, Decline):
        return bias.at(place)
    if len({head.causal for head in heads}) > 1:
        return Decline(Reason.NOT_EXACT, "has heads with and heads without a causal mask", place)
    queries = _scaled(lifted, heads, roles[0])
    if isinstance(queries, Decline):
        return queries.at(place)
    stacks = _stacks([queries.maps, *([made.map for made in role] for role in roles[1:])])
    if isinstance(stacks, Decline):
        return stacks.at(place)
    query, key, value = _expressions(sources, stacks, joint=joint)
    attend = Attend(query, key, value, heads=len(heads), scale=queries.scale, causal=heads[0].causal, bias=bias)
    note = f"{len(heads)} heads in one attention, for every number of tokens"
    return Proposal(rule, ((node, attend),), _interior(lifted, node, op, heads, roles), note)


def _projections(lifted: LiftedGraph, heads: Sequence[Attention], place: str, *, deep: bool) -> Roles | Decline:
    """What makes the queries, keys and values of every head."""
    if any(operand.transposed for head in heads for operand in head.operands):
        return Decline(Reason.NOT_EXACT, "holds a head whose queries, keys or values are no rows of tokens", place)
    roles: list[list[Projection]] = [[] for _ in _ROLES]
    for head in heads:
        for role, operand in zip(roles, head.operands):
            made = projection_of(lifted, operand.node, deep=deep)
            if isinstance(made, Decline):
                return made
            role.append(made)
    return roles


def _unlike(roles: Roles) -> Decline | None:
    """Why heads of these projections cannot be stacked, if so."""
    for name, role in zip(_ROLES, roles):
        widths = sorted({made.map.out_channels for made in role})
        if len(widths) > 1:
            fact = f"has heads whose {name} have {' and '.join(map(str, widths))} channels; they cannot be stacked"
            return Decline(Reason.NOT_EXACT, fact)
        if len({made.source for made in role}) > 1:
            return Decline(Reason.NOT_EXACT, f"has heads whose {name} are made of different values")
    queries, keys, _ = roles
    if queries[0].map.out_channels != keys[0].map.out_channels:
        return Decline(Reason.NOT_EXACT, "multiplies queries and keys of different sizes")
    return None


@dataclass(frozen=True, eq=False)
class _Queries:
    """The maps of all queries, and the factor of all scores that is left to the call."""

    maps: Sequence[AffineConv]
    scale: float


def _scaled(lifted: LiftedGraph, heads: Sequence[Attention], made: Sequence[Projection]) -> _Queries | Decline:
    """The queries' projections with the factors of the scores; one number stays the call's where no linears take it."""
    maps = [one.map for one in made]
    factors = [scaling_of(lifted, head, map_.out_channels) for head, map_ in zip(heads, maps)]
    common = factors[0] if len(set(map(str, factors))) == 1 else None
    if common is not None and any(form_of(map_).kind is not Kind.LINEAR for map_ in maps):
        return _Queries(maps, common)
    taken: list[AffineConv] = []
    for head, map_, factor in zip(heads, maps, factors):
        own = _times(lifted, head, map_, factor)
        if isinstance(own, Decline):
            return own
        taken.append(own)
    return _Queries(taken, 1.0)


def _times(lifted: LiftedGraph, head: Attention, map_: AffineConv, factor: float | None) -> AffineConv | Decline:
    """The queries' projection of one head times the factors of its scores: one number, or tensors among them (None)."""
    if factor is None:
        return scaled_by(lifted, map_, head.scales)
    return map_ if factor == 1.0 else scaled(map_, factor)


def _stacks(roles: Sequence[Sequence[AffineConv]]) -> list[AffineConv] | Decline:
    """One map for each role, which gives the channels of all heads."""
    stacks: list[AffineConv] = []
    for maps in roles:
        stack = maps[0] if len(maps) == 1 else concat(maps)
        if isinstance(stack, Decline):
            return stack
        stacks.append(stack)
    return stacks


def _expressions(sources: Sequence[fx.Node], stacks: Sequence[AffineConv], *, joint: bool) -> list[Expr]:
    """Query, key and value; if `joint`, linears of one value are one linear, whose parts they are."""
    exprs: list[Expr] = [Ref(s) if m.is_identity else Apply(m, s) for s, m in zip(sources, stacks)]
    for source in dict.fromkeys(sources) if joint else ():
        own = [i for i, stack in enumerate(stacks) if sources[i] is source and form_of(stack).kind is Kind.LINEAR]
        for i, part in zip(own, _parts(source, [stacks[i] for i in own])):
            exprs[i] = part
    return exprs


def _parts(source: fx.Node, stacks: Sequence[AffineConv]) -> list[Expr]:
    """Several maps of one value as parts of one; none where they are one already, or cannot be one."""
    whole = concat(stacks) if len(stacks) > 1 else None
    if not isinstance(whole, AffineConv):
        return []
    parts: list[Expr] = []
    start = 0
    for stack in stacks:
        channels = np.arange(start, start + stack.out_channels)
        parts.append(Shared(whole, source, select(whole.out_channels, channels, 0)))
        start += stack.out_channels
    return parts


def _interior(
    lifted: LiftedGraph, node: fx.Node, op: Concat, heads: Sequence[Attention], roles: Roles
) -> tuple[fx.Node, ...]:
    """Everything that the one attention stands for."""
    inside = {node}
    for head in heads:
        inside.update(head.nodes)
    for made in (made for role in roles for made in role):
        inside.update(made.nodes)
    for part in op.parts:
        inside.update(lifted.past_aliases(part)[1])
    return without_shared_turns(lifted, heads, inside)
