"""Attention as it is written out: softmax(scale q k^T + bias) v, found in a lifted graph.

    scores = query @ key.transpose(-2, -1)        # or torch.matmul, bmm, einsum
    out = (scores * scale + bias).softmax(-1) @ value

`product_of` reads one product of two values in any spelling, `attention_of` the whole expression that
ends in a product, or a call of scaled_dot_product_attention.  What looks like attention but is not exactly
this is a `Decline`; a product whose left factor is no softmax is nothing that concerns this file.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from repfx.decline import Decline, Reason
from repfx.graph import Affine, Alias, LiftedGraph, Sum, argument

_PRODUCTS = (operator.matmul, torch.matmul, torch.bmm)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_TRANSPOSITIONS = ("transpose", "swapaxes", "permute")
_LOOKED_BACK = 4  # operations between a softmax and the product that makes its scores


@dataclass(frozen=True)
class Operand:
    """One factor of a product: a value, read transposed in its last two axes or not."""

    node: fx.Node
    transposed: bool
    turns: tuple[fx.Node, ...] = ()  # the transpositions in between


@dataclass(frozen=True)
class Product:
    """left (..., n, d) times right (..., d, m)."""

    node: fx.Node
    left: Operand
    right: Operand


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


def name_of(node: fx.Node) -> str:
    """The name of what a node calls, "" for a module."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def product_of(lifted: LiftedGraph, node: fx.Node) -> Product | None:
    """The product of two values that a node computes, or None."""
    lifted.op(node)  # what is concluded from its arguments rests on it
    if node.op == "call_function" and node.target is torch.einsum:
        return _einsum(lifted, node)
    is_product = node.target in _PRODUCTS if node.op == "call_function" else name_of(node) in ("matmul", "bmm")
    if not is_product:
        return None
    left, right = argument(node, 0, "input"), argument(node, 1, "other", argument(node, 1, "mat2"))
    if not _is_value(lifted, left) or not _is_value(lifted, right):
        return None
    return Product(node, _operand(lifted, left), _operand(lifted, right))


def _is_value(lifted: LiftedGraph, node: object) -> bool:
    return isinstance(node, fx.Node) and not lifted.context.constants.is_constant(node)


def _einsum(lifted: LiftedGraph, node: fx.Node) -> Product | None:
    """einsum("...id,...jd->...ij", a, b): a product of matrices with common leading axes."""
    equation = node.args[0] if node.args else None
    operands = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    if not isinstance(equation, str) or len(operands) != 2 or not all(_is_value(lifted, o) for o in operands):
        return None
    inputs, arrow, out = equation.replace(" ", "").replace("...", "").partition("->")
    first, comma, second = inputs.partition(",")
    terms = (first, second, out)
    if not arrow or not comma or any(len(set(t)) != len(t) or len(t) < 2 for t in terms):
        return None
    dots = equation.count("...")
    lead = out[:-2]
    if dots not in (0, 3) or (dots == 0 and not lead) or any(t[:-2] != lead for t in terms):
        return None
    row, column = out[-2], out[-1]
    summed = set(first[-2:]) - {row}
    if len(summed) != 1 or row not in first[-2:] or set(second[-2:]) != {column, *summed}:
        return None
    left, right = _operand(lifted, operands[0]), _operand(lifted, operands[1])
    if first[-2] != row:
        left = _turned(left)
    if second[-1] != column:
        right = _turned(right)
    return Product(node, left, right)


def _turned(operand: Operand) -> Operand:
    return Operand(operand.node, not operand.transposed, operand.turns)


def _operand(lifted: LiftedGraph, node: object) -> Operand:
    """A factor, seen through the transpositions of its last two axes."""
    assert isinstance(node, fx.Node)
    turns: list[fx.Node] = []
    while (inner := transposed_last(lifted, node)) is not None:
        turns.append(node)
        node = inner
    return Operand(node, len(turns) % 2 == 1, tuple(turns))


def transposed_last(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The value whose last two axes a node swaps, or None."""
    lifted.op(node)
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_function" and node.target is getattr:
        return source if node.args[1] == "mT" else None
    name = name_of(node)
    if name not in _TRANSPOSITIONS:
        return None
    rank = lifted.context.shapes.rank(source)
    if name == "permute":
        dims = permuted_dims(node)
        count = 0 if dims is None else len(dims)
        return source if count >= 2 and dims == (*range(count - 2), count - 1, count - 2) else None
    a, b = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    if rank is not None:
        a, b = a % rank - rank, b % rank - rank
    return source if {a, b} == {-2, -1} else None


def permuted_dims(node: fx.Node) -> tuple[int, ...] | None:
    """The axes of a `permute`, counted from the front, or None where they are no numbers."""
    dims = argument(node, 1, "dims", ()) if len(node.args) <= 2 else node.args[1:]
    numbers = tuple(d for d in (dims if isinstance(dims, tuple | list) else (dims,)) if isinstance(d, int))
    full = isinstance(dims, int) or len(numbers) == len(dims)
    return tuple(d % len(numbers) for d in numbers) if full and numbers else None


def attention_of(lifted: LiftedGraph, node: fx.Node) -> Attention | Decline | None:
    """The attention that a node ends; None where it is no product whose left factor is a softmax of a product."""
    if is_call(node):
        return _called(lifted, node)
    outer = product_of(lifted, node)
    if outer is None or outer.left.transposed:
        return None
    nodes: list[fx.Node] = [node, *outer.left.turns, *outer.right.turns]
    weights = outer.left.node
    while isinstance(op := lifted.op(weights), Alias):
        nodes.append(weights)
        weights = op.source
    dropped = _random_dropout(lifted, weights)
    if dropped is not None:
        return dropped
    softmax = _softmax(lifted, weights)
    if softmax is None:
        return None
    place = lifted.place(weights)
    inner, dim, dtype = softmax
    nodes.append(weights)
    found = _scores(lifted, inner)
    if isinstance(found, Decline):
        return found.at(place)
    if found is None:
        return None
    scores, scales, bias, between = found
    rank = lifted.context.shapes.rank(weights)
    if dim != -1 and (rank is None or dim != rank - 1):
        return Decline(Reason.NOT_EXACT, f"takes the softmax of its scores over axis {dim}, not the last", place)
    if dtype is not None:
        return Decline(Reason.NOT_EXACT, f"takes the softmax of its scores in {dtype}", place)
    nodes += [*between, scores.node, *scores.left.turns, *scores.right.turns]
    key = _turned(scores.right)  # as (..., m, d)
    return Attention(node, scores.left, key, outer.right, scales, bias, tuple(sorted(set(nodes))))


def is_call(node: fx.Node) -> bool:
    """Whether a node is a call of scaled_dot_product_attention."""
    return node.op == "call_function" and node.target is F.scaled_dot_product_attention


def _called(lifted: LiftedGraph, node: fx.Node) -> Attention | Decline | None:
    """The attention that one call computes."""
    place = lifted.place(node)
    values = [argument(node, i, name) for i, name in enumerate(("query", "key", "value"))]
    mask, dropout = argument(node, 3, "attn_mask"), argument(node, 4, "dropout_p", 0.0)
    causal, scale = argument(node, 5, "is_causal", False), node.kwargs.get("scale")
    if not all(_is_value(lifted, value) for value in values) or not isinstance(causal, bool):
        return None
    if dropout != 0.0:
        return Decline(Reason.NOT_EXACT, "drops attention weights at random", place)
    if node.kwargs.get("enable_gqa", False) is not False or not isinstance(scale, float | int | None):
        return None
    if mask is not None and _is_value(lifted, mask):
        return Decline(Reason.NOT_EXACT, "adds a mask to its scores that is computed from the input", place)
    query, key, value = (Operand(v, transposed=False) for v in values)
    factor = None if scale is None else float(scale)
    return Attention(node, query, key, value, (), mask, (node,), called=True, scale=factor, causal=causal)


def _module(lifted: LiftedGraph, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None for functions, and for maps that are not written yet."""
    return lifted.context.module(node) if node.op == "call_module" and node not in lifted.records else None


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


def _softmax(lifted: LiftedGraph, node: fx.Node) -> tuple[fx.Node, object, object] | None:
    """(argument, dim, dtype) of a softmax."""
    lifted.op(node)
    if node.op == "call_module":
        module = _module(lifted, node)
        source = argument(node, 0, "input")
        return (source, module.dim, None) if type(module) is nn.Softmax and isinstance(source, fx.Node) else None
    if node.target not in (F.softmax, torch.softmax) and not (node.op == "call_method" and node.target == "softmax"):
        return None
    source, dim = argument(node, 0, "input"), argument(node, 1, "dim")
    functional = node.target is F.softmax
    dtype = argument(node, 3 if functional else 2, "dtype")
    return (source, dim, dtype) if isinstance(source, fx.Node) else None


def scalar_factor(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """What a node multiplies by one number (a Python number, or a constant of one element)."""
    match lifted.op(node):
        case Sum(terms=((source, _),), shift=0.0):
            return source
        case Affine(source=source, axes=None, build=build):
            map_ = build(0, 2)
            if isinstance(map_, Decline) or map_.biased or map_.selection is not None or map_.in_channels != 2:
                return None
            return source
        case _:
            return None


def _scores(
    lifted: LiftedGraph, node: fx.Node
) -> tuple[Product, tuple[fx.Node, ...], fx.Node | None, list[fx.Node]] | Decline | None:
    """(product, its scalar factors, the constant added, the operations in between) behind a softmax."""
    bias: fx.Node | None = None
    scales: list[fx.Node] = []
    nodes: list[fx.Node] = []
    while True:
        product = product_of(lifted, node)
        if product is not None:
            return product, tuple(reversed(scales)), bias, nodes
        op = lifted.op(node)
        if isinstance(op, Alias):
            nodes.append(node)
            node = op.source
            continue
        factor = scalar_factor(lifted, node)
        if factor is not None:
            scales.append(node)
            nodes.append(node)
            node = factor
            continue
        added = _added(lifted, node)
        if added is not None and bias is None and not scales:
            nodes.append(node)
            node, bias = added
            continue
        break
    if not _behind(lifted, node):
        return None
    if added is not None and scales:
        fact = "scales its scores after adding a bias to them"
    elif added is not None:
        fact = "adds two biases to its scores"
    elif name_of(node) in ("add", "iadd", "sub"):
        fact = "adds a mask to its scores that is computed from the input"
    else:
        other = "a scale and shift per key" if node in lifted.records else name_of(node) or lifted.place(node)
        fact = f"changes its scores by {other} before the softmax"
    return Decline(Reason.NOT_EXACT, fact)


def _added(lifted: LiftedGraph, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(value, constant) of a sum with a constant tensor."""
    lifted.op(node)
    is_sum = node.target in _ADDITIONS if node.op == "call_function" else name_of(node) == "add"
    if not is_sum or argument(node, 2, "alpha", 1) != 1:
        return None
    a, b = argument(node, 0, "input"), argument(node, 1, "other")
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    constant = lifted.context.constants.is_constant
    if constant(a) == constant(b):
        return None
    return (b, a) if constant(a) else (a, b)


def _behind(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether the product of two values stands a few operations before a node."""
    level = [node]
    for _ in range(_LOOKED_BACK):
        level = [n for one in level for n in one.all_input_nodes if _is_value(lifted, n)]
        if any(product_of(lifted, n) is not None for n in level):
            return True
    return False
