"""What `explain` announces is what `reparameterize` builds: the same operations, parameters and merges."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

import repfx
from benchmarks.sweep_subjects import NotInstalledError, Subject, build, inputs, subjects
from repfx.verification import count_graph
from tests import hostile
from tests.blocks import REGISTRY
from tests.check import OBJECTIVES

SMALL = (
    Subject("timm", "efficientvit_m0", "efficientvit_msra", 224),  # islands whose parts are compiled in place
    Subject("timm", "repvit_m0_9", "repvit", 64),
    Subject("timm", "mobilevit_xxs", "mobilevit", 64),  # multiplies sizes, which are no tensors
    Subject("timm", "test_resnet", "resnet", 64),
    Subject("timm", "test_vit", "vision_transformer", 160),
    Subject("features", "mobilenetv3_small_050", "features", 64),
    Subject("segmentation", "lraspp_mobilenet_v3_large", "segmentation", 65),
)


KINDS = ("convolutions", "batch_norms", "border_terms")


def compare(model: nn.Module, example: tuple[torch.Tensor, ...] | None, objective: str) -> None:
    """Without an example all counts are equal.

    With one, the built network is counted by running it, where torch executes some functions (a normalisation of
    vectors) as several, and some products as linears; then its graph has all the counts, and what is executed those
    of convolutions and batch norms.  A module whose own code stays may call a part several times (a detector its head,
    at every level): the plan counts that part once.
    """
    plan = repfx.explain(model, example, objective=objective)
    fused = repfx.reparameterize(model, example, objective=objective, verify=False)
    built = repfx.report(fused)
    if example is None:
        assert plan.before == replace(built.before, macs=None, others=0)
        assert plan.after == replace(built.after, macs=None, others=0)
    for planned, counted in ((plan.before, built.before), (plan.after, built.after)):
        assert planned.parameters == counted.parameters
        for kind in KINDS:
            expected, found = getattr(planned, kind), getattr(counted, kind)
            assert found == expected or (plan.islands and example is not None and found > expected > 0), kind
    if isinstance(fused, fx.GraphModule) and not plan.islands:
        assert plan.after == count_graph(fused.graph, fused)
    assert [(m.path, m.rule, m.before, m.after) for m in plan.merges] == [
        (m.path, m.rule, m.before, m.after) for m in built.merges
    ]
    assert plan.islands == built.islands


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
