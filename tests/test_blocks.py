"""The corpus of published blocks: the compiled form is equal, and holds no operation too many."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

import repfx
from repfx.reporting import OpCounts
from repfx.verification import count_operations
from tests import hostile
from tests.blocks import REGISTRY, Entry
from tests.blocks.__main__ import HEAD, row
from tests.check import OBJECTIVES

KINDS = {f.name for f in fields(OpCounts)} - {"others", "parameters", "macs"}
NAMES = sorted(REGISTRY)
PAGE = (Path(__file__).parent.parent / "docs" / "corpus.md").read_text().splitlines()


def test_the_page_holds_the_corpus_and_nothing_else() -> None:
    assert PAGE[: len(HEAD.splitlines())] == HEAD.splitlines()
    assert [line.split(" | ")[0][2:] for line in PAGE[len(HEAD.splitlines()) :]] == list(REGISTRY)


def built(entry: Entry) -> nn.Module:
    return hostile.prepared(entry.factory(), seed=7)


def example(entry: Entry) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(entry.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", NAMES)
def test_equal_at_every_size(name: str, objective: str) -> None:
    entry = REGISTRY[name]
    original = built(entry)
    before = hostile.snapshot(original)
    fused = repfx.reparameterize(original, objective=objective)
    generator = torch.Generator().manual_seed(13)
    tried = hostile.assert_same_everywhere(original, fused, entry.channels, entry.sizes, generator)
    assert tried == len(entry.sizes), "the block refuses one of its own example sizes"
    hostile.assert_untouched(original, before)


@pytest.mark.parametrize("name", NAMES)
def test_operations_left_are_the_best_possible_and_in_the_docs(name: str) -> None:
    entry, original = REGISTRY[name], built(REGISTRY[name])
    fused = repfx.reparameterize(original, (example(entry),))
    counts = count_operations(fused, (example(entry),))
    assert row(entry, count_operations(original, (example(entry),)), counts) in PAGE, "python -m tests.blocks"
    wanted = {kind: need.count for kind, need in entry.best.items()}
    if entry.gap:
        wanted.update(entry.left)
    found = {kind: getattr(counts, kind) for kind in KINDS - entry.open_kinds}
    assert found == {kind: wanted.get(kind, 0) for kind in found}


@pytest.mark.parametrize("name", NAMES)
def test_macs_objective_never_costs_more(name: str) -> None:
    entry = REGISTRY[name]
    original, x = built(entry), example(entry)
    old = count_operations(original, (x,))
    new = count_operations(repfx.reparameterize(original, (x,), objective="macs"), (x,))
    assert new.macs <= old.macs
    assert new.parameters <= old.parameters
    assert new.batch_norms == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_bias_off_by_one_percent_is_noticed(name: str) -> None:
    entry = REGISTRY[name]
    original = built(entry)
    fused = repfx.reparameterize(original)
    biases = [p for n, p in fused.named_parameters() if n.endswith("bias")]
    assert biases
    with torch.no_grad():
        for bias in biases:
            bias.mul_(1.01)
    generator = torch.Generator().manual_seed(13)
    with pytest.raises(AssertionError, match="relative error"):
        hostile.assert_same_everywhere(original, fused, entry.channels, entry.sizes, generator)


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_in_training_form(name: str) -> None:
    entry = REGISTRY[name]
    block = entry.factory()
    assert not any(hasattr(part, "fuse") for part in block.modules())
    assert set(entry.best) <= KINDS
    assert all(need.because for need in entry.best.values())
    assert bool(entry.gap) == bool(entry.left)
