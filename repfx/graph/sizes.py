"""What a number read from a shape is, and which earlier values have the same sizes."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from repfx.graph.module_traversal import module_at

NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
NORM_FUNCTIONS = (F.batch_norm, F.layer_norm, F.group_norm, F.rms_norm, torch.layer_norm)
BATCHED = (
    *NORMS, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6,
    nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.PReLU, nn.AvgPool2d, nn.MaxPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
_TAKES_BATCHES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CHANGES_CHANNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCHED_FUNCTIONS = (*NORM_FUNCTIONS, F.relu, F.gelu, F.silu, torch.relu, torch.sigmoid, F.adaptive_avg_pool2d)


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
    while (earlier := before(out[-1], root, whole, BATCHED, BATCHED_FUNCTIONS)) is not None:
        kind = type(module_at(root, str(out[-1].target))) if out[-1].op == "call_module" else None
        proved |= kind in _TAKES_BATCHES
        unsure = unsure or (len(out) if kind in _CHANGES_CHANNELS else 0)
        out.append(earlier)
    return out if proved or not unsure else out[:unsure]


def before(
    node: fx.Node, root: nn.Module, whole: set[str], kinds: tuple[type, ...], functions: tuple[object, ...]
) -> fx.Node | None:
    """What a layer of these kinds reads, if the node is one."""
    if node.op == "call_module":
        known = str(node.target) not in whole and type(module_at(root, str(node.target))) in kinds
    else:
        known = node.op == "call_function" and node.target in functions
    source = node.args[0] if known and node.args else None
    return source if isinstance(source, fx.Node) else None


def is_size(node: fx.Node) -> bool:
    """Whether a value is a number read from a shape, or computed from such numbers."""
    work, seen = [node], {node}
    while work:
        step = work.pop()
        own = _is_measured(step)
        if own is False:
            return False
        if own is None:
            fresh = [given for given in step.all_input_nodes if given not in seen]
            seen.update(fresh)
            work += fresh
    return True


def _is_measured(node: fx.Node) -> bool | None:
    """Whether a node reads a number from a shape; None where that is so if it is of all that it is computed from."""
    if node.op == "call_method":
        return str(node.target) in ("size", "dim", "numel", "ndimension", "__len__")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    arithmetic = getattr(node.target, "__module__", "") in (
        "_operator",
        "math",
        "builtins",
    )  # h // 2, ceil(h), max(h, w)
    return None if arithmetic and node.all_input_nodes else False


def arithmetic(target: object, a: int, b: int) -> int | None:
    if target is operator.mul:
        return a * b
    if target is operator.floordiv:
        return a // b if b else None
    if target is operator.add:
        return a + b
    return a - b if target is operator.sub else None
