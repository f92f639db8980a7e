"""What the tests of files and commands share: a small multi-branch network and files that mean harm."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

TINY_SOURCE = "tests/outside.py:tiny"
SIZE = (3, 32, 32)


class Branches(nn.Module):
    """3x3, 1x1 and identity, each with its batch norm, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.small = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.skip = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.large(x) + self.small(x) + self.skip(x))


class Tiny(nn.Module):
    """A stem, two multi-branch blocks and a linear head, on (B, 3, H, W)."""

    def __init__(self, num_classes: int = 5, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Branches(width), Branches(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def tiny(num_classes: int = 5, width: int = 8) -> Tiny:
    """Tiny with random batch-norm statistics, in evaluation mode, the same every time."""
    generator = torch.Generator().manual_seed(7)
    model = Tiny(num_classes, width)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - (0 if "var" in name else 0.5))
                value.add_(0.5 if "var" in name else 0.0)
    return model.eval()


def not_a_module() -> int:
    """A factory of the wrong thing."""
    return 3


def failing() -> nn.Module:
    """A factory that fails."""
    raise RuntimeError("the factory's own trouble\nand its second line")


class Trap:
    """Writes a file when unpickled: the proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return _spring, (str(self.mark), "w")


def _spring(path: str, mode: str) -> str:
    with open(path, mode):
        return path


def hostile_files(folder: Path) -> dict[str, Path]:
    """Files that are no checkpoint, by what is wrong with them; `folder / "ran"` appears if code runs."""
    mark = folder / "ran"
    state = tiny().state_dict()
    files = {
        name: folder / f"{name}.pth"
        for name in ("empty", "text", "lfs", "module", "trap", "trap_legacy", "script", "cut", "number", "noise")
    }
    files["empty"].touch()
    files["text"].write_text("<!DOCTYPE html>\nnot found\n")
    files["lfs"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    torch.save(tiny(), files["module"])
    torch.save({"state_dict": {**state, "x": Trap(mark)}}, files["trap"])
    files["trap_legacy"].write_bytes(pickle.dumps(Trap(mark)))
    torch.jit.save(torch.jit.trace(tiny(), torch.zeros(1, *SIZE)), files["script"])
    torch.save(state, files["cut"])
    files["cut"].write_bytes(files["cut"].read_bytes()[:-400])
    torch.save(3, files["number"])
    files["noise"].write_bytes(bytes(range(256)) * 20)
    return files
