"""Programs of torch.export as models: their ATen calls become functions that the compiler reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from repfx.capture import plain_module
from tests.outside import SIZE, tiny

INPUT = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))


class InPlace(nn.Module):
    """Branches added in place, a dropout, a split and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 1, padding="same")
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.a(x)
        y += self.b(x)
        y = self.drop(F.relu(self.norm(y), inplace=True))
        left, right = y.chunk(2, 1)
        return {"map": torch.cat([right, left], 1), "mean": y.mean((2, 3))}


class Upsampling(nn.Module):
    """Transposed convolutions, a shuffle, a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 2, 2)
        self.norm, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(2)
        self.mix = nn.Conv2d(8, 8, 1)
        self.weight = nn.Parameter(torch.eye(4, 5))
        self.head = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.flip(self.norm(self.up(x)), [1])
        y = self.last(F.pixel_shuffle(self.mix(torch.relu(y)), 2))
        return self.head(torch.relu(y).mean((2, 3))) @ self.weight


@pytest.mark.parametrize(
    "model", [tiny(), InPlace().eval(), Upsampling().eval()], ids=["tiny", "in place", "upsampling"]
)
def test_a_program_computes_and_compiles_like_its_module(model: nn.Module) -> None:
    repfx.randomize_statistics(model)
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(model, (INPUT,), dynamic_shapes=(batch,))
    plain = plain_module(program)
    assert not plain.training
    x = torch.randn(3, *SIZE)
    expected, got = model(x), plain(x)
    torch.testing.assert_close(got, expected)
    fused, original = repfx.reparameterize(plain, (x,)), repfx.reparameterize(model, (x,))
    after = repfx.report(fused).after
    assert (after.convolutions, after.batch_norms) == (repfx.report(original).after.convolutions, 0)
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
