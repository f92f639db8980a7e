"""A user's mistake is one sentence on stderr and exit code 2; nothing is written, nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import repfx
from repfx.cli.app import run
from tests.outside import TINY_SOURCE, hostile_files, tiny

SIZE = ("--input-size", "3,32,32")


def mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that the command answers with."""
    capsys.readouterr()
    assert run(arguments) == 2
    page = capsys.readouterr()
    assert page.out == ""
    assert page.err.count("\n") == 1, page.err
    assert page.err.startswith("repfx: ")
    assert page.err.rstrip().endswith((".", "?")), page.err
    return page.err


MODELS = {
    "repnext_m11": "did you mean repnext_m1",
    "timm:resnet51": "or resnet50",
    "torchvision:resnet81": "did you mean resnet18",
    "nothing_like_it": "a model is repnext_m1, timm:NAME",
    "no.such.module:make": "there is no module 'no'",
    "json:lodas": "did you mean loads",
    "json:loads": "building it failed: TypeError",
    "tests/outside.py:tinny": "did you mean tiny",
    "tests/outside.py:not_a_module": "returned a int, not a torch.nn.Module",
    "tests/outside.py:failing": "building it failed: RuntimeError: the factory's own trouble",
    "tests/outside.py:SIZE": "neither a module nor a factory",
    "tests/absent.py:tiny": "there is no such file",
    "tests/outside.py": "name the factory in the file too",
    "weights.pth": "is a checkpoint, not a model",
    "absent.pt2": "there is no such file",
    "timm:": "is not a model name",
    "": "unknown model",
}


@pytest.mark.parametrize("model", MODELS)
def test_models_that_are_none(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert MODELS[model] in mistake(["fuse", model, "-o", str(tmp_path / "o.onnx")], capsys)
    assert not list(tmp_path.iterdir())


OPTIONS = {
    "unknown ending": (["-o", "{}/o.tflite"], "an output ends in .safetensors, .pt2, .onnx, .mlpackage"),
    "no ending": (["-o", "{}/o"], "unknown ending"),
    "missing directory": (["-o", "{}/absent/o.onnx"], "does not exist"),
    "directory in the way": (["-o", "{}/taken.onnx"], "in the way"),
    "unknown objective": (["-o", "{}/o.onnx", "--objective", "mac"], "did you mean macs"),
    "size of letters": (["-o", "{}/o.onnx", "--input-size", "3,a,3"], "write positive whole numbers"),
    "size of zero": (["-o", "{}/o.onnx", "--input-size", "3,0,3"], "write positive whole numbers"),
    "size too large": (["-o", "{}/o.onnx", "--input-size", "3,99999,99999"], "is too large"),
    "size not accepted": (["-o", "{}/o.onnx", "--input-size", "4,32,32"], "does not accept one input of size 4x32x32"),
    "unknown option": (["-o", "{}/o.onnx", "--model-option", "depth=3"], "building it failed: TypeError"),
    "option without value": (["-o", "{}/o.onnx", "--model-option", "depth"], "write KEY=VALUE"),
    "no checkpoint": (["-o", "{}/o.onnx", "-c", "{}/absent.pth"], "there is no such file"),
    "no output": ([], "Missing option"),
    "unknown flag": (["-o", "{}/o.onnx", "--fast"], "No such option"),
    "unknown precision": (["-o", "{}/o.mlpackage", "--precision", "int8"], "is not one of"),
    "unknown target": (["-o", "{}/o.mlpackage", "--minimum-deployment-target", "iOS3"], "is not one of iOS15"),
    "pretrained code": (["-o", "{}/o.onnx", "--pretrained"], "works for registry names only"),
    "unknown module": (["-o", "{}/o.onnx", "--exclude", "blcks.0"], "blcks.0"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_that_cannot_be(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken.onnx").mkdir()
    arguments, reason = OPTIONS[kind]
    filled = [text.replace("{}", str(tmp_path)) for text in arguments]
    size = [] if "--input-size" in filled else list(SIZE)
    assert reason in mistake(["fuse", TINY_SOURCE, *filled, *size], capsys)
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken.onnx"]


@pytest.mark.parametrize("kind", ["empty", "text", "module", "trap", "script", "cut"])
def test_checkpoints_that_mean_harm(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = hostile_files(tmp_path)[kind]
    out = tmp_path / "o.safetensors"
    mistake(["fuse", TINY_SOURCE, "-c", str(file), *SIZE, "-o", str(out)], capsys)
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_another_number_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tiny(num_classes=9).state_dict(), tmp_path / "nine.pth")
    arguments = ["verify", TINY_SOURCE, "-c", str(tmp_path / "nine.pth"), *SIZE]
    assert "pass --num-classes 9" in mistake(arguments, capsys)
    assert run([*arguments, "--num-classes", "9"]) == 0


def test_programs_are_not_trusted_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.pt2").write_text("not a program")
    assert "pass --trust" in mistake(["explain", str(tmp_path / "net.pt2")], capsys)
    assert "is not a program that this torch can load" in mistake(
        ["explain", str(tmp_path / "net.pt2"), "--trust"], capsys
    )


def test_fused_weights_of_code_want_the_code_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.safetensors"
    assert run(["fuse", TINY_SOURCE, *SIZE, "-o", str(file)]) == 0
    assert "which is code; name the model to rebuild" in mistake(["load", str(file)], capsys)
    assert "does not fit the model" in mistake(["load", str(file), TINY_SOURCE, "--num-classes", "6"], capsys)
    assert "records its own" in mistake(["verify", TINY_SOURCE, "--fused", str(file), "--objective", "macs"], capsys)


def test_our_own_bug_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("inner")

    monkeypatch.setattr(repfx, "explain", broken)
    assert run(["explain", TINY_SOURCE, *SIZE]) == 1
    page = capsys.readouterr()
    assert page.err.count("\n") == 1
    assert "our bug and not yours: KeyError: 'inner'" in page.err
    assert run(["explain", TINY_SOURCE, *SIZE, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unequal_result_is_our_bug_and_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = repfx.reparameterize

    def wrong(*arguments: object, **options: object) -> torch.nn.Module:
        fused = real(*arguments, **options)  # type: ignore[arg-type]
        next(value for name, value in fused.named_parameters() if name.endswith("bias")).data.mul_(1.01)
        return fused

    monkeypatch.setattr(repfx, "reparameterize", wrong)
    monkeypatch.setattr(repfx, "report", lambda _: repfx.Report("tiny", "macs"))
    out = tmp_path / "o.safetensors"
    assert run(["fuse", TINY_SOURCE, *SIZE, "-o", str(out)]) == 1
    assert "our bug" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
