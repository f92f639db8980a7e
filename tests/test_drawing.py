"""Pictures hold what is executed, and their boxes do not overlap."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import networkx as nx
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn

import repfx
from repfx.cli.app import run
from repfx.drawing import draw, operations_of
from repfx.drawing.layered import layout_of
from repfx.drawing.pictures import operations_after
from repnext.blocks import Downsample, MetaNeXtBlock
from tests.outside import tiny


def kinds(picture: nx.DiGraph[str]) -> Counter[str]:
    return Counter(picture.nodes[name]["box"].kind for name in picture)


@pytest.fixture(scope="module")
def block() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), MetaNeXtBlock(16), Downsample(16), nn.Conv2d(32, 4, 1)).eval()
    return model, repfx.reparameterize(model, verify=False)


def test_a_block_before(block: tuple[nn.Module, nn.Module]) -> None:
    picture = operations_of(block[0], "1")
    found = kinds(picture)
    assert (found["depthwise convolution"], found["convolution"], found["norm"]) == (13, 2, 3)
    assert (found["split, concatenate"], found["activation"], found["border term"]) == (2, 1, 0)
    assert found["add"] == 3  # nested sums are one: small, medium, residual
    assert found["value"] == 2
    assert nx.is_directed_acyclic_graph(picture)


def test_a_block_after(block: tuple[nn.Module, nn.Module]) -> None:
    found = kinds(operations_after(block[1], "1"))
    assert (found["depthwise convolution"], found["convolution"], found["norm"]) == (1, 2, 0)
    assert (found["border term"], found["split, concatenate"]) == (1, 0)


def test_labels_say_what_a_convolution_is(block: tuple[nn.Module, nn.Module]) -> None:
    picture = operations_after(block[1], "2.token_mixer")
    assert "conv 7×7\n16 → 32\ngroups 16\nstride 2" in {picture.nodes[n]["box"].label for n in picture}


def test_what_lies_outside_is_left_out() -> None:
    model = tiny()
    assert kinds(operations_of(model, "blocks.0"))["convolution"] == 2
    assert kinds(operations_of(model))["convolution"] == 5
    fused = repfx.reparameterize(model, verify=False)
    assert kinds(operations_after(fused, "blocks.0"))["convolution"] == 1
    assert kinds(operations_after(fused))["convolution"] == 3


@pytest.mark.parametrize("at", ["", "1", "2"])
def test_boxes_keep_clear_of_each_other_and_of_lines(block: tuple[nn.Module, nn.Module], at: str) -> None:
    picture = operations_of(block[0], at)
    boxes = {name: picture.nodes[name]["box"] for name in picture}
    layout = layout_of(picture, {name: (box.width, box.height) for name, box in boxes.items()})
    for a, b in combinations(picture, 2):
        (xa, ya), (xb, yb) = layout.places[a], layout.places[b]
        apart_x = abs(xa - xb) - (boxes[a].width + boxes[b].width) / 2
        apart_y = abs(ya - yb) - (boxes[a].height + boxes[b].height) / 2
        assert max(apart_x, apart_y) > 0.05, (a, b)
    for route in layout.routes.values():
        for x, y in route:
            for name, (xb, yb) in layout.places.items():
                assert max(abs(x - xb) - boxes[name].width / 2, abs(y - yb) - boxes[name].height / 2) > -1e-9
    for a, b in picture.edges:
        assert layout.places[a][1] > layout.places[b][1]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_files(block: tuple[nn.Module, nn.Module], ending: str, tmp_path: Path) -> None:
    path = draw(*block, "1", tmp_path / f"block{ending}")
    assert path.stat().st_size > 5000
    if ending == ".png":
        colours = {tuple(pixel) for pixel in imread(path).reshape(-1, 4)[:, :3].round(2).tolist()}
        assert len(colours) > 20


class _Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool((x > 0).all()) else -x


def test_mistakes(block: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    with pytest.raises(repfx.UserError, match=r"'nowhere': Sequential has no such module"):
        draw(*block, "nowhere", tmp_path / "a.png")
    with pytest.raises(repfx.UserError, match=r"unknown ending"):
        draw(*block, "1", tmp_path / "a.gif")
    with pytest.raises(repfx.UserError, match=r"not made by repfx"):
        draw(block[0], block[0], "1", tmp_path / "a.png")
    model = _Untraceable().eval()
    with pytest.raises(repfx.UserError, match=r"does not trace as a whole"):
        draw(model, repfx.reparameterize(model), "", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "block.png"
    size = ["--input-size", "3,32,32"]
    assert run(["draw", "tests/outside.py:tiny", *size, "--at", "blocks.0", "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}")
    assert run(["draw", "tests/outside.py:tiny", *size, "--at", "blocks.7", "-o", str(out)]) == 2
    assert "no such module" in capsys.readouterr().err


def test_a_plain_scale_is_drawn() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()).eval()
    fused = repfx.reparameterize(repfx.randomize_statistics(model), (torch.randn(1, 4, 8, 8),))
    assert kinds(operations_after(fused))["norm"] == 1
