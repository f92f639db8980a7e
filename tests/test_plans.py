"""What `explain` announces is what `reparameterize` builds: the same operations, parameters and merges."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

import repfx
from benchmarks.sweep_subjects import NotInstalledError, Subject, build, inputs, subjects
from repfx.report import OpCounts, Report
from tests import hostile
from tests.blocks import REGISTRY
from tests.check import OBJECTIVES

SMALL = (
    Subject("timm", "efficientvit_m0", "efficientvit_msra", 224),  # islands whose parts are compiled in place
    Subject("timm", "repvit_m0_9", "repvit", 64),
    Subject("timm", "test_resnet", "resnet", 64),
    Subject("timm", "test_vit", "vision_transformer", 160),
    Subject("features", "mobilenetv3_small_050", "features", 64),
    Subject("segmentation", "lraspp_mobilenet_v3_large", "segmentation", 65),
)


def announced(counts: OpCounts, executed: OpCounts, islands: bool) -> bool:
    """Whether counts of a plan are those of a model, which are counted by running it where there is an example."""
    if not islands:
        return counts == replace(executed, macs=None, others=0)
    kinds = ("convolutions", "linears", "batch_norms", "parameters")  # the code of an island is run, and not read
    return all(getattr(counts, kind) == getattr(executed, kind) for kind in kinds)


def assert_announced(plan: Report, built: Report, example: bool) -> None:
    inside = example and bool(plan.islands)
    assert announced(plan.before, built.before, inside)
    assert announced(plan.after, built.after, inside)
    assert [(m.path, m.rule, m.before, m.after) for m in plan.merges] == [
        (m.path, m.rule, m.before, m.after) for m in built.merges
    ]
    assert plan.islands == built.islands


def compare(model: nn.Module, example: tuple[torch.Tensor, ...] | None, objective: str) -> None:
    plan = repfx.explain(model, example, objective=objective)
    built = repfx.report(repfx.reparameterize(model, example, objective=objective, verify=False))
    assert_announced(plan, built, example is not None)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_of_a_block(name: str, objective: str) -> None:
    compare(hostile.prepared(REGISTRY[name].factory(), seed=7), None, objective)


@pytest.mark.parametrize("subject", SMALL, ids=lambda s: s.spec)
def test_of_a_network(subject: Subject) -> None:
    compare(build(subject), None, "single-branch")
    compare(build(subject), inputs(subject, subject.size, subject.size), "macs")


@pytest.mark.slow
@pytest.mark.parametrize("subject", subjects(), ids=lambda s: s.spec)
def test_of_the_sweep(subject: Subject) -> None:
    try:
        model = build(subject)
    except NotInstalledError as error:
        pytest.skip(str(error))  # of a package that is not installed
    for objective in OBJECTIVES:
        compare(model, None, objective)
        gc.collect()
    compare(model, inputs(subject, subject.size, subject.size), "single-branch")
