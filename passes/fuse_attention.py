"""fuse_attention: attention that is written out is one call.

    Given:  y = softmax(scale q k^T + bias) v                              # q, k, v divided into heads already
    Result: y = scaled_dot_product_attention(q, k, v, bias, scale)

Exact for every number of images and tokens; a constant bias or mask keeps its meaning, except that a row of
nothing but -inf gives zeros where the original gives NaN.  Declined where rank or head size are not known or the
values have other axes than images, heads, tokens and channels, where the softmax is not over the keys or is taken in
another type, where keys and values differ in size (no fused kernel), where the scale is no number, where a
mask comes from the input, is no constant added to the scaled scores or may widen them, where weights are
dropped at random, and where scores or weights are read elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.attention import (
    Attention,
    Bias,
    Operand,
    attention_of,
    product_of,
    scaling_of,
    tokens_of,
    usable_bias,
    without_shared_turns,
)
from repfx.decline import Decline, Reason
from repfx.graph import ANY, LiftedGraph, Op, used_outside
from repfx.rewriting import Attend, Proposal, Ref


@dataclass(frozen=True)
class FuseAttention:
    """Write attention as `scaled_dot_product_attention`."""

    name: str = "fuse_attention"
    about: tuple[type[Op], ...] = ANY
    last_first: bool = True

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """A proposal or refusal for one product."""
        if product_of(lifted, node) is None:
            return  # a call is one already
        found = attention_of(lifted, node)
        if found is None:
            return
        yield found if isinstance(found, Decline) else _fused(self.name, lifted, found)


def _fused(rule: str, lifted: LiftedGraph, found: Attention) -> Proposal | Decline:
    place = lifted.place(found.out)
    size = _head_size(lifted, found)
    if isinstance(size, Decline):
        return size.at(place)
    scale = scaling_of(lifted, found, size)
    if scale is None:
        return Decline(Reason.NOT_EXACT, "scales its scores by a tensor that no projection can take", place)
    bias = _bias(lifted, found)
    if isinstance(bias, Decline):
        return bias.at(place)
    interior = without_shared_turns(lifted, [found], set(found.nodes))
    leak = used_outside(lifted, interior, [found.out])
    if leak is not None:
        fact = f"is read inside the attention and by {lifted.reader_name(leak[1])}"
        return Decline(Reason.OUTSIDE_USE, fact, lifted.place(leak[0]))
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
    return Proposal(rule, ((found.out, attend),), interior, "for every number of tokens")


def _head_size(lifted: LiftedGraph, found: Attention) -> int | Decline:
    """Channels per head, which queries, keys and values have in common."""
    ranks = {lifted.rank(operand.node) for operand in found.operands}
    if None in ranks:
        return Decline(Reason.UNKNOWN_FACT, "attends to values whose rank is not known", remedy="pass example_inputs")
    if ranks not in ({3}, {4}):
        return Decline(Reason.NOT_EXACT, "attends to values of other axes than images, heads, tokens and channels")
    query, key, value = (_channels(lifted, operand) for operand in found.operands)
    if query is None or key is None or value is None:
        fact = "attends to values whose head size is not known"
        return Decline(Reason.UNKNOWN_FACT, fact, remedy="pass example_inputs")
    if not query == key == value:
        fact = f"has {key} channels per key and {value} per value; the fused kernels need one size"
        return Decline(Reason.COST, fact)
    return query


def _channels(lifted: LiftedGraph, operand: Operand) -> int | None:
    return lifted.size(operand.node, -2 if operand.transposed else -1)


def _bias(lifted: LiftedGraph, found: Attention) -> Bias | Decline:
    """The constant that the call adds, in the shape of its scores; () where there is none."""
    if found.bias is None:
        return ()
    tokens = {tokens_of(lifted, operand.node) for operand in found.operands}
    shape = usable_bias(lifted, found.bias, tokens)
    if isinstance(shape, Decline):
        return shape
    if len(shape) <= 2:
        return ((found.bias, (1,) * (2 - len(shape)) + tuple(shape)),)
    if len(shape) == 4 and shape[0] != 1:
        return Decline(Reason.NOT_EXACT, "adds a bias of its own to each image")
    query = found.query.node
    if shape[-3] not in (1, lifted.size(query, -3)):
        return Decline(Reason.NOT_EXACT, "adds a bias that may widen the scores to more heads")
    if lifted.rank(query) == 3:
        return Decline(Reason.NOT_EXACT, f"adds a bias of shape {tuple(shape)} to scores of three axes")
    return ((found.bias, (1,) * (4 - len(shape)) + tuple(shape)),)
