"""Borders written by slice assignment: pad with zeros, then overwrite the frame with one value per channel.

    y = F.pad(x, (p, p, p, p)); y[:, :, :p] = v; y[:, :, -p:] = v; y[:, :, :, :p] = v; y[:, :, :, -p:] = v

is padding by the constant v (DBB's batch norm padding, ECBSR's bias padding).  Exact when the assigned
slices are exactly the frame and all hold the same constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from repfx.algebra import AffineConv, constructors
from repfx.graph import Affine, Context, Op, argument
from repfx.layers import assign
from repfx.lifting.rules import FunctionRule, OtherCallError, as_items, as_value, as_whole, known, per_channel

_ZERO_PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


@dataclass(frozen=True)
class _Frame:
    """What zero padding puts around an image, per spatial axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def sides(self) -> set[tuple[int, str]]:
        """(axis, side) of every side that is padded."""
        before = {(axis, "before") for axis, pad in enumerate(self.before) if pad}
        after = {(axis, "after") for axis, pad in enumerate(self.after) if pad}
        return before | after

    def side(self, index: object) -> tuple[int, str] | None:
        """The whole side that an index picks of the padded image; None for anything else."""
        found = _one_slice(index)
        if found is None:
            return None
        axis, item = found
        if not 0 <= axis < len(self.before):
            return None
        if item.start in (None, 0) and item.stop == self.before[axis]:
            return axis, "before"
        return (axis, "after") if item.stop is None and item.start == -self.after[axis] else None


def _one_slice(index: object) -> tuple[int, slice] | None:
    """(spatial axis, slice) of an index that takes a stretch along one axis, and all of the others."""
    items = index if isinstance(index, tuple) else (index,)
    used = [(dim, item) for dim, item in enumerate(items) if item != slice(None)]
    match used:
        case [(int(dim), slice(step=None | 1) as item)]:
            return dim - 2, item
    return None


def _assigned(node: fx.Node, context: Context) -> Op | None:
    if any(user.target is assign for user in node.users):
        return None  # a step on the way to the whole frame
    writes = list(_writes(node))
    padded = as_value(writes[-1].args[0])
    source, frame = _zero_padded(padded, context)
    values = {write.args[2] for write in writes}
    if len(values) > 1:
        return context.declined(node, "writes different values into the frame of a padded image")
    constant = as_value(values.pop())
    lazy, shape = known(context.tensor(constant)), known(context.constants.shape(constant))
    axes = len(frame.before)
    own = _channels_held(shape, axes)
    if not _is_frame([write.args[1] for write in writes], frame):
        return context.declined(node, "writes into a padded image something else than its whole frame")

    def padding(_: int, channels: int) -> AffineConv:
        return constructors.pad_values(channels, frame.before, frame.after, lambda: lazy().reshape(-1))

    build = per_channel(padding)
    return Affine(source, axes, lambda wanted, channels: build(wanted, channels or own))


def _writes(node: fx.Node) -> Iterator[fx.Node]:
    """The assignments that end in a value, the last first."""
    step: object = node
    while isinstance(step, fx.Node) and step.target is assign:
        yield step
        step = step.args[0]


def _channels_held(shape: Sequence[int], axes: int) -> int | None:
    """How many channels a constant of this shape has values for; None where one is for all of them."""
    if len(shape) < 2 or any(size != 1 for place, size in enumerate(reversed(shape)) if place != axes):
        raise OtherCallError
    own = shape[-1 - axes] if len(shape) > axes else 1
    return own if own > 1 else None


def _zero_padded(node: fx.Node, context: Context) -> tuple[fx.Node, _Frame]:
    """What is padded with zeros, and by how much."""
    pads = [as_whole(pad) for pad in as_items(_zeros_around(node, context))]
    return as_value(node.args[0]), _Frame(tuple(reversed(pads[0::2])), tuple(reversed(pads[1::2])))


def _zeros_around(node: fx.Node, context: Context) -> object:
    """The padding of a call that pads with zeros."""
    if node.op == "call_module":
        module = context.module(node)
        return getattr(module, "padding", None) if type(module) in _ZERO_PADS else None
    plain = argument(node, 2, "mode", "constant") == "constant" and not argument(node, 3, "value")
    return argument(node, 1, "pad") if node.target is F.pad and plain else None


def _is_frame(indices: Sequence[object], frame: _Frame) -> bool:
    """Whether the assigned slices are all sides of the frame, and nothing else."""
    found = {frame.side(index) for index in indices}
    return found == frame.sides()


FUNCTIONS: dict[Any, FunctionRule] = {assign: _assigned}
