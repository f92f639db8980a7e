"""The parts of a value: along which axis a chunk or split cuts, and how large its parts are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import fx

from repfx.graph.nodes import argument, name_of

SPLITS = ("chunk", "split", "split_with_sizes", "tensor_split", "hsplit")
_BY_INDICES = ("tensor_split", "hsplit")
_SIZES = ("chunks", "split_size_or_sections", "split_size", "split_sizes", "sizes")  # what the argument is called
_INDICES = ("indices_or_sections", "tensor_indices_or_sections", "indices", "sections")


def split_dim(node: fx.Node, name: str) -> Any:
    """The axis that one of `SPLITS` splits; hsplit, of a value with several axes, axis 1."""
    return 1 if name == "hsplit" else argument(node, 2, "dim", 0)


def part_sizes(node: fx.Node, total: int | None) -> list[int] | None:
    """Sizes of the parts that a chunk or split makes, if known."""
    name = name_of(node)
    names = _INDICES if name in _BY_INDICES else _SIZES
    named = next((node.kwargs[key] for key in names if key in node.kwargs), None)
    wish = node.args[1] if len(node.args) > 1 else named
    if name in _BY_INDICES:
        return None if total is None else _sizes_at(wish, total)
    if _are_numbers(wish):
        return list(wish)
    if total is None or not isinstance(wish, int) or wish <= 0:
        return None
    size = -(-total // wish) if name == "chunk" else wish
    return [min(size, total - start) for start in range(0, total, size)]


def _sizes_at(wish: object, total: int) -> list[int] | None:
    """tensor_split: n nearly equal parts, the larger ones first, or parts that end at indices."""
    if isinstance(wish, int) and wish > 0:
        small, larger = divmod(total, wish)
        return [small + 1] * larger + [small] * (wish - larger)
    if not _are_numbers(wish):
        return None
    ends = [0, *wish, total]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    return sizes if min(ends) == 0 and min(sizes) > 0 else None


def _are_numbers(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, tuple | list) and all(isinstance(item, int) for item in value)
