"""What a lifting rule may look at: modules, partial shapes, constants, the place of a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.constants import Constants
from repfx.decline import Decline, Reason
from repfx.modules import module_at
from repfx.ops import Opaque
from repfx.shapes import Shapes
from repfx.sizes import size_read
from repfx.walking import modules_of, tensors_of


@dataclass
class Context:
    """Everything known about one captured graph before any rewriting."""

    root: nn.Module
    constants: Constants
    shapes: Shapes
    whole: set[str] = field(default_factory=set)  # islands and excluded modules: never lifted
    sure: Shapes | None = None  # sizes that hold for every input, where `shapes` knows an example's
    structure: Shapes = field(init=False)  # what holds for every input: no example has a say

    def __post_init__(self) -> None:
        self.structure = Shapes(self.root, self.constants.shape)

    @cached_property
    def home(self) -> torch.dtype | None:
        """The dtype of most parameters; None where there is only one, or none, and it is no question."""
        dtypes = {tensor.dtype for tensor in tensors_of(modules_of(self.root))}
        if len([dtype for dtype in dtypes if dtype.is_floating_point]) < 2 and not any(d.is_complex for d in dtypes):
            return None
        sizes: Counter[torch.dtype] = Counter()
        for tensor in (*self.root.parameters(), *self.root.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                sizes[tensor.dtype] += tensor.numel()
        return sizes.most_common(1)[0][0]

    def foreign(self, node: fx.Node) -> torch.dtype | None:
        """A dtype of this node's own tensors that no fold may mix with the network's, if there is one.

        Tensors without axes promote nothing.
        """
        if self.home is None:
            return None
        own: list[Tensor | None] = [self.constants.meta(n) for n in node.all_input_nodes]
        if node.op == "call_module":
            module = self.module(node)
            own += [*module.parameters(), *module.buffers()]
        for tensor in own:
            if tensor is None or tensor.dim() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            if tensor.is_complex() or tensor.dtype != self.home:
                return tensor.dtype
        return None

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a call_module node calls."""
        return module_at(self.root, str(node.target))

    def recomputed(self, module: nn.Module, but: str = "") -> str:
        """A tensor that a hook of the older weight_norm or spectral_norm recomputes before every call, or ""."""
        if not module._forward_pre_hooks:
            return ""
        names = (
            str(getattr(hook, "name", ""))
            for hook in module._forward_pre_hooks.values()
            if hasattr(hook, "compute_weight")
        )
        return next((name for name in names if name != but), "")

    def declined(self, node: fx.Node, fact: str, remedy: str = "", reason: Reason = Reason.NOT_EXACT) -> Opaque:
        """An opaque node that says why."""
        return Opaque(Decline(reason, fact, place_of(node), remedy, rule="lifting"))

    def number(self, value: object) -> int | None:
        """A whole number, or a size that structure tells: `groups=x.shape[1]`."""
        if isinstance(value, int):
            return value
        read = size_read(value)
        return None if read is None else self.structure.size(*read)

    def tensor(self, value: object) -> Callable[[], Tensor] | None:
        """A lazily evaluated constant: a constant node, or a Python number."""
        if isinstance(value, fx.Node) and self.constants.is_constant(value):
            return lambda: self.constants.value(value)
        if isinstance(value, int | float):
            number = float(value)
            return lambda: torch.tensor(number, dtype=torch.float64)
        return None


def place_of(node: fx.Node) -> str:
    """Where a node stands: its module path, or the name of the function in it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = ""
    if stack:
        last = stack[next(reversed(stack))]
        path = last[0] if isinstance(last, tuple) else str(last)
    return f"{path}:{node.name}" if path else node.name


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def tuple_of(value: object, axes: int) -> tuple[int, ...] | None:
    """`value` as one integer per axis, or None where it is anything else."""
    if isinstance(value, int):
        return (value,) * axes
    if isinstance(value, tuple | list) and all(isinstance(v, int) for v in value):
        items = tuple(int(v) for v in value)
        return items * axes if len(items) == 1 else items if len(items) == axes else None
    return None
