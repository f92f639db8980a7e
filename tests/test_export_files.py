"""An output path holds what was there before, or the complete new file: on full disks and interruptions too."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repfx.errors import UserError
from repfx.io import whole_output
from tests.outside import TINY_SOURCE

COMMAND = [sys.executable, "-c", "from repfx.cli import main; main()", "fuse", TINY_SOURCE, "--input-size", "3,32,32"]


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def write_half(path: Path, error: BaseException) -> None:
    """Start writing, then fail."""
    directory = path.suffix == ".mlpackage"
    with whole_output(path, directory=directory) as staged:
        if directory:
            staged.mkdir()
        (staged / "part" if directory else staged).write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_file_leaves_the_old_one(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_text("old")
    with pytest.raises((UserError, KeyboardInterrupt)):
        write_half(path, error)
    assert contents(tmp_path) == {"a.onnx": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]


def test_an_interrupted_directory_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mlpackage"
    path.mkdir()
    (path / "part").write_text("old")
    with pytest.raises(UserError, match="No space left"):
        write_half(path, OSError(errno.ENOSPC, "No space left on device"))
    assert contents(tmp_path) == {"a.mlpackage/part": "old"}


def test_a_directory_steps_back_where_its_successor_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mlpackage"
    path.mkdir()
    (path / "part").write_text("old")
    rename, calls = os.rename, []

    def failing_second(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_second)
    with pytest.raises(UserError, match="Input/output error"), whole_output(path, directory=True) as staged:
        staged.mkdir()
    assert contents(tmp_path) == {"a.mlpackage/part": "old"}


def test_new_files_have_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with whole_output(tmp_path / "a.onnx") as staged:
            staged.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.onnx").stat().st_mode & 0o777 == 0o644


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".safetensors", ".pt2", ".onnx", ".mlpackage"])
def test_a_disk_that_fills_up(ending: str, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk; torch's own archive writer would abort on it."""
    done = subprocess.run(
        [*COMMAND, "--model-option", "width=64", "-o", str(tmp_path / f"a{ending}")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_command_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    script = "import os, signal, repfx.export as e; from repfx.cli import main; " + (
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background job starts with it ignored
        f"e.to_onnx = lambda *a, **k: os.kill(os.getpid(), {int(number)}); main()"
    )
    done = subprocess.run(
        [COMMAND[0], "-c", script, *COMMAND[3:], "-o", str(tmp_path / "a.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + number
    assert not list(tmp_path.iterdir())
