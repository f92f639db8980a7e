"""What is known of the shape of each value from structure alone: a partial shape.

A partial shape is a tuple with an int where a size is known and None where it is not, or None where
not even the rank is.  It comes from the layers (a Conv2d gives rank 4 and its channels), not from
running anything; `example_inputs` fill in what structure leaves open.  The rule of an operation stands in
its row of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import fx, nn

from repfx.graph.asked_shapes import asked_of
from repfx.graph.operation_table import operation_of
from repfx.graph.shape_rules import Shape


class Shapes:
    """Partial shapes of all values of a graph, computed on demand and remembered."""

    def __init__(
        self,
        root: nn.Module,
        constants: Callable[[fx.Node], torch.Size | None],
        ranks: Mapping[fx.Node, int] | None = None,
    ) -> None:
        self.root = root
        self._constant = constants
        self._ranks = ranks or {}  # of values whose rank structure does not give
        self._known: dict[fx.Node, Shape] = {}

    def set(self, node: fx.Node, shape: Shape) -> None:
        """Record a shape that is known otherwise."""
        self._known[node] = shape

    def of(self, node: fx.Node) -> Shape:
        """Partial shape of one value."""
        if node not in self._known:
            self._compute(node)
        return self._known[node]

    def rank(self, node: fx.Node) -> int | None:
        """Number of dimensions, if known."""
        shape = self.of(node)
        return None if shape is None else len(shape)

    def size(self, node: fx.Node, dim: int) -> int | None:
        """Size along one dimension, if known."""
        shape = self.of(node)
        if shape is None or not -len(shape) <= dim < len(shape):
            return None
        return shape[dim]

    def constant(self, node: fx.Node) -> torch.Size | None:
        """Shape of a value that depends on parameters and buffers only; None of any other."""
        return self._constant(node)

    def _compute(self, root: fx.Node) -> None:
        stack = [root]
        while stack:
            node = stack[-1]
            missing = [a for a in node.all_input_nodes if a not in self._known]
            if node in self._known:
                stack.pop()
            elif missing and node.op != "placeholder":
                stack.extend(missing)
            else:
                stack.pop()
                shape, rank = self._rule(node), self._ranks.get(node)
                self._known[node] = (None,) * rank if shape is None and rank is not None else shape

    def _rule(self, node: fx.Node) -> Shape:
        constant = self._constant(node)
        if constant is not None:
            return tuple(constant)
        if node.op == "placeholder":
            return asked_of(node, self)
        info = operation_of(node, self.root)
        return None if info is None else info.shape(node, self)
