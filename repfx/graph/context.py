"""What a lifting rule may look at: modules, partial shapes, constants, the place of a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from repfx.decline import Decline, Reason
from repfx.graph.constants import Constants
from repfx.graph.module_traversal import module_at, modules_of, tensors_of
from repfx.graph.nodes import name_of, place_of
from repfx.graph.operation_table import OPERATIONS
from repfx.graph.ops import Opaque
from repfx.graph.shapes import Shapes
from repfx.graph.sizes import size_read


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

    def note_shape(self, node: fx.Node) -> None:
        """Learn what holds of a node for every input, while it stands as the user wrote it."""
        if self.sure is not None:
            self.sure.of(node)

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
        own = [meta for given in node.all_input_nodes if (meta := self.constants.meta(given)) is not None]
        if node.op == "call_module":
            module = self.module(node)
            own += [*module.parameters(), *module.buffers()]
        dtypes = (tensor.dtype for tensor in own if tensor.dim() > 0)
        return next((d for d in dtypes if d.is_complex or (d.is_floating_point and d != self.home)), None)

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


def context_of(graph: fx.Graph, root: nn.Module, whole: set[str], shapes: Mapping[str, tuple[int, ...]]) -> Context:
    """What is known of a captured graph; `shapes` are those of an example's values, by node name.

    The batch is not believed to an example, and of the other sizes only the ranks and an image's channels hold
    for every input.
    """
    constants = Constants(root)
    context = Context(root, constants, Shapes(root, constants.shape), whole)
    if shapes:
        ranks = {node: len(shapes[node.name]) for node in graph.nodes if node.name in shapes}
        context.sure = Shapes(root, constants.shape, ranks)
    for node in graph.nodes:
        if node.name in shapes:
            known = shapes[node.name]
            context.shapes.set(node, (None, *known[1:]) if known else known)
            if is_image(node, known) and context.sure is not None:
                context.sure.set(node, (None, known[1], *(None,) * (len(known) - 2)))
    return context


def is_image(node: fx.Node, shape: Sequence[int]) -> bool:
    """Whether axis 1 of an argument of this shape holds channels: nothing that reads it moves its axes first."""
    return node.op == "placeholder" and len(shape) >= 4 and not any(_moves_axes(user) for user in node.users)


def _moves_axes(node: fx.Node) -> bool:
    name = str(node.args[1]) if node.target is getattr else name_of(node)  # x.mT, x.permute(...)
    info = OPERATIONS.named(name)
    return info is not None and info.moves_axes
