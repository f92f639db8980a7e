"""A representative part of the sweep on every commit; all of it is `python -m benchmarks.sweep`.

Each network goes through the compiler without example inputs and, where that may help, with them: no
exception, the same outputs in float64, the same signature, the original untouched, and nothing executed
that the network, or timm's own fuse of it, does not execute.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import repfx
from benchmarks import sweep_examine, sweep_table
from benchmarks.sweep_examine import Row, examine
from benchmarks.sweep_subjects import TABLE, Subject, build, chosen, inputs, own_modules, subjects
from benchmarks.sweep_worker import Worker
from repfx.reporting import OpCounts
from repfx.verification import count_operations

SMALL = (
    Subject("timm", "repvgg_a0", "byobnet", 64),
    Subject("timm", "mobileone_s0", "fastvit", 64),
    Subject("timm", "repghostnet_050", "repghost", 64),
    Subject("timm", "lcnet_035", "mobilenetv3", 64),
    Subject("timm", "starnet_s050", "starnet", 64),
    Subject("timm", "test_resnet", "resnet", 64),
    Subject("timm", "test_convnext", "convnext", 64),
    Subject("timm", "test_vit", "vision_transformer", 160),
    Subject("timm", "mobilevit_xxs", "mobilevit", 64),
    Subject("timm", "edgenext_xx_small", "edgenext", 64),
    Subject("timm", "levit_128s", "levit", 64, resized=True),
    Subject("features", "mobilenetv3_small_050", "features", 64),
    Subject("segmentation", "lraspp_mobilenet_v3_large", "segmentation", 65),
)


def _costs(counts: OpCounts) -> dict[str, int]:
    kinds = ("convolutions", "linears", "batch_norms", "muls")
    return {kind: getattr(counts, kind) for kind in kinds} | {"macs": counts.macs or 0}


def _hold(row: Row) -> None:
    assert row.status == "ok", row.message
    assert row.signature, "the forward's parameters differ"
    assert row.untouched, "the original was changed"
    assert row.error is not None
    excused = row.rounding is not None and row.error <= min(10 * row.rounding, sweep_examine.CHAOS)
    assert row.error <= sweep_examine.BOUND or excused, "and one rounding of the input does not explain it"
    for theirs in (row.before, row.own):
        if theirs is None:
            continue
        more = {k: (a, b) for (k, a), b in zip(_costs(theirs).items(), _costs(row.best).values()) if b > a}
        assert not more or set(more) == {"macs"}, more


@pytest.mark.parametrize("subject", SMALL, ids=lambda s: s.spec)
def test_goes_through_and_executes_no_more(subject: Subject) -> None:
    _hold(examine(subject))


@pytest.mark.slow
@pytest.mark.parametrize("subject", subjects(), ids=lambda s: s.spec)
def test_every_family(subject: Subject) -> None:
    row = examine(subject)
    if row.status == "skipped":
        pytest.skip(row.message)  # of a package that is not installed
    _hold(row)


def test_a_second_call_changes_nothing() -> None:
    subject = SMALL[0]
    once = repfx.reparameterize(build(subject), verify=False)
    twice = repfx.reparameterize(once, verify=False)
    probe = inputs(subject, 64, 64)
    assert count_operations(twice, probe) == count_operations(once, probe)


# --- the sweep itself -----------------------------------------------------------------------------


def test_the_table_has_one_variant_of_every_module_of_timm() -> None:
    timm = pytest.importorskip("timm")
    if timm.__version__ != "1.0.31":
        pytest.skip(f"sweep_models.json was written for timm 1.0.31, this is {timm.__version__}")
    assert list(json.loads(TABLE.read_text())) == own_modules()


def test_globs_choose_models_and_families() -> None:
    assert [s.family for s in chosen(families="levit")] == ["levit"]
    assert {s.group for s in chosen(families="detection")} == {"detection"}
    assert [s.name for s in chosen("timm:fastvit_t12")] == ["fastvit_t12"]
    assert chosen("nothing_is_called_so") == []


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_wrong_fold_is_reported(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    honest = repfx.reparameterize

    def perturbed(model: nn.Module, *args: object, **options: object) -> nn.Module:
        fused = honest(model, *args, **options)  # type: ignore[arg-type]
        bias = next(p for n, p in fused.named_parameters() if n.endswith("bias"))
        with torch.no_grad():
            bias.mul_(factor)
        return fused

    monkeypatch.setattr(sweep_examine.repfx, "reparameterize", perturbed)  # type: ignore[attr-defined]
    row = examine(Subject("timm", "test_resnet", "resnet", 64))
    assert row.status == "wrong"
    assert "relative error" in row.message


def test_an_exception_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> nn.Module:
        raise KeyError("a node")

    monkeypatch.setattr(sweep_examine.repfx, "reparameterize", broken)  # type: ignore[attr-defined]
    row = examine(Subject("timm", "test_resnet", "resnet", 64))
    assert (row.status, row.stage) == ("exception", "compile")
    assert "KeyError" in row.message


def test_a_change_of_the_original_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = repfx.reparameterize

    def careless(model: nn.Module, *args: object, **options: object) -> nn.Module:
        with torch.no_grad():
            next(model.parameters()).add_(0)
        return honest(model, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep_examine.repfx, "reparameterize", careless)  # type: ignore[attr-defined]
    row = examine(Subject("timm", "test_resnet", "resnet", 64))
    assert not row.untouched
    assert not row.passed


def test_a_network_that_takes_too_long_is_a_row() -> None:
    worker = Worker(limit_seconds=0.01)
    try:
        row = worker.examine(Subject("timm", "test_resnet", "resnet", 64))
    finally:
        worker.close()
    assert row.status == "time limit"


def test_rows_survive_json_and_show_in_markdown() -> None:
    row = examine(Subject("timm", "starnet_s050", "starnet", 64))
    assert sweep_table.from_json(sweep_table.as_json([row])) == [row]
    page = sweep_table.markdown([row], "The sweep", ["a note"])
    assert "| starnet | starnet_s050 | 64 |" in page
    failed = Row("timm:x", "x", 64, "exception", "compile", "KeyError: a|b\nmore")
    assert "`timm:x`: exception (compile): KeyError: a|b" in sweep_table.markdown([failed], "The sweep", [])
