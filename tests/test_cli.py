"""The commands, run as a user runs them, on models of every kind of name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import repfx
from repfx.cli.app import run
from repfx.export import count_coreml_convs
from tests.outside import TINY_SOURCE, tiny

SIZE = ("--input-size", "3,32,32")


def test_fuse_then_load_then_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, fused = tmp_path / "tiny.pth", tmp_path / "tiny.safetensors"
    torch.save({"state_dict": tiny().state_dict()}, weights)
    assert run(["fuse", TINY_SOURCE, "-c", str(weights), *SIZE, "-o", str(fused)]) == 0
    page = capsys.readouterr()
    for text in ("executed in one forward", "convolutions", "merged", "equal: ", "objective single-branch: the fewest"):
        assert text in page.out
    assert "took the weights under 'state_dict'" in page.err
    assert run(["load", str(fused), TINY_SOURCE]) == 0
    assert "3 convolutions, 0 batch norms" in capsys.readouterr().out
    assert run(["verify", TINY_SOURCE, "-c", str(weights), *SIZE, "--fused", str(fused)]) == 0
    assert capsys.readouterr().out.startswith("equal: ")


def test_verify_says_no_with_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fused, other = tmp_path / "tiny.safetensors", tmp_path / "other.pth"
    assert run(["fuse", TINY_SOURCE, *SIZE, "-o", str(fused)]) == 0
    state = tiny().state_dict()
    state["blocks.1.skip.bias"] = state["blocks.1.skip.bias"] + 0.01
    torch.save(state, other)
    capsys.readouterr()
    assert run(["verify", TINY_SOURCE, "-c", str(other), *SIZE, "--fused", str(fused)]) == 1
    assert capsys.readouterr().out.startswith("DIFFERENT: ")


@pytest.mark.parametrize("ending", [".pt2", ".onnx", ".mlpackage"])
def test_runtimes_get_their_recommended_objective(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"tiny{ending}"
    assert run(["fuse", TINY_SOURCE, *SIZE, "-o", str(out)]) == 0
    page = capsys.readouterr()
    assert "objective macs: recommended for this runtime" in page.out
    assert f"wrote {out}: 3 convolutions" in page.out
    assert page.err == ""
    assert [entry.name for entry in tmp_path.iterdir()] == [out.name]
    if ending == ".mlpackage":
        assert count_coreml_convs(out) == 3


def test_a_saved_program_is_a_model_once_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "tiny.pt2"
    assert run(["fuse", TINY_SOURCE, *SIZE, "-o", str(program), "--objective", "single-branch"]) == 0
    assert "objective single-branch: as asked" in capsys.readouterr().out
    assert run(["explain", str(program), "--trust"]) == 0
    assert "convolutions" in capsys.readouterr().out


def test_loaded_weights_go_on_to_a_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fused, onnx = tmp_path / "tiny.safetensors", tmp_path / "tiny.onnx"
    assert run(["fuse", TINY_SOURCE, *SIZE, "--num-classes", "4", "-o", str(fused)]) == 0
    assert run(["load", str(fused), TINY_SOURCE, "--num-classes", "4", "-o", str(onnx)]) == 0
    assert f"wrote {onnx}: 3 convolutions, any batch of 3x32x32" in capsys.readouterr().out


def test_json_is_one_object_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fuse", TINY_SOURCE, *SIZE, "--json", "-o", str(tmp_path / "tiny.onnx")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["equivalence"]["equal"] is True
    assert record["report"]["before"]["convolutions"] == 5
    assert record["output"]["operations"]["Conv"] == 3
    assert run(["explain", TINY_SOURCE, *SIZE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["after"]["convolutions"] == 3


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fuse", "timm:resnet10t", *SIZE, "--quiet", "-o", str(tmp_path / "r.safetensors")]) == 0
    assert capsys.readouterr() == ("", "")


def test_exclude_leaves_a_module_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", TINY_SOURCE, *SIZE, "--json", "--exclude", "blocks.0"]) == 0
    after = json.loads(capsys.readouterr().out)["report"]["after"]
    assert (after["convolutions"], after["batch_norms"]) == (4, 3)


@pytest.mark.parametrize("name", ["resnet10t", "timm:resnet10t", "torchvision:resnet18"])
def test_registry_names_with_random_statistics(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", name, "--input-size", "3,48,32", "--num-classes", "10", "--random-statistics"]) == 0
    page = capsys.readouterr()
    assert page.out.startswith("equal: ")
    assert "the weights are random" in page.err


def test_the_channels_come_from_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "resnet10t", "--model-option", "in_chans=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["model"]


def test_the_trained_network_needs_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nano.safetensors"
    assert run(["fuse", "repnext_nano", "--pretrained", "-o", str(out)]) == 0
    assert "random" not in capsys.readouterr().err
    assert run(["load", str(out)]) == 0
    assert "0 batch norms" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["fuse"], ["explain"], ["verify"], ["load"]])
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert "repfx fuse" in capsys.readouterr().out or command in (["explain"], ["verify"], ["load"])


def test_the_console_script_starts() -> None:
    code = "from repfx.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"repfx {repfx.__version__}", "")


def test_a_neighbour_of_the_models_file_does_not_take_the_place_of_ours(tmp_path: Path) -> None:
    """A folder `passes` beside the user's file is the user's; the compiler's passes are found all the same."""
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "__init__.py").write_text("")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    command = [sys.executable, "-c", "from repfx.cli import main; main()", "explain", f"{tmp_path / 'net.py'}:make"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "batch norms" in done.stdout


MODELS = """
import torch
from torch import nn


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return int(self.norm(self.conv(x)).shape[1])


class Sobel(Counted):
    def forward(self, x):
        kernel = torch.tensor([[1.0, 0.0, -1.0]] * 3).expand(3, 1, 3, 3)
        return self.norm(self.conv(torch.conv2d(x.float(), kernel, padding=1, groups=3)))
"""


def test_what_was_not_compared_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(MODELS)
    run(["fuse", f"{tmp_path}/net.py:Counted", *SIZE, "-o", str(tmp_path / "o.safetensors")])
    page = capsys.readouterr()
    said = [line for line in (page.out + page.err).splitlines() if "not compared" in line]
    assert said == ["the whole was not compared with the original: its outputs hold no tensor"]


def test_a_model_that_makes_float32_constants_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(MODELS)
    out = tmp_path / "o.safetensors"
    assert run(["fuse", f"{tmp_path}/net.py:Sobel", "--input-size", "3,16,16", "-o", str(out)]) == 0
    assert "equal: relative error" in capsys.readouterr().out
    assert out.exists()
