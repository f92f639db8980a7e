"""fold_weights alone: generated weights are written down once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import repfx
from passes.fold_weights import FoldWeights
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only

ALONE = only(FoldWeights())


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.tanh()


def _parametrized() -> nn.Module:
    return parametrize.register_parametrization(conv(4, 6), "weight", Doubled())


def _masked(s: Net, x: Tensor) -> Tensor:
    return F.conv2d(x, s.w * s.m, padding=1)


GENERATED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mask": (_masked, {"w": nn.Parameter(torch.randn(6, 4, 3, 3)), "m": torch.ones(6, 4, 3, 3).tril()}),
    "standardised": (lambda s, x: s.a(x), {"a": ScaledStdConv2d(4, 6, 3, padding=1)}),
    "parametrized": (lambda s, x: s.a(x), {"a": _parametrized()}),
    "weight norm": (lambda s, x: s.a(x), {"a": parametrizations.weight_norm(conv(4, 6))}),
}


@pytest.mark.parametrize("name", GENERATED)
def test_one_convolution_and_nothing_that_makes_its_weight(name: str) -> None:
    run, parts = GENERATED[name]
    _, fused = compiled(Net(run, **parts), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1}
    assert not any(parametrize.is_parametrized(m) for m in fused.modules())
    _, second = compiled(fused, 4, **ALONE)
    assert not repfx.report(second).merges


def test_a_plain_weight_stays() -> None:
    original, fused = compiled(Net(lambda s, x: s.a(x), a=conv(4, 6)), 4, **ALONE)
    assert torch.equal(fused.a.weight, original.a.weight)  # type: ignore[arg-type]
    assert not repfx.report(fused).merges


def test_a_weight_that_depends_on_the_input_is_declined() -> None:
    run = Net(lambda s, x: F.conv2d(x, s.w * x.mean(), padding=1), w=nn.Parameter(torch.randn(6, 4, 3, 3)))
    _, fused = compiled(run, 4, **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "conv2d", "its weight depends on the input", "lifting")
