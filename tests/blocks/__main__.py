"""The corpus as a page: operations executed before, after, and in the best case.

python -m tests.blocks > docs/corpus.md
"""

from __future__ import annotations

from dataclasses import fields

import torch

import repfx
from repfx.reporting import OpCounts
from repfx.verification import count_operations
from tests import hostile
from tests.blocks import REGISTRY, Entry

KINDS = [f.name for f in fields(OpCounts) if f.name not in ("others", "parameters", "macs")]


def words(counts: dict[str, int], kinds: list[str]) -> str:
    """Counts that are not zero, in words."""
    found = [(counts[k], k.replace("_", " ")) for k in kinds if counts.get(k)]
    return ", ".join(f"{n} {kind.removesuffix('s') if n == 1 else kind}" for n, kind in found) or "nothing"


def row(entry: Entry, old: OpCounts, new: OpCounts) -> str:
    """One line of the table, from what one forward executes before and after."""
    kinds = [kind for kind in KINDS if kind not in entry.open_kinds]
    best = {kind: need.count for kind, need in entry.best.items()}
    why = "; ".join(need.because for need in entry.best.values())
    if entry.gap:
        why += f". Not reached: {entry.gap}"
    found = words(vars(old), kinds), words(vars(new), kinds), words(best, kinds)
    return f"| {entry.name} | {entry.paper} | {' | '.join(found)} | {why} |"


def measured(entry: Entry) -> str:
    """The line of one block, compiled now."""
    original = hostile.prepared(entry.factory(), seed=0)
    x = torch.randn(entry.shape, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,))
    return row(entry, count_operations(original, (x,)), count_operations(fused, (x,)))


HEAD = """# Published blocks

Written by `python -m tests.blocks > docs/corpus.md`; `tests/test_blocks.py` compares every line with what it counts.

Each block stands in its multi-branch training form, written in `tests/blocks/` from its paper's description and
without a `fuse()`. Counted are the operations that one forward executes, before and after compiling with the
single-branch objective, and the fewest that any exactly equal network of these operations could do with, and why.
Layout and elementwise operations whose count is a matter of spelling are left out where they are none of the point.
Under "macs" no block keeps a batch norm, and none grows in multiply-accumulates or parameters.

| block | paper | before | compiled | best possible | why no fewer |
| --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    """Print the page."""
    print(HEAD)
    for entry in REGISTRY.values():
        print(measured(entry))


if __name__ == "__main__":
    main()
