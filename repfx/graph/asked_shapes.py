"""What the readers of a model's argument say about its shape: a convolution asks for a rank and channels.

Looked for behind what keeps both: poolings, paddings, crops, resizings, and what acts number by number.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import fx

from repfx.graph.kept_sizes import keeps
from repfx.graph.kinds import Keeps, OpKind
from repfx.graph.module_traversal import module_at
from repfx.graph.nodes import argument, name_of
from repfx.graph.operation_table import operation_of
from repfx.graph.operations import OpInfo
from repfx.graph.shape_rules import KnownShapes, Shape
from repfx.graph.shapes_of_layers import batch_norm_axes, padded_axes


@dataclass(frozen=True)
class _Step:
    """A value behind the argument that has its rank and channels, if its spatial axes are as many as this."""

    value: fx.Node
    least: int = 0
    exactly: int | None = None

    def allows(self, axes: int) -> bool:
        return axes >= self.least and self.exactly in (None, axes)


def asked_of(node: fx.Node, shapes: KnownShapes) -> Shape:
    """The partial shape that the readers of a value ask for; None where they do not say."""
    steps = list(_behind(node, shapes))
    for find in (_asked_by_layers, _asked_by_chunks):
        for step in steps:
            for shape in find(step.value, shapes):
                if step.allows(len(shape) - 2):
                    return (None, shape[1], *(None,) * (len(shape) - 2))
    return None


def _behind(node: fx.Node, shapes: KnownShapes) -> Iterator[_Step]:
    """The value, and those behind it that have its rank and channels."""
    work = [_Step(node)]
    while work:
        step = work.pop()
        yield step
        onward = [_onward(step, user, shapes) for user in step.value.users]
        work += [found for found in reversed(onward) if found is not None]


def _onward(step: _Step, user: fx.Node, shapes: KnownShapes) -> _Step | None:
    """One step further, if a reader keeps the rank and channels of what it reads first."""
    info = operation_of(user, shapes.root)
    if info is None or argument(user, 0, "input") is not step.value or not _keeps_channels(user, info, shapes):
        return None
    if info.kind is OpKind.PADDING:
        axes = padded_axes(user, shapes)
        return None if axes is None else _Step(user, max(step.least, axes), step.exactly)
    if info.kind is OpKind.POOLING and info.axes is not None:  # over more axes it would pool channels, too
        return None if not step.allows(info.axes) else replace(step, value=user, exactly=info.axes)
    return replace(step, value=user)


def _keeps_channels(user: fx.Node, info: OpInfo, shapes: KnownShapes) -> bool:
    """Whether a reader keeps all but spatial sizes, given that it pads or pools spatial axes only."""
    if info.kind is OpKind.PADDING:
        return info.name == "pad"
    if info.kind is OpKind.ITEM and user.target is operator.getitem:
        return _crops(user.args[1])
    return keeps(user, info) >= Keeps.CHANNELS


def _crops(items: object) -> bool:
    """Whether an index leaves all axes, and axis 1 as it is."""
    if not isinstance(items, tuple) or not all(isinstance(item, slice) for item in items):
        return False
    return items[1:2] == (slice(None),)


def _asked_by_layers(node: fx.Node, shapes: KnownShapes) -> Iterator[tuple[int | None, ...]]:
    """What convolutions and batch norms ask of the value that they read."""
    for user in node.users:
        info = operation_of(user, shapes.root)
        if info is None or user.args[:1] != (node,):
            continue
        module = module_at(shapes.root, str(user.target)) if user.op == "call_module" else None
        norm_axes = batch_norm_axes(module)
        if norm_axes is not None:
            yield (None, int(module.num_features), *(None,) * norm_axes)  # type: ignore[union-attr, arg-type]
        elif info.kind is OpKind.CONVOLUTION and info.axes is not None:
            channels = _channels_of_kernel(user, shapes) if module is None else int(module.in_channels)  # type: ignore[arg-type]
            if channels is not None:
                yield (None, channels, *(None,) * info.axes)


def _channels_of_kernel(conv: fx.Node, shapes: KnownShapes) -> int | None:
    """How many channels a functional convolution reads."""
    weight, groups = argument(conv, 1, "weight"), argument(conv, 6, "groups", 1)
    shape = shapes.constant(weight) if isinstance(weight, fx.Node) else None
    return shape[1] * groups if shape is not None and isinstance(groups, int) else None


def _asked_by_chunks(node: fx.Node, shapes: KnownShapes) -> Iterator[tuple[int | None, ...]]:
    """chunk(x, n, 1) of which the last part and another feed convolutions of q channels: x has n q."""
    for user in node.users:
        count = argument(user, 1, "chunks")
        if name_of(user) != "chunk" or argument(user, 2, "dim", 0) != 1 or not isinstance(count, int):
            continue
        asked = dict(_asked_of_parts(user, shapes))
        sizes = {shape[1] for shape in asked.values()}
        last = asked.get(count - 1)
        if last is not None and last[1] is not None and len(asked) > 1 and len(sizes) == 1:
            yield (None, last[1] * count, *(None,) * (len(last) - 2))


def _asked_of_parts(chunk: fx.Node, shapes: KnownShapes) -> Iterator[tuple[int, tuple[int | None, ...]]]:
    for part in chunk.users:
        if part.target is operator.getitem and isinstance(part.args[1], int):
            shape = asked_of(part, shapes)
            if shape is not None and shape[1] is not None:
                yield part.args[1], shape
