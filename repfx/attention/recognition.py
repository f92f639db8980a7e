"""Attention as it is written out: softmax(scale q k^T + bias) v, found in a lifted graph.

    scores = query @ key.transpose(-2, -1)        # or torch.matmul, bmm, einsum
    out = (scores * scale + bias).softmax(-1) @ value

`attention_of` reads the whole expression that ends in a product, or a call of scaled_dot_product_attention.
What looks like attention but is not exactly this is a `Decline`; a product whose left factor is no softmax of
scores is nothing that concerns this file.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from repfx.attention.products import Operand, Product, is_value, product_of
from repfx.attention.views import scalar_factor
from repfx.decline import Decline, Reason
from repfx.graph import Alias, LiftedGraph, argument, name_of

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_LOOKED_BACK = 4  # operations between a softmax and the product that makes its scores


@dataclass(frozen=True)
class Attention:
    """softmax(scale query key^T + bias) value; key and value may be read transposed."""

    out: fx.Node  # the product with the values
    query: Operand
    key: Operand
    value: Operand
    scales: tuple[fx.Node, ...]  # scalar factors of the scores, innermost first
    bias: fx.Node | None  # a constant added to the scaled scores
    nodes: tuple[fx.Node, ...]  # all of these operations, in order of execution
    called: bool = False  # one call already
    scale: float | None = 1.0  # the call's own; None: one over the root of the head size
    causal: bool = False

    @property
    def operands(self) -> tuple[Operand, Operand, Operand]:
        """Query, key and value."""
        return self.query, self.key, self.value


def attention_of(lifted: LiftedGraph, node: fx.Node) -> Attention | Decline | None:
    """The attention that a node ends; None where it is no product whose left factor is a softmax of a product."""
    if is_call(node):
        return _called(lifted, node)
    outer = product_of(lifted, node)
    if outer is None or outer.left.transposed:
        return None
    weights, copies = lifted.past_aliases(outer.left.node)
    dropped = _random_dropout(lifted, weights)
    if dropped is not None:
        return dropped
    softmax = _softmax(lifted, weights)
    if softmax is None:
        return None
    scores = _scores(lifted, softmax.source)
    if scores is None:
        return None
    place = lifted.place(weights)
    if isinstance(scores, Decline):
        return scores.at(place)
    refused = _unlike(softmax, lifted.rank(weights))
    if refused is not None:
        return refused.at(place)
    inner = scores.product
    key = inner.right.turned()  # as (..., m, d)
    turns = (*outer.left.turns, *outer.right.turns, *inner.left.turns, *inner.right.turns)
    nodes = {node, *copies, weights, *scores.between, inner.node, *turns}
    return Attention(node, inner.left, key, outer.right, scores.scales, scores.bias, tuple(sorted(nodes)))


def without_shared_turns(lifted: LiftedGraph, heads: Iterable[Attention], inside: set[fx.Node]) -> tuple[fx.Node, ...]:
    """In order of execution; transpositions that something else reads too stay where they are."""
    turns = {turn for head in heads for operand in head.operands for turn in operand.turns}
    shared = {turn for turn in turns if not inside.issuperset(lifted.users(turn))}
    return tuple(sorted(inside - shared))


# --- one call ---------------------------------------------------------------------------------------


def is_call(node: fx.Node) -> bool:
    """Whether a node is a call of scaled_dot_product_attention."""
    return node.op == "call_function" and node.target is F.scaled_dot_product_attention


def _called(lifted: LiftedGraph, node: fx.Node) -> Attention | Decline | None:
    """The attention that one call computes."""
    place = lifted.place(node)
    values = [argument(node, i, name) for i, name in enumerate(("query", "key", "value"))]
    mask, dropout = argument(node, 3, "attn_mask"), argument(node, 4, "dropout_p", 0.0)
    causal, scale = argument(node, 5, "is_causal", False), node.kwargs.get("scale")
    if not all(is_value(lifted, value) for value in values) or not isinstance(causal, bool):
        return None
    if dropout != 0.0:
        return Decline(Reason.NOT_EXACT, "drops attention weights at random", place)
    if node.kwargs.get("enable_gqa", False) is not False or not isinstance(scale, float | int | None):
        return None
    if mask is not None and is_value(lifted, mask):
        return Decline(Reason.NOT_EXACT, "adds a mask to its scores that is computed from the input", place)
    query, key, value = (Operand(v, transposed=False) for v in values)
    factor = None if scale is None else float(scale)
    return Attention(node, query, key, value, (), mask, (node,), called=True, scale=factor, causal=causal)


# --- the softmax ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Softmax:
    source: fx.Node
    dim: object
    dtype: object


def _softmax(lifted: LiftedGraph, node: fx.Node) -> _Softmax | None:
    """The softmax that a node is, by a module, a function or a method."""
    lifted.op(node)
    source = argument(node, 0, "input")
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_module":
        module = _module(lifted, node)
        return _Softmax(source, module.dim, None) if type(module) is nn.Softmax else None
    if node.target is F.softmax:
        return _Softmax(source, argument(node, 1, "dim"), argument(node, 3, "dtype"))
    if node.target is torch.softmax or (node.op == "call_method" and node.target == "softmax"):
        return _Softmax(source, argument(node, 1, "dim"), argument(node, 2, "dtype"))
    return None


def _unlike(softmax: _Softmax, rank: int | None) -> Decline | None:
    """Why a softmax of scores is not that of attention, if so."""
    dim, dtype = softmax.dim, softmax.dtype
    if dim != -1 and (rank is None or dim != rank - 1):
        return Decline(Reason.NOT_EXACT, f"takes the softmax of its scores over axis {dim}, not the last")
    if dtype is not None:
        return Decline(Reason.NOT_EXACT, f"takes the softmax of its scores in {dtype}")
    return None


def _random_dropout(lifted: LiftedGraph, node: fx.Node) -> Decline | None:
    """The refusal for weights that a dropout in training mode changes at random."""
    module = _module(lifted, node)
    if not isinstance(module, nn.modules.dropout._DropoutNd) and name_of(node) != "dropout":
        return None
    source = argument(node, 0, "input")
    if not isinstance(source, fx.Node) or _softmax(lifted, source) is None:
        return None
    return Decline(
        Reason.NOT_EXACT, "drops attention weights at random", lifted.place(node), "call eval() on the dropout"
    )


def _module(lifted: LiftedGraph, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None for functions, and for maps that are not written yet."""
    return lifted.context.module(node) if node.op == "call_module" and node not in lifted.records else None


# --- what stands between the product and the softmax ------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """scale product + bias."""

    product: Product
    scales: tuple[fx.Node, ...]  # innermost first
    bias: fx.Node | None
    between: tuple[fx.Node, ...]


@dataclass(frozen=True)
class _Step:
    """One operation on scores that attention may hold: another name, a factor, or a constant added."""

    source: fx.Node
    is_factor: bool = False
    bias: fx.Node | None = None


def _scores(lifted: LiftedGraph, node: fx.Node) -> _Scores | Decline | None:
    """The scores that a softmax takes; None where no product is near."""
    bias: fx.Node | None = None
    scales: list[fx.Node] = []
    between: list[fx.Node] = []
    while (product := product_of(lifted, node)) is None:
        step = _step(lifted, node)
        fact = _obstacle(lifted, node, step, scaled=bool(scales), biased=bias is not None)
        if step is None or fact:
            return Decline(Reason.NOT_EXACT, fact) if _is_near_a_product(lifted, node) else None
        between.append(node)
        if step.is_factor:
            scales.append(node)
        bias = bias or step.bias
        node = step.source
    return _Scores(product, tuple(reversed(scales)), bias, tuple(between))


def _step(lifted: LiftedGraph, node: fx.Node) -> _Step | None:
    op = lifted.op(node)
    if isinstance(op, Alias):
        return _Step(op.source)
    factor = scalar_factor(lifted, node)
    return _added(lifted, node) if factor is None else _Step(factor, is_factor=True)


def _added(lifted: LiftedGraph, node: fx.Node) -> _Step | None:
    """A sum with a constant tensor."""
    is_sum = node.target in _ADDITIONS if node.op == "call_function" else name_of(node) == "add"
    if not is_sum or argument(node, 2, "alpha", 1) != 1:
        return None
    a, b = argument(node, 0, "input"), argument(node, 1, "other")
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    first, second = lifted.context.constants.is_constant(a), lifted.context.constants.is_constant(b)
    if first == second:
        return None
    return _Step(b, bias=a) if first else _Step(a, bias=b)


def _obstacle(lifted: LiftedGraph, node: fx.Node, step: _Step | None, *, scaled: bool, biased: bool) -> str:
    """What an operation does to scores that attention does not, looking back from the softmax; "" for nothing."""
    if step is not None:
        if step.bias is None:
            return ""
        if scaled:
            return "scales its scores after adding a bias to them"
        return "adds two biases to its scores" if biased else ""
    if name_of(node) in ("add", "iadd", "sub"):
        return "adds a mask to its scores that is computed from the input"
    if node in lifted.records:
        return "changes its scores by a scale and shift per key before the softmax"
    return f"changes its scores by {name_of(node) or lifted.place(node)} before the softmax"


def _is_near_a_product(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether the product of two values stands a few operations before a node."""
    level = [node]
    for _ in range(_LOOKED_BACK):
        before = [given for one in level for given in lifted.given(one)]
        level = [given for given in before if is_value(lifted, given)]
        if any(product_of(lifted, given) is not None for given in level):
            return True
    return False
