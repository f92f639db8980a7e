"""Values that depend on parameters and buffers only: folded weights, gates, masks, generated kernels.

Their shapes are found on the meta device; their numbers are computed in float64 when wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.algebra import leaf
from repfx.graph.dead_code import may_draw
from repfx.graph.kinds import OpKind
from repfx.graph.module_traversal import attribute
from repfx.graph.operation_table import operation_named, operation_of

_CASTS = ("to", "type_as", "type")
_FLOATING = (OpKind.CONVOLUTION, OpKind.TRANSPOSED, OpKind.LINEAR, OpKind.BATCH_NORM, OpKind.NORM)
_KEEPING = (OpKind.ADD, OpKind.MULTIPLY, OpKind.ACTIVATION)  # the dtype of what they read first


class Constants:
    """The constant part of one graph."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._is: dict[fx.Node, bool] = {}
        self._meta: dict[fx.Node, Tensor | None] = {}
        self._casts_along: dict[fx.Node, bool] = {}  # decided of the graph as it was traced

    def is_constant(self, node: fx.Node) -> bool:
        """Whether no model input reaches this node."""
        if node not in self._is:
            stack = [node]
            while stack:
                top = stack[-1]
                missing = [a for a in self.read_by(top) if a not in self._is]
                if missing:
                    stack.extend(missing)
                    continue
                self._is[stack.pop()] = self._decide(top)
        return self._is[node]

    def read_by(self, node: fx.Node) -> Sequence[fx.Node]:
        """The values that a node's own depends on: a cast to the dtype of a floating-point value casts nothing."""
        return node.all_input_nodes[:1] if self._casts(node) else node.all_input_nodes

    def _casts(self, node: fx.Node) -> bool:
        if node not in self._casts_along:
            self._casts_along[node] = self._is_cast_along(node)
        return self._casts_along[node]

    def _is_cast_along(self, node: fx.Node) -> bool:
        """Whether a node is `scale.to(x.dtype)`, `.to(x)` or `.type_as(x)` of a value that layers have computed."""
        if node.op != "call_method" or node.target not in _CASTS or node.kwargs or len(node.all_input_nodes) < 2:
            return False
        return all(isinstance(a, fx.Node) and self._is_like(a) for a in node.args[1:])

    def _is_like(self, given: fx.Node) -> bool:
        """Whether an argument of a cast is a computed floating-point value, or its dtype or device."""
        if given.target is getattr and given.args[1] in ("dtype", "device"):
            given = given.all_input_nodes[0]
        seen: set[fx.Node] = set()
        while given not in seen:
            seen.add(given)
            info = operation_of(given, self.root)
            if info is None or not given.all_input_nodes:
                return False
            if info.kind in _FLOATING:
                return True
            keeps = info.elementwise and info.kind in _KEEPING
            if not keeps and info.name != "contiguous":
                return False
            given = given.all_input_nodes[0]
        return False

    def _decide(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return not node.meta.get("aliased")
        if node.op not in ("call_function", "call_method"):
            return False
        inputs = self.read_by(node)
        if not inputs or not all(self._is[a] for a in inputs):
            return False
        return not may_draw(node) and not node.meta.get("aliased")

    def shape(self, node: fx.Node) -> torch.Size | None:
        """Shape of a constant tensor; None if it is no constant or no tensor."""
        meta = self.meta(node)
        return None if meta is None else meta.shape

    def meta(self, node: fx.Node) -> Tensor | None:
        """A constant tensor without its numbers; None if it is no constant or no tensor."""
        if not self.is_constant(node):
            return None
        if node not in self._meta:
            try:
                with torch.no_grad():
                    value = self._run(node, lambda t: t.detach().to("meta"))
            except Exception:  # a data-dependent weight expression; then it has no shape we can rely on
                value = None
            self._meta[node] = value if isinstance(value, Tensor) else None
        return self._meta[node]

    def dtype(self, node: fx.Node) -> torch.dtype | None:
        """Element type of a constant tensor, as the model computes it."""
        if self.shape(node) is None:
            return None
        with torch.no_grad():
            value = self._run(node, lambda t: t.detach().to("meta"))
        return value.dtype if isinstance(value, Tensor) else None

    def value(self, node: fx.Node) -> Tensor:
        """The constant in float64 (integers as they are).

        An expression with a jump (rounding, comparing) is evaluated in its own dtype: at a tie the last bit decides.
        """
        if node.op == "get_attr":
            held = attribute(self.root, str(node.target))
            if isinstance(held, Tensor):
                return leaf(held).double() if held.is_floating_point() else leaf(held)
        jumps = self._jumps(node)
        value = self._run(node, lambda t: leaf(t) if jumps or not t.is_floating_point() else leaf(t).double())
        if not isinstance(value, Tensor):
            raise TypeError(f"{node.name} is no tensor")
        return value.double() if value.is_floating_point() else value

    def _jumps(self, node: fx.Node) -> bool:
        seen, work = {node}, [node]
        while work:
            step = work.pop()
            info = operation_named(step)
            if info is not None and info.jumps:
                return True
            fresh = [n for n in self.read_by(step) if n not in seen]
            seen.update(fresh)
            work += fresh
        return False

    def _run(self, node: fx.Node, prepare: Callable[[Tensor], Tensor]) -> Any:
        done: dict[fx.Node, Any] = {}
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [a for a in self.read_by(top) if a not in done]
            if missing:
                stack.extend(missing)
                continue
            done[stack.pop()] = self._step(top, done, prepare)
        return done[node]

    def _step(self, node: fx.Node, done: dict[fx.Node, Any], prepare: Callable[[Tensor], Tensor]) -> Any:
        if node.op == "get_attr":
            value = attribute(self.root, str(node.target))
            return prepare(value) if isinstance(value, Tensor) else value
        if self._casts(node):
            return done[node.all_input_nodes[0]]
        args = fx.node.map_arg(node.args, lambda n: done[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: done[n])
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
