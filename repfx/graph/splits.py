"""The parts of a value: along which axis a chunk or split cuts, and how large its parts are."""

from __future__ import annotations

import itertools
from typing import Any

from torch import fx

from repfx.graph.nodes import argument, name_of

SPLITS = ("chunk", "split", "split_with_sizes", "tensor_split", "hsplit")
_BY_INDICES = ("tensor_split", "hsplit")
_SIZES = {"chunk": "chunks", "split": "split_size_or_sections"}  # what the argument is called
_OTHER_SIZES = ("split_size", "split_sizes")  # the same, as methods call it
_INDICES = ("indices_or_sections", "tensor_indices_or_sections", "indices", "sections")


def split_dim(node: fx.Node, name: str) -> Any:
    """The axis that one of `SPLITS` splits; hsplit, of a value with several axes, axis 1."""
    return 1 if name == "hsplit" else argument(node, 2, "dim", 0)


def part_sizes(node: fx.Node, total: int | None) -> list[int] | None:
    """Sizes of the parts that a chunk or split makes, if known."""
    name = name_of(node)
    if name in _BY_INDICES:
        given = next((node.kwargs[key] for key in _INDICES if key in node.kwargs), None)
        return _sizes_at(node.args[1] if len(node.args) > 1 else given, total)
    wish = _wish(node, name)
    if isinstance(wish, tuple | list) and all(isinstance(s, int) for s in wish):
        return [int(s) for s in wish]
    if total is None or not isinstance(wish, int) or wish <= 0:
        return None
    size = -(-total // wish) if name == "chunk" else wish
    return [min(size, total - start) for start in range(0, total, size)]


def _wish(node: fx.Node, name: str) -> object:
    """How many parts, or of what sizes, as the call says it."""
    wish = argument(node, 1, _SIZES.get(name, "sizes"))
    if wish is not None:
        return wish
    return next((node.kwargs[key] for key in _OTHER_SIZES if key in node.kwargs), None)


def _sizes_at(wish: object, total: int | None) -> list[int] | None:
    """tensor_split: n nearly equal parts, the larger ones first, or parts that end at indices."""
    if total is None:
        return None
    if isinstance(wish, int) and wish > 0:
        return [total // wish + (i < total % wish) for i in range(wish)]
    if not isinstance(wish, tuple | list) or not all(isinstance(i, int) and 0 <= i <= total for i in wish):
        return None
    ends = [0, *(int(i) for i in wish), total]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    return sizes if all(size > 0 for size in sizes) else None
