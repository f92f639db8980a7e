"""Products of two values, in any spelling: left @ right, matmul, bmm, einsum, with transpositions in between."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace

import torch
from torch import fx

from repfx.attention.views import transposed_last
from repfx.graph import LiftedGraph, argument, name_of

_FUNCTIONS = (operator.matmul, torch.matmul, torch.bmm)
_METHODS = ("matmul", "bmm")
_TERM = r"([a-zA-Z]*(?:\.\.\.)?[a-zA-Z]*)([a-zA-Z])([a-zA-Z])"  # common leading axes, and the matrix's own two
_EQUATION = re.compile(f"{_TERM},{_TERM}->{_TERM}")


@dataclass(frozen=True)
class Operand:
    """One factor of a product: a value, read transposed in its last two axes or not."""

    node: fx.Node
    transposed: bool
    turns: tuple[fx.Node, ...] = ()  # the transpositions in between

    def turned(self) -> Operand:
        """The factor read the other way."""
        return replace(self, transposed=not self.transposed)


@dataclass(frozen=True)
class Product:
    """left (..., n, d) times right (..., d, m)."""

    node: fx.Node
    left: Operand
    right: Operand


def product_of(lifted: LiftedGraph, node: fx.Node) -> Product | None:
    """The product of two values that a node computes, or None."""
    lifted.op(node)  # what is concluded from its arguments rests on it
    if node.op == "call_function" and node.target is torch.einsum:
        return _einsum(lifted, node)
    is_product = node.target in _FUNCTIONS if node.op == "call_function" else name_of(node) in _METHODS
    if not is_product:
        return None
    left, right = argument(node, 0, "input"), argument(node, 1, "other", argument(node, 1, "mat2"))
    if not is_value(lifted, left) or not is_value(lifted, right):
        return None
    return Product(node, _operand(lifted, left), _operand(lifted, right))


def is_value(lifted: LiftedGraph, given: object) -> bool:
    """Whether an argument is computed from the input."""
    return isinstance(given, fx.Node) and not lifted.context.constants.is_constant(given)


def _einsum(lifted: LiftedGraph, node: fx.Node) -> Product | None:
    """einsum("...id,...jd->...ij", a, b): a product of matrices with common leading axes."""
    equation, *factors = node.args
    if len(factors) == 1 and isinstance(factors[0], tuple | list):
        factors = [*factors[0]]
    if not isinstance(equation, str) or len(factors) != 2 or not all(is_value(lifted, factor) for factor in factors):
        return None
    transposed = _read_transposed(equation)
    if transposed is None:
        return None
    left, right = (_operand(lifted, factor) for factor in factors)
    turn_left, turn_right = transposed
    return Product(node, left.turned() if turn_left else left, right.turned() if turn_right else right)


def _read_transposed(equation: str) -> tuple[bool, bool] | None:
    """Whether an equation reads its left and its right factor transposed; None where it is no product of matrices."""
    spelled = _EQUATION.fullmatch(equation.replace(" ", ""))
    if spelled is None:
        return None
    lead, *left = spelled.group(1, 2, 3)
    same, *right = spelled.group(4, 5, 6)
    out, row, column = spelled.group(7, 8, 9)
    letters = {"".join((lead, *pair)) for pair in (left, right, (row, column))}
    if not lead or {same, out} != {lead} or any(_repeats(term) for term in letters):
        return None
    summed = [letter for letter in left if letter != row]
    if len(summed) != 1 or {*right} != {*summed, column}:
        return None
    return left[0] != row, right[1] != column


def _repeats(term: str) -> bool:
    letters = term.replace("...", "")
    return len(set(letters)) < len(letters)


def _operand(lifted: LiftedGraph, node: object) -> Operand:
    """A factor, seen through the transpositions of its last two axes."""
    assert isinstance(node, fx.Node)
    turns: list[fx.Node] = []
    while (inner := transposed_last(lifted, node)) is not None:
        turns.append(node)
        node = inner
    return Operand(node, len(turns) % 2 == 1, tuple(turns))
