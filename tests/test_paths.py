"""No decision depends on how a path is spelled: the same file compiles alike wherever it lies, and from nowhere."""

from __future__ import annotations

import importlib.util
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import repfx
from repfx.introspection import is_library, is_ours
from tests import hostile

SOURCE = '''
import torch
from torch import nn

CACHE = {}


class Model(nn.Module):
    """Asks what only the user's own code may be answered."""

    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.m = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            x = x[0] * 3.0
        if type(x) is not torch.Tensor:
            x = x * 5.0
        assert x.shape[1] == 3, f"{x.shape}"
        if x.ndim != 4:
            raise ValueError("no image")
        b, c, h, w = x.shape
        try:
            y = self.n(self.a(x)).reshape(b, 4, h, w)
        except ZeroDivisionError:
            y = self.n(self.a(x)) * 7.0
        key = (h, w)
        y = y + len({id(y): y, id(x): x})
        return self.m(self.b(y.relu()))
'''


def from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"outside_{abs(hash(str(path)))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def in_folder(folder: str) -> Callable[[Path], Any]:
    def load(root: Path) -> Any:
        place = root / folder
        place.mkdir(parents=True)
        (place / "model.py").write_text(SOURCE)
        return from_file(place / "model.py")

    return load


def through_a_link(root: Path) -> Any:
    (root / "torch").mkdir()
    (root / "torch" / "model.py").write_text(SOURCE)
    (root / "linked").symlink_to(root / "torch")
    return from_file(root / "linked" / "model.py")


def relative(root: Path) -> Any:
    scope: dict[str, Any] = {"__name__": "relative"}
    exec(compile(SOURCE, "torch/model.py", "exec"), scope)
    return ModuleType("relative") if not scope else type("Scope", (), scope)


def named(filename: str) -> Callable[[Path], Any]:
    def load(root: Path) -> Any:
        scope: dict[str, Any] = {"__name__": "__main__"}
        linecache.cache[filename] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), filename)
        exec(compile(SOURCE, filename, "exec"), scope)
        return type("Scope", (), scope)

    return load


PLACES: dict[str, Callable[[Path], Any]] = {
    "plain": in_folder("models"),
    "torch": in_folder("torch"),
    "torch, further up": in_folder("torch/nn/modules"),
    "repfx": in_folder("repfx"),
    "passes": in_folder("passes"),
    "site-packages": in_folder("lib/python3.11/site-packages/x"),
    "the standard library's name": in_folder("lib/python3.11"),
    "a link": through_a_link,
    "a relative name": relative,
    "executed": named("<string>"),
    "a notebook": named("<ipython-input-3-0123456789ab>"),
    "a notebook's file": named("/tmp/ipykernel_12345/1234567890.py"),
    "an interpreter's line": named("<stdin>"),
}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith("outside_")]:
        del sys.modules[name]


@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
@pytest.mark.parametrize("place", PLACES)
def test_a_model_compiles_alike_wherever_it_lies(place: str, example: bool, tmp_path: Path) -> None:
    model = hostile.prepared(PLACES[place](tmp_path).Model(), 0)
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = repfx.reparameterize(model, (x,) if example else None)
    report = repfx.report(fused)
    assert report.islands == ()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert report.equivalence is not None
    hostile.assert_same(model, fused, x)


def test_library_code_is_what_lies_under_three_folders(tmp_path: Path) -> None:
    assert is_ours(torch.__file__)
    assert is_ours(nn.__file__)
    assert is_ours(repfx.__file__)
    assert not is_ours(__file__)
    assert is_library(linecache.__file__)
    assert is_library("<frozen importlib._bootstrap>")
    assert not is_library(pytest.__file__)
    for name in ("torch/x.py", "repfx/x.py", "lib/python3.11/linecache.py", "site-packages/torch/x.py"):
        assert not is_library(str(tmp_path / name))
    for name in ("<string>", "<stdin>", "<ipython-input-1-a>", "torch/x.py"):
        assert not is_library(name)
