"""Sizes are read as early as they are known: so no read of a size holds on to a value that could go.

    y = norm(x); B, C, H, W = y.shape; z = conv(y); return x + z.view(B, C, H, W)

A normalisation keeps every size, and most layers keep the batch: the sizes of y are read from x, where x
is read elsewhere too (else it may be merged into what makes it).
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from repfx.dead import remove_dead
from repfx.inplace import is_size
from repfx.modules import SizeGuard, module_at

_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
_NORM_FUNCTIONS = (F.batch_norm, F.layer_norm, F.group_norm, F.rms_norm, torch.layer_norm)
_BATCHED = (
    *_NORMS, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6,
    nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.PReLU, nn.AvgPool2d, nn.MaxPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
_TAKES_BATCHES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CHANGES_CHANNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_BATCHED_FUNCTIONS = (*_NORM_FUNCTIONS, F.relu, F.gelu, F.silu, torch.relu, torch.sigmoid, F.adaptive_avg_pool2d)


def size_read(size: object) -> tuple[fx.Node, int] | None:
    """(value, axis) of `value.shape[axis]`, `value.size(axis)` or an unpacked shape."""
    if not isinstance(size, fx.Node):
        return None
    if size.op == "call_method" and size.target == "size" and len(size.args) == 2:
        value, axis = size.args
        return (value, axis) if isinstance(value, fx.Node) and isinstance(axis, int) else None
    if size.target is operator.getitem and isinstance(size.args[0], fx.Node) and isinstance(size.args[1], int):
        shape = size.args[0]
        reads = (shape.target is getattr and shape.args[1] == "shape") or (
            shape.target == "size" and len(shape.args) == 1
        )
        if reads and isinstance(shape.args[0], fx.Node):
            return shape.args[0], size.args[1]
    return None


def read_sizes_early(graph: fx.Graph, root: nn.Module, whole: set[str]) -> None:
    """Let size reads name the earliest value that fits, in place."""
    for node in list(graph.nodes):
        source = _before(node, root, whole, _NORMS, _NORM_FUNCTIONS)
        if source is not None and _stays(source):
            for user in [user for user in node.users if is_size(user)]:
                user.replace_input_with(node, source)
    for node in list(graph.nodes):
        read = size_read(node)
        if read is not None and read[1] == 0:
            source = _batch(read[0], root, whole)
            if source is not read[0]:
                with graph.inserting_before(node):
                    early = graph.call_method("size", (source, 0))
                early.meta.update(node.meta)
                node.replace_all_uses_with(early)
    _check_ranks_early(graph, root, whole)
    remove_dead(graph)


def _check_ranks_early(graph: fx.Graph, root: nn.Module, whole: set[str]) -> None:
    """`B, C, H, W = x.shape` checks the number of axes: of the earliest value that has as many, and once."""
    checked: set[tuple[fx.Node, int]] = set()
    for node in list(graph.nodes):
        guard = module_at(root, str(node.target)) if node.meta.get("guard") else None
        shape = node.args[0] if node.args else None
        if not isinstance(guard, SizeGuard) or guard.kind != "length" or not isinstance(shape, fx.Node):
            continue
        if not is_shape(shape):
            continue
        value = shape.args[0]
        assert isinstance(value, fx.Node)
        source = next((early for early in reversed(_of_one_rank(value, root, whole)) if _stays(early)), value)
        if (source, guard.wanted) in checked:
            graph.erase_node(node)
            continue
        checked.add((source, guard.wanted))
        if source is not value:
            with graph.inserting_before(node):
                early = graph.call_function(getattr, (source, "shape"))
            early.meta.update(shape.meta)
            node.args = (early,)


def _of_one_rank(value: fx.Node, root: nn.Module, whole: set[str]) -> list[fx.Node]:
    """This value and those before it that have as many axes, the nearest first."""
    found: list[fx.Node] = []
    step: fx.Node | None = value
    while step is not None and step not in found:
        found.append(step)
        step = _before(step, root, whole, _BATCHED, _BATCHED_FUNCTIONS) or _part_of(step)
    return found


def _part_of(node: fx.Node) -> fx.Node | None:
    """What a concatenation begins with, or what a part was split off."""
    if node.target in (torch.cat, torch.concat) and node.args:
        parts = node.args[0]
        return parts[0] if isinstance(parts, list | tuple) and isinstance(parts[0], fx.Node) else None
    split = node.args[0] if node.target is operator.getitem else None
    if not isinstance(split, fx.Node):
        return None
    name = split.target if isinstance(split.target, str) else getattr(split.target, "__name__", "")
    source = split.args[0] if name in ("chunk", "split", "tensor_split") and split.args else None
    return source if isinstance(source, fx.Node) else None


def is_shape(node: fx.Node) -> bool:
    """Whether a node is `x.shape` or `x.size()`."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and bool(node.args[1] == "shape")


def batches(node: fx.Node, root: nn.Module, whole: set[str]) -> list[fx.Node]:
    """This value and those before it that certainly have the same batch size, the nearest first.

    Axis 0 of a convolution or Linear is the batch if there is one.  A batch norm among them says so.
    """
    out, unsure, proved = [node], 0, False
    while (before := _before(out[-1], root, whole, _BATCHED, _BATCHED_FUNCTIONS)) is not None:
        kind = type(module_at(root, str(out[-1].target))) if out[-1].op == "call_module" else None
        proved |= kind in _TAKES_BATCHES
        unsure = unsure or (len(out) if kind in _CHANGES_CHANNELS else 0)
        out.append(before)
    return out if proved or not unsure else out[:unsure]


def _batch(value: fx.Node, root: nn.Module, whole: set[str]) -> fx.Node:
    """The earliest value of this batch size that stays in any case."""
    return next((early for early in reversed(batches(value, root, whole)) if _stays(early)), value)


def _stays(value: fx.Node) -> bool:
    """Whether a value is an input, or read at several places."""
    return value.op == "placeholder" or len([user for user in value.users if not is_size(user)]) > 1


def _before(
    node: fx.Node, root: nn.Module, whole: set[str], kinds: tuple[type, ...], functions: tuple[object, ...]
) -> fx.Node | None:
    """What a layer of these kinds reads, if the node is one."""
    if node.op == "call_module":
        known = str(node.target) not in whole and type(module_at(root, str(node.target))) in kinds
    else:
        known = node.op == "call_function" and node.target in functions
    source = node.args[0] if known and node.args else None
    return source if isinstance(source, fx.Node) else None
