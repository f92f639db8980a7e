"""Sizes are read as early as they are known: so no read of a size holds on to a value that could go.

    y = norm(x); B, C, H, W = y.shape; z = conv(y); return x + z.view(B, C, H, W)

A normalisation keeps every size, and most layers keep the batch: the sizes of y are read from x, where x
is read elsewhere too (else it may be merged into what makes it).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from repfx.graph import (
    batches,
    is_shape,
    is_size,
    module_at,
    normalised_by,
    of_one_rank_before,
    remove_dead,
    size_read,
)
from repfx.layers import SizeGuard


def read_sizes_early(graph: fx.Graph, root: nn.Module, whole: set[str]) -> None:
    """Let size reads name the earliest value that fits, in place."""
    for node in list(graph.nodes):
        _read_through_norm(node, root, whole)
    for node in list(graph.nodes):
        _read_batch_early(graph, node, root, whole)
    _check_ranks_early(graph, root, whole)
    remove_dead(graph)


def _read_through_norm(node: fx.Node, root: nn.Module, whole: set[str]) -> None:
    """Let the sizes of a normalised value be those of what it normalises."""
    source = normalised_by(node, root, whole)
    if source is None or not _stays(source):
        return
    for user in [user for user in node.users if is_size(user)]:
        user.replace_input_with(node, source)


def _read_batch_early(graph: fx.Graph, node: fx.Node, root: nn.Module, whole: set[str]) -> None:
    """Let a node that reads the batch size read it of the earliest value."""
    read = size_read(node)
    if read is None or read[1] != 0:
        return
    source = _batch(read[0], root, whole)
    if source is read[0]:
        return
    with graph.inserting_before(node):
        early = graph.call_method("size", (source, 0))
    early.meta.update(node.meta)
    node.replace_all_uses_with(early)


def _check_ranks_early(graph: fx.Graph, root: nn.Module, whole: set[str]) -> None:
    """`B, C, H, W = x.shape` checks the number of axes: of the earliest value that has as many, and once."""
    checked: set[tuple[fx.Node, int]] = set()
    for node in list(graph.nodes):
        shape, rank = _checked_rank(node, root)
        if shape is None:
            continue
        value = shape.args[0]
        assert isinstance(value, fx.Node)
        source = next((early for early in reversed(_of_one_rank(value, root, whole)) if _stays(early)), value)
        if (source, rank) in checked:
            graph.erase_node(node)
            continue
        checked.add((source, rank))
        if source is not value:
            with graph.inserting_before(node):
                early = graph.call_function(getattr, (source, "shape"))
            early.meta.update(shape.meta)
            node.args = (early,)


def _checked_rank(node: fx.Node, root: nn.Module) -> tuple[fx.Node | None, int]:
    """The shape whose length a node checks, and that length; no shape where it checks something else."""
    guard = module_at(root, str(node.target)) if node.meta.get("guard") else None
    shape = node.args[0] if node.args else None
    if not isinstance(guard, SizeGuard) or guard.kind != "length":
        return None, 0
    return (shape if isinstance(shape, fx.Node) and is_shape(shape) else None), guard.wanted


def _of_one_rank(value: fx.Node, root: nn.Module, whole: set[str]) -> list[fx.Node]:
    """This value and those before it that have as many axes, the nearest first."""
    found: list[fx.Node] = []
    step: fx.Node | None = value
    while step is not None and step not in found:
        found.append(step)
        step = of_one_rank_before(step, root, whole) or _part_of(step)
    return found


def _part_of(node: fx.Node) -> fx.Node | None:
    """What a concatenation begins with, or what a part was split off."""
    first = node.args[0] if node.args else None
    if node.target in (torch.cat, torch.concat):
        return _node(first[0]) if isinstance(first, list | tuple) else None
    split = _node(first) if node.target is operator.getitem else None
    if split is None or not split.args:
        return None
    name = split.target if isinstance(split.target, str) else getattr(split.target, "__name__", "")
    return _node(split.args[0]) if name in ("chunk", "split", "tensor_split") else None


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _batch(value: fx.Node, root: nn.Module, whole: set[str]) -> fx.Node:
    """The earliest value of this batch size that stays in any case."""
    return next((early for early in reversed(batches(value, root, whole)) if _stays(early)), value)


def _stays(value: fx.Node) -> bool:
    """Whether a value is an input, or read at several places."""
    return value.op == "placeholder" or len([user for user in value.users if not is_size(user)]) > 1
