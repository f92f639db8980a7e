"""Targets and objectives of other packages: found by name, shown, used; and one sentence where a package is broken."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import repfx
from repfx import export
from repfx.algebra import Kind
from repfx.cli.app import run
from repfx.cli.current import complete_objective, complete_output
from repfx.errors import UserError
from repfx.export import TARGETS, Job, Option, Target, Written
from repfx.io import load_fused, save_fused
from repfx.rewriting import OBJECTIVES, SINGLE_BRANCH, Candidate, Objective
from tests.outside import TINY_SOURCE, tiny
from tests.test_cli_mistakes import mistake
from tests.test_docs import ROOT, blocks

SIZE = ("--input-size", "3,32,32")
INPUT = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PAGE = ROOT / "docs" / "extending.md"
TARGET_GROUP, OBJECTIVE_GROUP = "repfx.export_targets", "repfx.objectives"

TOY = """
from repfx.export import Option, Target, Written

def write(job):
    lines = [f"{name} {tuple(value.shape)}" for name, value in job.module.state_dict().items()]
    job.path.write_text("\\n".join(lines[: job.options["lines"]]))
    return Written(f"the shapes of {job.model}", {"path": job.path, "lines": len(lines)})

TOY = Target(".toy", "shapes and nothing else", write, "macs", "toys are small", (Option("lines", 99, "how many"),))
FOO = Target(".foo", "misnamed", write)
NUMBER = 3
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path: its entry points by group, and its one module."""
    modules: set[str] = set()

    def put(package: str, entries: Mapping[str, Mapping[str, str]], module: str = "", code: str = "") -> Path:
        site = tmp_path / f"site-{package}"
        metadata = site / f"{package}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [
            line
            for group, points in entries.items()
            for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
        ]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
        if module:
            (site / f"{module}.py").write_text(code)
            modules.add(module)
        monkeypatch.syspath_prepend(str(site))
        return metadata

    yield put
    for module in modules:
        sys.modules.pop(module, None)


# --- targets --------------------------------------------------------------------------------------


def test_a_target_of_another_package_is_one_like_ours(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("toybox", {TARGET_GROUP: {"toy": "toys:TOY"}}, "toys", TOY)
    out = tmp_path / "x.toy"
    assert run(["fuse", TINY_SOURCE, *SIZE, "-o", str(out)]) == 0
    page = capsys.readouterr()
    assert "objective macs: toys are small." in page.out
    assert f"wrote {out}: the shapes of {TINY_SOURCE}" in page.out
    assert "stem.weight (8, 3, 3, 3)" in out.read_text()
    assert run(["fuse", TINY_SOURCE, *SIZE, "--json", "--target-option", "lines=1", "-o", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["output"]["lines"] > 1
    assert len(out.read_text().split("\n")) == 1
    assert run(["fuse", TINY_SOURCE, *SIZE, "--objective", "single-branch", "-o", str(out)]) == 0
    assert "objective single-branch: as asked." in capsys.readouterr().out


def test_help_completion_and_mistakes_name_it(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete_output("net.t") == []
    install("toybox", {TARGET_GROUP: {"toy": "toys:TOY"}}, "toys", TOY)
    assert complete_output("a.b/net.t") == ["a.b/net.toy"]
    assert complete_output("net") == [f"net{e}" for e in (".safetensors", ".pt2", ".onnx", ".mlpackage", ".toy")]
    assert ", .mlpackage, .toy." in mistake(["fuse", TINY_SOURCE, "-o", str(tmp_path / "x.tflite")], capsys)
    assert "toys" not in sys.modules, "a name is enough for all that"
    assert run(["fuse", "--help"]) == 0
    assert ".toy          shapes and nothing else; options lines" in capsys.readouterr().out
    asked = ["fuse", TINY_SOURCE, *SIZE, "-o", str(tmp_path / "x.toy"), "--target-option"]
    assert "takes no option 'line'; did you mean lines?" in mistake([*asked, "line=1"], capsys)
    assert "--lines 'one' is of type str, not int" in mistake([*asked, "lines=one"], capsys)
    assert "write KEY=VALUE" in mistake([*asked, "lines"], capsys)


BROKEN = {
    "no such module": ("toy", "absent:TOY", "toybox: its export target 'toy' cannot be loaded: ModuleNotFoundError"),
    "no such name": ("toy", "toys:TOI", "toybox: its export target 'toy' cannot be loaded: AttributeError"),
    "another type": ("toy", "toys:NUMBER", "toybox: its export target 'toy' is of type int, not Target"),
    "another ending": ("toy", "toys:FOO", "toybox: its export target 'toy' calls itself 'foo'"),
    "no address": ("toy", "!", "toybox: its export target 'toy' cannot be loaded"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_package_is_one_sentence_for_those_who_ask_for_it(
    kind: str, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value, reason = BROKEN[kind]
    install("toybox", {TARGET_GROUP: {name: value}}, "toys", TOY)
    said = mistake(["fuse", TINY_SOURCE, *SIZE, "-o", str(tmp_path / "x.toy")], capsys)
    assert reason in said
    assert "repair or uninstall toybox" in said
    assert run(["fuse", TINY_SOURCE, *SIZE, "--quiet", "-o", str(tmp_path / "x.safetensors")]) == 0
    assert run(["fuse", "--help"]) == 0
    assert "toybox: its export target" in " ".join(capsys.readouterr().out.split())


def test_code_that_leaves_the_program_is_one_sentence_too(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("toybox", {TARGET_GROUP: {"toy": "toys:TOY"}}, "toys", "raise SystemExit('not today')")
    said = mistake(["fuse", TINY_SOURCE, *SIZE, "-o", str(tmp_path / "x.toy")], capsys)
    assert "cannot be loaded: SystemExit: not today" in said


def test_two_packages_with_one_name_are_both_named(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("toybox", "toyshop"):
        install(package, {TARGET_GROUP: {"toy": "toys:TOY"}}, "toys", TOY)
    said = mistake(["fuse", TINY_SOURCE, *SIZE, "-o", str(tmp_path / "x.toy")], capsys)
    assert "export target 'toy' is offered by toyshop and toybox; uninstall one of them." in said


def test_metadata_that_cannot_be_read_names_its_package(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = install("toybox", {TARGET_GROUP: {"toy": "toys:TOY"}}, "toys", TOY)
    (metadata / "entry_points.txt").write_text(f"[{TARGET_GROUP}]\nno equals sign\n")
    assert "toybox: its entry points cannot be read" in mistake(
        ["fuse", TINY_SOURCE, *SIZE, "-o", str(tmp_path / "x.toy")], capsys
    )
    assert complete_output("net.o") == ["net.onnx"]
    assert run(["fuse", "--help"]) == 0
    assert run(["explain", TINY_SOURCE, *SIZE, "--quiet"]) == 0


def test_ours_cannot_be_replaced_by_a_package(install: Install, tmp_path: Path) -> None:
    install("toybox", {TARGET_GROUP: {"pt2": "toys:TOY"}, OBJECTIVE_GROUP: {"macs": "toys:TOY"}}, "toys", TOY)
    assert export.target_of("x.pt2") is TARGETS.own["pt2"]
    assert OBJECTIVES.find("macs") is OBJECTIVES.own["macs"]


def test_a_registered_target_is_checked_before_it_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TARGETS, "own", dict(TARGETS.own))
    seen: list[Job] = []

    def write(job: Job) -> Written:
        seen.append(job)
        return Written("nothing", None)

    speed = Option("speed", "slow", "how", ("slow", "fast"))
    export.register(Target(".dir", "a directory", write, options=(speed,), is_directory=True))
    job = Job(nn.Identity(), (INPUT,), tmp_path / "x.dir")
    assert export.write(job).sentence == "nothing"
    assert seen[0].options == {"speed": "slow"}
    for options, reason in (({"speed": "none"}, "'none' is not one of slow, fast"), ({"x": 1}, "it takes speed")):
        with pytest.raises(UserError, match=reason):
            export.write(Job(nn.Identity(), (INPUT,), tmp_path / "x.dir", options))
    (tmp_path / "x.dir").touch()
    with pytest.raises(UserError, match="in the way"):
        export.write(job)
    assert len(seen) == 1


def test_a_package_that_a_target_needs_is_looked_for_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TARGETS, "own", dict(TARGETS.own))
    export.register(Target(".toy", "a toy", lambda _: Written("", None), needs=("torch", "no_such_package")))
    said = mistake(["fuse", "nobody:asks", "-o", str(tmp_path / "x.toy")], capsys)
    assert "writing it needs no_such_package, which is not installed; pip install no_such_package." in said


def test_a_flag_that_its_target_does_not_know_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["fuse", TINY_SOURCE, *SIZE, "-o", str(tmp_path / "x.pt2")]
    assert ".pt2 takes no option 'precision'; it takes fixed_batch." in mistake([*out, "--precision", "fp16"], capsys)
    out[-1] = str(tmp_path / "x.safetensors")
    assert "takes no option 'fixed_batch'; it takes none." in mistake([*out, "--fixed-batch"], capsys)


def test_the_page_of_targets_has_them_as_they_are() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "deploying.md").read_text().split("\n") if line[:4] == "| `."]
    told = {row[1].strip(" `"): row[4].strip(" `") for row in rows}
    assert told == {target.ending: target.objective for target in TARGETS.own.values()}


# --- objectives -----------------------------------------------------------------------------------


class Cautious(Objective):
    """Folds norms and nothing else: what holds two convolutions stays."""

    name = "cautious"
    about = "norms only"

    def guard(self, before: Candidate, after: Candidate) -> str:
        """Whether two convolutions would become one."""
        return "holds more than one convolution" if before.cost.heavy > 1 else ""


OBJECTIVE = """
from repfx.rewriting import Objective

class Cautious(Objective):
    name = "cautious"

    def guard(self, before, after):
        return "holds more than one convolution" if before.cost.heavy > 1 else ""

CAUTIOUS = Cautious()
"""


def test_an_objective_is_a_value() -> None:
    plan = repfx.explain(tiny(), (INPUT,), objective=Cautious())
    fused = repfx.reparameterize(tiny(), (INPUT,), objective=Cautious())
    report = repfx.report(fused)
    assert (plan.objective, report.objective) == ("cautious", "cautious")
    assert "objective cautious" in str(plan)
    assert "objective cautious" in str(report)
    assert any(decline.fact == "holds more than one convolution" for decline in report.declines)
    assert report.after.convolutions == report.before.convolutions == 5
    assert repfx.verify(tiny(), fused, (INPUT,)).equal


def test_an_objective_of_another_package_has_a_name(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete_objective("c") == []
    install("careful", {OBJECTIVE_GROUP: {"cautious": "care:CAUTIOUS"}}, "care", OBJECTIVE)
    assert complete_objective("c") == ["cautious"]
    assert repfx.explain(tiny(), objective="cautious").objective == "cautious"
    out = tmp_path / "x.safetensors"
    assert run(["fuse", TINY_SOURCE, *SIZE, "--objective", "cautious", "-o", str(out)]) == 0
    assert "objective cautious: as asked." in capsys.readouterr().out
    assert run(["load", str(out), TINY_SOURCE]) == 0
    assert "objective cautious" in capsys.readouterr().out
    asked = ["explain", TINY_SOURCE, "--objective"]
    assert "did you mean cautious?" in mistake([*asked, "cautios"], capsys)
    assert "it is single-branch or macs or cautious." in mistake([*asked, "x"], capsys)
    assert run(["explain", "--help"]) == 0
    assert "macs or cautious" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_broken_objective_names_its_package(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("careful", {OBJECTIVE_GROUP: {"cautious": "care:Cautious"}}, "care", OBJECTIVE)
    reason = "careful: its objective 'cautious' is of type type, not Objective"
    assert reason in mistake(["explain", TINY_SOURCE, "--objective", "cautious"], capsys)
    with pytest.raises(UserError, match=reason):
        repfx.explain(tiny(), objective="cautious")


class Nameless(Objective):
    """Forgot its name."""


class Impostor(Objective):
    """Takes the name of ours."""

    name = "macs"


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (Nameless(), "Nameless: has no name; give the class one"),
        (Impostor(), "Impostor: its name 'macs' is that of Macs; choose another"),
        (Cautious, "takes a name or an instance of a subclass of Objective"),
        (None, "takes a name or an instance"),
        ("fastest", "objective 'fastest' is not known; choose one of single-branch, macs"),
    ],
)
def test_what_is_no_objective(objective: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        repfx.reparameterize(tiny(), objective=objective)  # type: ignore[arg-type]


def test_a_file_of_an_objective_that_no_name_leads_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fused, path = repfx.reparameterize(tiny(), (INPUT,), objective=Cautious()), tmp_path / "x.safetensors"
    save_fused(fused, path, example_inputs=(INPUT,))
    assert "fused with objective 'cautious', unknown to this repfx" in mistake(["load", str(path), TINY_SOURCE], capsys)
    with pytest.raises(UserError, match="was fused with objective 'cautious', not with 'single-branch'"):
        load_fused(tiny(), path, objective=SINGLE_BRANCH)
    again = load_fused(tiny(), path, objective=Cautious())
    assert torch.equal(again(INPUT), fused(INPUT))


class Recording(Objective):
    """Goes by the default key, and keeps what it was asked."""

    name = "recording"

    def __init__(self) -> None:
        self.asked: list[tuple[Candidate, Candidate]] = []

    def guard(self, before: Candidate, after: Candidate) -> str:
        """Never objects."""
        _ = before.steps, after.steps, before.shape, after.shape
        self.asked.append((before, after))
        return ""


def test_an_objective_sees_the_forms_of_both_candidates() -> None:
    """Their multiply-accumulates and convolutions are those of the cost, up to what is no map."""
    objective = Recording()
    repfx.reparameterize(tiny(), (INPUT,), objective=objective)
    assert len(objective.asked) >= 3
    for before, after in objective.asked:
        assert after.shape == before.shape
        assert after.shape is not None
        heavy = [step for step in after.steps if step.form.kind in (Kind.CONV, Kind.LINEAR, Kind.TRANSPOSED)]
        assert len(heavy) == after.cost.heavy
        assert sum(step.form.macs * step.density for step in after.steps) == after.cost.macs
        assert sum(step.form.parameters for step in after.steps) == after.cost.parameters
        assert sum(step.form.macs * step.density for step in before.steps) == before.cost.macs
    assert {tuple(step.form.kernel) for _, after in objective.asked for step in after.steps} >= {(3, 3)}


def test_a_step_says_at_which_resolution_it_is_executed() -> None:
    """Behind a stride of 2 one position of the result stands for four of what is read."""
    down = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 2, stride=2), nn.BatchNorm2d(4)).eval()
    objective = Recording()
    repfx.reparameterize(down, (torch.randn(1, 4, 8, 8),), objective=objective)
    densities = {step.density for before, _ in objective.asked for step in before.steps}
    assert densities == {Fraction(1), Fraction(4)}


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["custom_target", "custom_objective"])
def test_the_explained_code_is_the_example(name: str) -> None:
    marks = {"custom_target": "def write_npz", "custom_objective": "LARGEST = 7"}
    (code,) = [block for block in blocks(PAGE, "python") if marks[name] in block]
    body = code[code.index(marks[name]) :].strip()
    assert body in (ROOT / "examples" / f"{name}.py").read_text()


def test_the_package_of_the_page_works(install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its entry points as they stand there, its module made of the page's code."""
    (toml,) = blocks(PAGE, "toml")
    code = [block for block in blocks(PAGE, "python") if "def write_npz" in block or "LARGEST = 7" in block]
    module = "\n".join(["from __future__ import annotations", *code, "SMALL_KERNELS = SmallKernels()", ""])
    install("repfx-npz", tomllib.loads(toml)["project"]["entry-points"], "repfx_npz", module)
    out = tmp_path / "net.npz"
    assert run(["fuse", TINY_SOURCE, *SIZE, "--objective", "small-kernels", "-o", str(out)]) == 0
    assert "objective small-kernels: as asked." in capsys.readouterr().out
    assert numpy.load(out)["stem.weight"].shape == (8, 3, 3, 3)
