"""What an extra brings may be missing: `reparameterize` needs none, and each job that needs one says which."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import repfx
from repfx import export
from repfx.cli.app import run
from repfx.drawing import draw
from repfx.export import coreml_operations
from repfx.extras import EXTRA_OF
from repfx.io import build_model
from tests.outside import TINY_SOURCE

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SIZE = ("--input-size", "3,32,32")
INPUT = (torch.zeros(1, 3, 8, 8),)


def packages_of(requirements: list[str]) -> set[str]:
    """The names of some requirements, without versions."""
    return {requirement.split(">")[0] for requirement in requirements}


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3)).eval()


def make_picture(directory: Path) -> object:
    model = convolution()
    return draw(model, repfx.reparameterize(model, verify=False), "", directory / "a.png")


def read_package(directory: Path) -> object:
    (directory / "a.mlpackage").mkdir()
    return coreml_operations(directory / "a.mlpackage")


JOBS: dict[str, tuple[str, str, Callable[[Path], object]]] = {  # job -> (package, its extra, the call)
    "onnx": ("onnx", "onnx", lambda to: export.to_onnx(convolution(), INPUT, to / "a.onnx")),
    "onnx's exporter": ("onnxscript", "onnx", lambda to: export.to_onnx(convolution(), INPUT, to / "a.onnx")),
    "onnx's runtime": ("onnxruntime", "onnx", lambda to: export.to_onnx(convolution(), INPUT, to / "a.onnx")),
    "core ml": ("coremltools", "coreml", lambda to: export.to_coreml(convolution(), INPUT, to / "a.mlpackage")),
    "reading core ml": ("coremltools", "coreml", read_package),
    "a picture": ("matplotlib", "plot", make_picture),
    "a name of timm": ("timm", "models", lambda to: build_model("timm:resnet18")),
    "a name of repnext": ("timm", "models", lambda to: build_model("repnext_m0")),
    "a name of torchvision": ("torchvision", "models", lambda to: build_model("torchvision:resnet18")),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_missing_package_is_one_sentence(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, extra, call = JOBS[job]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(repfx.UserError) as error:
        call(tmp_path)
    said = str(error.value)
    assert said.endswith(f'needs {package}, which is not installed; pip install "repfx[{extra}]".')
    assert "\n" not in said
    assert not [entry for entry in tmp_path.iterdir() if entry.is_file()]


def test_several_missing_packages_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(repfx.UserError, match="needs onnx and onnxruntime, which are not installed"):
        export.to_onnx(convolution(), INPUT, tmp_path / "a.onnx")


COMMANDS = {  # command -> (package, its extra)
    "fuse {source} -o {to}/a.onnx": ("onnxruntime", "onnx"),
    "fuse {source} -o {to}/a.mlpackage": ("coremltools", "coreml"),
    "draw {source} --at blocks.0 -o {to}/a.png": ("matplotlib", "plot"),
    "explain repnext_m0": ("timm", "models"),
    "verify torchvision:resnet18": ("torchvision", "models"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_says_it_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, extra = COMMANDS[command]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(repfx, "reparameterize", None)  # never reached
    assert run([*command.format(source=TINY_SOURCE, to=tmp_path).split(), *SIZE]) == 2
    page = capsys.readouterr()
    assert page.out == ""
    assert page.err.count("\n") == 1, page.err
    assert page.err.endswith(f'needs {package}, which is not installed; pip install "repfx[{extra}]".\n')
    assert not list(tmp_path.iterdir())


WITHOUT = """
import sys

for package in {packages!r}:
    sys.modules[package] = None

import torch
from torch import nn

import repfx
import repfx.cli
import repfx.drawing
from repfx.export import to_pt2
from repfx.io import save_fused

model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
x = torch.randn(1, 3, 8, 8)
fused = repfx.reparameterize(model, (x,))
assert repfx.verify(model, fused, (x,)).equal
save_fused(fused, "a.safetensors", model="a")
to_pt2(fused, (x,), "a.pt2")
print(repfx.report(fused).after.batch_norms, "batch norms")
"""


def test_what_reparameterize_needs_is_no_extra(tmp_path: Path) -> None:
    code = WITHOUT.format(packages=sorted(EXTRA_OF))
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 batch norms\n"


def test_repnext_says_what_it_needs() -> None:
    code = "import sys; sys.modules['timm'] = None; import repnext"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.rstrip().endswith('repnext needs timm, which is not installed; pip install "repfx[models]".')


def test_the_extras_are_those_of_the_project() -> None:
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    for package, extra in EXTRA_OF.items():
        assert package in packages_of(extras[extra])
    assert not packages_of(PROJECT["dependencies"]) & set(EXTRA_OF)
    whole = extras["all"][0]
    for extra in {*EXTRA_OF.values(), "train"}:
        assert extra in whole
    assert "repfx[all]" in extras["dev"]


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
