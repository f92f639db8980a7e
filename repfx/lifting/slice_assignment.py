"""Borders written by slice assignment: pad with zeros, then overwrite the frame with one value per channel.

    y = F.pad(x, (p, p, p, p)); y[:, :, :p] = v; y[:, :, -p:] = v; y[:, :, :, :p] = v; y[:, :, :, -p:] = v

is padding by the constant v (DBB's batch norm padding, ECBSR's bias padding).  Exact when the assigned
slices are exactly the frame and all hold the same constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import fx

from repfx.algebra import AffineConv, constructors
from repfx.decline import Decline, Reason
from repfx.graph import Affine, Context, Op, argument
from repfx.layers import assign


def _assigned(node: fx.Node, context: Context) -> Op | None:
    writes: list[tuple[object, object]] = []
    step: object = node
    while isinstance(step, fx.Node) and step.target is assign:
        writes.append((step.args[1], step.args[2]))
        step = step.args[0]
    padded = _zero_padded(step, context)
    if padded is None:
        return None
    source, before, after = padded
    values = {value for _, value in writes}
    if any(user.target is assign for user in node.users):
        return None  # a step on the way to the whole frame
    constant = values.pop()
    if values:
        return context.declined(node, "writes different values into the frame of a padded image")
    if not isinstance(constant, fx.Node):
        return None
    lazy, shape = context.tensor(constant), context.constants.shape(constant)
    if (
        lazy is None
        or shape is None
        or len(shape) < 2
        or any(s != 1 for i, s in enumerate(reversed(shape)) if i != len(before))
    ):
        return None
    if not _is_frame([index for index, _ in writes], before, after):
        return context.declined(node, "writes into a padded image something else than its whole frame")
    own = shape[-1 - len(before)] if len(shape) > len(before) else 1

    def build(_: int, channels: int | None) -> AffineConv | Decline:
        channels = channels or (own if own > 1 else None)
        if channels is None:
            return Decline(Reason.UNKNOWN_FACT, "its channel count is not known", remedy="pass example_inputs")
        return constructors.pad_values(channels, before, after, lambda: lazy().reshape(-1))

    return Affine(source, len(before), build)


def _zero_padded(node: object, context: Context) -> tuple[fx.Node, list[int], list[int]] | None:
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_module":
        pads: object = getattr(context.module(node), "padding", None)
        if type(context.module(node)).__name__ not in ("ZeroPad1d", "ZeroPad2d", "ZeroPad3d"):
            return None
    elif (
        node.target is F.pad and argument(node, 2, "mode", "constant") == "constant" and not argument(node, 3, "value")
    ):
        pads = argument(node, 1, "pad")
    else:
        return None
    source = node.args[0]
    if (
        not isinstance(pads, tuple | list)
        or not all(isinstance(p, int) for p in pads)
        or not isinstance(source, fx.Node)
    ):
        return None
    return source, list(reversed(pads[0::2])), list(reversed(pads[1::2]))


def _is_frame(indices: list[object], before: list[int], after: list[int]) -> bool:
    """Whether the assigned slices are all sides of the frame, and nothing else."""
    wanted = {(axis, "before") for axis, p in enumerate(before) if p} | {
        (axis, "after") for axis, p in enumerate(after) if p
    }
    found = set()
    for index in indices:
        items = index if isinstance(index, tuple) else (index,)
        used = [(dim, item) for dim, item in enumerate(items) if item != slice(None)]
        if len(used) != 1 or used[0][0] < 2 or not isinstance(used[0][1], slice):
            return False
        axis, item = used[0][0] - 2, used[0][1]
        if axis >= len(before) or item.step not in (None, 1):
            return False
        if item.start in (None, 0) and item.stop == before[axis]:
            found.add((axis, "before"))
        elif item.stop is None and item.start == -after[axis]:
            found.add((axis, "after"))
        else:
            return False
    return found == wanted


FUNCTIONS: dict[Any, Callable[[fx.Node, Context], Op | None]] = {assign: _assigned}
