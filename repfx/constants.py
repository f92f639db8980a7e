"""Values that depend on parameters and buffers only: folded weights, gates, masks, generated kernels.

Their shapes are found on the meta device; their numbers are computed in float64 when wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.values import leaf

_JUMPS = {
    "round", "floor", "ceil", "trunc", "fix", "frac", "sign", "sgn", "heaviside", "floordiv", "floor_divide", "mod",
    "fmod", "remainder", "gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "greater_equal", "less_equal",
    "argmax", "argmin", "max", "min", "topk", "sort", "argsort", "median", "kthvalue", "bool", "int", "long", "div",
    "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "bucketize", "searchsorted",
}  # fmt: skip
_RANDOM = ("rand", "dropout", "bernoulli", "normal_", "uniform_", "multinomial", "empty")


class Constants:
    """The constant part of one graph."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._is: dict[fx.Node, bool] = {}
        self._meta: dict[fx.Node, Tensor | None] = {}

    def is_constant(self, node: fx.Node) -> bool:
        """Whether no model input reaches this node."""
        if node not in self._is:
            stack = [node]
            while stack:
                top = stack[-1]
                missing = [a for a in top.all_input_nodes if a not in self._is]
                if missing:
                    stack.extend(missing)
                    continue
                self._is[stack.pop()] = self._decide(top)
        return self._is[node]

    def _decide(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return not node.meta.get("aliased")
        if node.op not in ("call_function", "call_method"):
            return False
        inputs = node.all_input_nodes
        if not inputs or not all(self._is[a] for a in inputs):
            return False
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return not any(word in name for word in _RANDOM) and not node.meta.get("aliased")

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
            name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
            if step.op in ("call_function", "call_method") and name.strip("_") in _JUMPS:
                return True
            fresh = [n for n in step.all_input_nodes if n not in seen]
            seen.update(fresh)
            work += fresh
        return False

    def _run(self, node: fx.Node, prepare: Callable[[Tensor], Tensor]) -> Any:
        done: dict[fx.Node, Any] = {}
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [a for a in top.all_input_nodes if a not in done]
            if missing:
                stack.extend(missing)
                continue
            done[stack.pop()] = self._step(top, done, prepare)
        return done[node]

    def _step(self, node: fx.Node, done: dict[fx.Node, Any], prepare: Callable[[Tensor], Tensor]) -> Any:
        if node.op == "get_attr":
            value = attribute(self.root, str(node.target))
            return prepare(value) if isinstance(value, Tensor) else value
        args = fx.node.map_arg(node.args, lambda n: done[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: done[n])
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def attribute(root: nn.Module, path: str) -> Any:
    """`root.a.b.c` by dotted path."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value
