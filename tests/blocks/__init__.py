"""The corpus: published multi-branch blocks in their training form, written here from their papers.

No block has a `fuse()`.  Each entry says which operations a forward cannot do without once everything
affine has been merged, and why; `tests/test_blocks.py` holds the compiler to it.
"""

from __future__ import annotations

from tests.blocks import (
    acnet,
    convnext,
    dbb,
    ecbsr,
    efficientvim,
    fasternet,
    fastvit,
    ghostnetv3,
    inceptionnext,
    levit,
    mixconv,
    mobileone,
    orepa,
    perhead,
    qarepvgg,
    repghost,
    replknet,
    repnext,
    repvgg,
    repvit,
    res2net,
    shufflenet,
    starnet,
    unireplknet,
    yolo,
)
from tests.blocks.entry import Entry, Need

FAMILIES = (
    repvgg,
    acnet,
    dbb,
    mobileone,
    replknet,
    unireplknet,
    repvit,
    fastvit,
    repghost,
    ghostnetv3,
    qarepvgg,
    orepa,
    ecbsr,
    yolo,
    inceptionnext,
    mixconv,
    starnet,
    levit,
    perhead,
    efficientvim,
    convnext,
    repnext,
    res2net,
    shufflenet,
    fasternet,
)

REGISTRY: dict[str, Entry] = {entry.name: entry for family in FAMILIES for entry in family.ENTRIES}

__all__ = ["FAMILIES", "REGISTRY", "Entry", "Need"]
