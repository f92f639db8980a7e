"""fold_through_shuffle: a norm behind a PixelShuffle goes into the convolution before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes.collapse_chains import CollapseChains
from passes.fold_through_shuffle import FoldThroughShuffle
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only

ALONE = only(FoldThroughShuffle())
BN = nn.BatchNorm2d

SPELLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "module": lambda s, x: s.n(s.p(s.a(x))),
    "F.pixel_shuffle": lambda s, x: s.n(F.pixel_shuffle(s.a(x), 2)),
    "by keyword": lambda s, x: s.n(F.pixel_shuffle(input=s.a(x), upscale_factor=2)),
    "torch.pixel_shuffle": lambda s, x: s.n(torch.pixel_shuffle(s.a(x), 2)),
}


def network(run: Callable[[Any, Tensor], Any], **more: nn.Module) -> Net:
    return Net(run, a=conv(4, 12), p=nn.PixelShuffle(2), n=BN(3), **more)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_folds(spelling: str) -> None:
    _, fused = compiled(network(SPELLINGS[spelling]), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "others": 1}


def test_twice_and_with_scales_around_it() -> None:
    model = Net(
        lambda s, x: s.m(s.q(s.n(s.p(s.a(x) * s.g)) + s.h)),
        a=conv(4, 48), p=nn.PixelShuffle(2), q=nn.PixelShuffle(2), n=BN(12), m=BN(3),
        g=nn.Parameter(torch.zeros(48, 1, 1)), h=nn.Parameter(torch.zeros(12, 1, 1)),
    )  # fmt: skip
    _, fused = compiled(model, 4)
    found = counted(left(fused, 4))
    assert found["convolutions"] == 1
    assert found.get("batch_norms", 0) <= 1  # between the two shuffles nothing affine takes it up


def test_a_shifted_scale_before_a_padded_shuffle_keeps_its_border_term() -> None:
    model = Net(lambda s, x: s.n(s.p(s.a(s.m(x)))), a=conv(4, 12), p=nn.PixelShuffle(2), n=BN(3), m=BN(4))
    _, fused = compiled(model, 4, **only(CollapseChains(), FoldThroughShuffle()))
    assert counted(left(fused, 4)) == {"convolutions": 1, "border_terms": 1, "others": 1}


def test_declined_where_the_shuffled_image_is_read_too() -> None:
    _, fused = compiled(network(lambda s, x: (s.n(y := s.p(s.a(x))), torch.relu(y))), 4, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "p", "is read inside the region and by relu")


def test_declined_where_the_convolution_is_read_too() -> None:
    _, fused = compiled(network(lambda s, x: (s.n(s.p(y := s.a(x))), torch.relu(y))), 4, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "a", "is read inside the region and by relu")


def test_declined_behind_an_activation() -> None:
    _, fused = compiled(network(lambda s, x: s.n(s.p(torch.relu(s.a(x))))), 4, **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "n", "is shuffled from relu, which is no affine map")
    assert counted(left(fused, 4))["batch_norms"] == 1


def test_a_scale_behind_a_rewritten_value_is_none_of_its_business() -> None:
    model = Net(lambda s, x: (s.n(s.a(x) + s.b(x)), s.b(x)), a=conv(4, 4), b=conv(4, 4, 1), n=BN(4))
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == {"convolutions": 2}
