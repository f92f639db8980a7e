"""The corpus as a Markdown table: operations executed before, after, and in the best case.

python -m tests.blocks > docs/corpus.md
"""

from __future__ import annotations

from dataclasses import fields

import torch

import repfx
from repfx.cost import count_operations
from repfx.report import OpCounts
from tests import hostile
from tests.blocks import REGISTRY, Entry

KINDS = [f.name for f in fields(OpCounts) if f.name not in ("others", "parameters", "macs")]


def words(counts: dict[str, int], kinds: list[str]) -> str:
    """Counts that are not zero, in words."""
    return ", ".join(f"{counts[k]} {k.replace('_', ' ')}" for k in kinds if counts.get(k)) or "nothing"


def row(entry: Entry) -> str:
    """One line of the table."""
    original = hostile.prepared(entry.factory(), seed=0)
    x = torch.randn(entry.shape, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,))
    kinds = [kind for kind in KINDS if kind not in entry.open_kinds]
    old, new = (vars(count_operations(model, (x,))) for model in (original, fused))
    best = {kind: need.count for kind, need in entry.best.items()}
    why = "; ".join(need.because for need in entry.best.values())
    if entry.gap:
        why += f". Not reached: {entry.gap}"
    return (
        f"| {entry.name} | {entry.paper} | {words(old, kinds)} | {words(new, kinds)} | {words(best, kinds)} | {why} |"
    )


def main() -> None:
    """Print the table."""
    print("| block | paper | before | compiled | best possible | why no fewer |")
    print("| --- | --- | --- | --- | --- | --- |")
    for entry in REGISTRY.values():
        print(row(entry))


if __name__ == "__main__":
    main()
