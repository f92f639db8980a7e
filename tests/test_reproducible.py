"""Compiling twice gives the same to the bit: graph, numbers, record; in one process and in others."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import repfx
from repfx.io import build_model

ROOT = Path(__file__).parent.parent
MODELS = ("repnext_m0", "timm:repghostnet_050", "timm:test_efficientnet")


def digest(name: str, example: bool) -> str:
    """Everything that compiling makes, but for times."""
    torch.manual_seed(0)
    model: nn.Module = build_model(name).module.eval()
    repfx.randomize_statistics(model)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    fused = repfx.reparameterize(model, (x,) if example else None)
    report = repfx.report(fused)
    parts = [str(fused.code), repr(report.merges), repr(report.declines), repr(report.equivalence), repr(report.after)]
    found = hashlib.sha256("".join(parts).encode())
    for key, value in fused.state_dict().items():
        found.update(key.encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def elsewhere(name: str, example: bool, seed: str) -> str:
    """The same in a process of its own, where sets and addresses are other ones."""
    code = f"from tests.test_reproducible import digest; print(digest({name!r}, {example}))"
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
@pytest.mark.parametrize("name", MODELS)
def test_twice_in_one_process(name: str, example: bool) -> None:
    assert digest(name, example) == digest(name, example)


def test_in_processes_of_their_own() -> None:
    assert len({elsewhere(MODELS[0], example=False, seed=seed) for seed in ("1", "2")}) == 1
