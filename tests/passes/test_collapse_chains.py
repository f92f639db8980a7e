"""collapse_chains alone: two maps in a row are one; declined with reason and place where they are not."""

from __future__ import annotations

import torch
from torch import nn

from passes.collapse_chains import CollapseChains
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, conv, counted, declines, left, only

ALONE = only(CollapseChains())
DW = {"groups": 4}


def two(first: nn.Module, second: nn.Module) -> Net:
    return Net(lambda s, x: s.second(s.first(x)), first=first, second=second)


def test_conv_norm_and_norm_conv_are_one_conv() -> None:
    _, fused = compiled(two(conv(4, 6), nn.BatchNorm2d(6)), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1}
    _, fused = compiled(two(nn.BatchNorm2d(4), conv(4, 6)), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "border_terms": 1}
    assert not declines(fused)


def test_a_long_chain_is_one_conv() -> None:
    parts = [conv(4, 4, (1, 5), **DW), nn.BatchNorm2d(4), conv(4, 4, (5, 1), **DW), nn.BatchNorm2d(4)]
    model = Net(lambda s, x: s.parts(x) * 2 - 1, parts=nn.Sequential(*parts))
    _, fused = compiled(model, 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "border_terms": 1}


def test_declined_on_the_frame() -> None:
    _, fused = compiled(two(conv(4, 4, **DW), conv(4, 4, **DW)), 4, **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "second", "differ on the frame", "collapse_chains")
    _, fused = compiled(two(conv(4, 4, 3, 2, **DW), conv(4, 4, 3, 0, **DW)), 4, **ALONE)  # one step away
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_declined_where_the_middle_is_read_too() -> None:
    model = Net(lambda s, x: torch.relu(s.n(y := s.a(x))) * y, a=conv(4, 4), n=nn.BatchNorm2d(4))
    _, fused = compiled(model, 4, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "a", "is read inside the region and by mul", "collapse_chains")
    assert left(fused, 4).batch_norms + left(fused, 4).muls > 1


def test_declined_where_the_middle_is_returned() -> None:
    model = Net(lambda s, x: (s.n(y := s.a(x)), y), a=conv(4, 4), n=nn.BatchNorm2d(4))
    _, fused = compiled(model, 4, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "a", "by the output", "collapse_chains")


def test_dense_growth_is_declined_for_its_cost() -> None:
    _, fused = compiled(two(conv(4, 4, (1, 5)), conv(4, 4, (5, 1))), 4, **ALONE)
    assert_declined(fused, Reason.COST, "second", "a dense convolution would grow", "collapse_chains")
    _, fused = compiled(two(conv(4, 4, (1, 5), **DW), conv(4, 4, (5, 1), **DW)), 4, **ALONE)
    assert left(fused, 4).convolutions == 1


def test_macs_objective_keeps_factorised_pairs() -> None:
    model = two(conv(4, 4, (1, 5), **DW), conv(4, 4, (5, 1), **DW))
    _, fused = compiled(model, 4, objective="macs", **ALONE)
    assert_declined(fused, Reason.COST, "second", "multiply-accumulates per pixel", "collapse_chains")
    assert left(fused, 4).convolutions == 2


def test_excluded_modules_stay() -> None:
    _, fused = compiled(two(conv(4, 4), nn.BatchNorm2d(4)), 4, exclude=("second",), **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "batch_norms": 1}
    _, fused = compiled(two(conv(4, 4), nn.BatchNorm2d(4)), 4, **ALONE)  # one step away
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_a_frame_is_padded_after_a_dense_convolution_not_before() -> None:
    """Merged, the convolution would be computed on the frame too."""
    run = Net(lambda s, x: torch.relu(nn.functional.pad(s.a(x), (3, 3, 3, 3))), a=conv(4, 8, 1))
    _, fused = compiled(run, 4, **ALONE)
    assert fused.a.padding == (0, 0)
    assert_declined(fused, Reason.COST, "pad", "a dense convolution would grow", "collapse_chains")
