"""split_concats alone: a convolution of a concatenation is a sum of convolutions inside the branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfx
from passes.collapse_chains import CollapseChains
from passes.split_concats import SplitConcats
from repfx.decline import Reason
from tests import hostile
from tests.compiling import Net, assert_declined, compiled, conv, counted, declines, left, only

ALONE = only(SplitConcats())


def mixed(s: Net, x: Tensor) -> Tensor:
    return s.c(torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x))], 1))


def thin(kernel: Any = 3, outer: Any = 1, **options: Any) -> dict[str, nn.Module]:
    """Two branches of other origins than each other, wider than what the mixing convolution leaves."""
    return {"a": conv(4, 8, kernel), "b": conv(4, 6, 1), "c": conv(14, 4, outer, **options)}


@pytest.mark.parametrize("objective", ["single-branch", "macs"])
def test_branches_take_their_slices(objective: str) -> None:
    _, fused = compiled(Net(mixed, **thin()), 4, objective=objective, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 2, "adds": 1, "others": 2}
    (first, second) = repfx.report(fused).merges
    assert {first.before, second.before} == {"2 conv, 1 cat", "1 conv"}


def test_the_bias_of_the_mixing_convolution_is_added_once() -> None:
    original, fused = compiled(Net(mixed, **thin()), 4, **ALONE)
    assert left(fused, 4).concats == 0
    x = torch.zeros(1, 4, 5, 5, dtype=torch.float64)
    hostile.assert_same(original, fused, x)


def test_a_padded_convolution_reaches_pointwise_branches() -> None:
    """Branch biases become border terms."""
    parts = {"a": conv(4, 8, 1), "b": conv(4, 6, 1), "c": conv(14, 4, 3)}
    _, fused = compiled(Net(mixed, **parts), 4, **ALONE)
    found = left(fused, 4)
    assert (found.convolutions, found.concats, found.border_terms) == (2, 0, 2)


def test_a_padded_convolution_does_not_reach_a_padded_branch() -> None:
    """3x3 after 3x3 is no convolution: no branch takes its slice."""
    both = {"a": conv(4, 8, 3), "b": conv(4, 6, 3), "c": conv(14, 4, 3)}
    _, fused = compiled(Net(mixed, **both), 4, **ALONE)
    assert left(fused, 4).convolutions == 3
    assert left(fused, 4).concats == 1
    _, fused = compiled(Net(mixed, **{**both, "c": conv(14, 4, 1)}), 4, **ALONE)  # one step away
    assert counted(left(fused, 4)) == {"convolutions": 2, "adds": 1, "others": 2}


def test_strided_and_interleaved_branches() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x)), s.d(torch.sigmoid(x))], 1)
        return s.c(y.flip(1))

    parts = {
        "a": conv(4, 6, 3, stride=2), "b": conv(4, 5, 1, 0, stride=2), "d": conv(4, 6, (1, 5), stride=2),
        "c": conv(17, 3, 1),
    }  # fmt: skip
    _, fused = compiled(Net(run, **parts), 4, **only(CollapseChains(), SplitConcats()))
    assert left(fused, 4).convolutions == 3
    assert left(fused, 4).concats == 0


def test_tokens() -> None:
    model = Net(
        lambda s, x: s.c(torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x))], -1)),
        a=nn.Linear(4, 8), b=nn.Linear(4, 7, bias=False), c=nn.Linear(15, 3),
    )  # fmt: skip
    original = hostile.prepared(model, 0)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,), verify=False, **ALONE)
    hostile.assert_same(original, fused, x)
    assert left(fused, 5, (4,)).linears == 2


def test_a_bare_branch_keeps_a_convolution_of_its_slice_where_that_is_less() -> None:
    model = Net(lambda s, x: s.c(torch.cat([s.a(torch.relu(x)), torch.tanh(x)], 1)), a=conv(4, 32, 1), c=conv(36, 3, 1))
    _, fused = compiled(model, 4, example=(8, 8), **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 2, "adds": 1, "others": 2}


def test_two_bare_branches_are_declined() -> None:
    model = Net(
        lambda s, x: s.c(torch.cat([s.a(torch.relu(x)), torch.tanh(x), torch.sigmoid(x)], 1)),
        a=conv(4, 32, 1), c=conv(40, 3, 1),
    )  # fmt: skip
    _, fused = compiled(model, 4, example=(8, 8), **ALONE)
    assert_declined(fused, Reason.COST, "c", "would not make the network smaller or shorter", "split_concats")
    assert left(fused, 4).convolutions == 2


def test_a_wide_mixing_convolution_is_declined() -> None:
    """A 3x3 to 8 channels and a 1x1 to 32 would be one 3x3 to 32."""
    parts = {"a": conv(4, 8, 3), "b": conv(4, 6, 1), "c": conv(14, 32, 1)}
    _, fused = compiled(Net(mixed, **parts), 4, **ALONE)
    assert_declined(fused, Reason.COST, "c", "a dense convolution would grow", "split_concats")
    assert_declined(fused, Reason.COST, "c", "a sum of 32 channels for 14 joined", "split_concats")
    assert left(fused, 4).concats == 1


def test_declined_where_the_concatenation_is_read_elsewhere() -> None:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x))], 1)
        return s.c(y), torch.relu(y)

    _, fused = compiled(Net(run, **thin()), 4, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "cat", "is read inside the region and by relu", "split_concats")
    assert left(fused, 4).convolutions == 3


def test_a_branch_read_elsewhere_keeps_its_slice() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        a = s.a(torch.relu(x))
        return s.c(torch.cat([a, s.b(torch.tanh(x))], 1)) * a.sum(1, keepdim=True)

    _, fused = compiled(Net(run, **{**thin(), "b": conv(4, 32, 1), "c": conv(40, 3, 1)}), 4, **ALONE)
    assert left(fused, 4).convolutions == 3
    assert left(fused, 4).concats == 0


def test_a_branch_that_is_there_twice() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        a = s.a(torch.relu(x))
        return s.c(torch.cat([a, a], 1))

    _, fused = compiled(Net(run, a=conv(4, 16, 1), c=conv(32, 3, 1)), 4, **ALONE)
    assert left(fused, 4).concats == 0


def test_grouped_readers_are_no_mixture() -> None:
    parts = {"a": conv(4, 8, 1), "b": conv(4, 8, 1), "c": conv(16, 4, 1, groups=2)}
    _, fused = compiled(Net(mixed, **parts), 4, **ALONE)
    assert left(fused, 4).concats == 1
    assert not declines(fused)
