"""Every program in examples/ runs and says what it should.  quickstart.py is run by test_docs.py, in the README."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS: dict[str, tuple[str, ...]] = {
    "python_api": ("conv 16->16 5x5 groups 16 + border term", "equal: ", "kernel: True", "1 batch norm would be left"),
    "export_onnx": ("'Conv': 74", "of 500 test images correctly"),
    "save_and_load": ("model='repnext_nano'", "bit-equal: True"),
    "fuse_backbone": ("191 convolutions -> 41", "(1, 8, 24, 16) equal"),
    "custom_target": ("150 arrays", "equal: True"),
    "custom_objective": ("single-branch: 41 convolutions", "small-kernels: 71 convolutions", "macs: 74 convolutions"),
    "custom_pass": ("14 batch norms -> 0", "14 convolutions -> 14", "equal: "),
}


def test_each_program_is_known_here() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted([*SAYS, "quickstart"])


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = str(EXAMPLES / f"{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program])
    runpy.run_path(program, run_name="__main__")
    page = capsys.readouterr().out
    for text in SAYS[name]:
        assert text in page
    assert "DIFFERENT" not in page
