"""carry_permutations: an order of channels goes into the weights of all its readers, or stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import repfx
from passes.carry_permutations import CarryPermutations
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only

ALONE = only(CarryPermutations())
ORDER = torch.tensor([2, 0, 3, 1])


def permuted(run: Any, **more: object) -> Net:
    return Net(run, a=conv(4, 4), b=conv(4, 3, 1), i=ORDER, **more)


def pick(s: Net, x: Tensor) -> Tensor:
    return torch.index_select(x, 1, s.i)  # type: ignore[arg-type]


def test_through_an_activation_into_a_dense_convolution() -> None:
    _, fused = compiled(permuted(lambda s, x: s.b(torch.relu(pick(s, s.a(x))))), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 2, "others": 1}


def test_into_all_readers_and_through_a_depthwise_convolution() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.relu(pick(s, s.a(x)))
        return s.b(s.d(y) + y)

    _, fused = compiled(permuted(run, d=conv(4, 4, 5, groups=4)), 4, **ALONE)
    assert left(fused, 4).permutations == 0


def test_along_a_residual_stream() -> None:
    """One order throughout: every block reads and writes the reordered stream."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = pick(s, s.a(x))
        for block in (s.c, s.d):
            x = x + block(torch.relu(x))
        return s.b(torch.relu(x))

    _, fused = compiled(permuted(run, c=conv(4, 4), d=conv(4, 4)), 4, **ALONE)
    assert left(fused, 4).permutations == 0


def test_declined_where_the_order_reaches_the_output() -> None:
    _, fused = compiled(permuted(lambda s, x: torch.relu(pick(s, torch.relu(s.a(x))))), 4, **ALONE)
    found = [d for d in repfx.report(fused).declines if d.rule == "carry_permutations"]
    assert {d.reason for d in found} <= {Reason.OUTSIDE_USE, Reason.NOT_EXACT}
    assert_declined(fused, Reason.OUTSIDE_USE, found[0].subject, "its channel order reaches an output")
    assert left(fused, 4).permutations == 1


def test_declined_where_channels_are_told_apart() -> None:
    model = permuted(lambda s, x: s.b(torch.softmax(pick(s, torch.relu(x)), 1).cumsum(1)))
    _, fused = compiled(model, 4, example=(8, 8), **ALONE)
    assert_declined(
        fused, Reason.NOT_EXACT, "index_select", "its channel order cannot pass softmax", "carry_permutations"
    )
    assert left(fused, 4).permutations == 1


def test_an_order_that_meets_another_stays() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return s.b(torch.relu(pick(s, y) + pick(s, pick(s, s.a(y)))))

    _, fused = compiled(permuted(run), 4, **ALONE)
    assert_declined(
        fused, Reason.NOT_EXACT, "index_select_1", "its channel order cannot pass x, which tells channels apart"
    )
    assert left(fused, 4).permutations == 1  # of three


def test_grouped_readers_mix_only_their_group() -> None:
    model = permuted(lambda s, x: s.g(torch.relu(pick(s, s.a(x)))), g=conv(4, 4, groups=2))
    _, fused = compiled(model, 4, **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "index_select", "its channel order cannot pass g", "carry_permutations")
    assert left(fused, 4).permutations == 1


def test_depthwise_branches_of_a_clone_cost_no_permutation() -> None:
    """CopyConv: the interleaved weights of one grouped convolution, its order carried into the next one."""
    model = Net(
        lambda s, x: s.p(torch.relu(s.n(torch.cat([s.a(x), s.b(x)], 1)))),
        a=conv(4, 4, 3, stride=2, groups=4), b=conv(4, 4, 7, stride=2, groups=4), n=nn.BatchNorm2d(8), p=conv(8, 3, 1),
    )  # fmt: skip
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == {"convolutions": 2, "others": 1}


def test_through_what_does_the_same_to_every_channel_and_no_further() -> None:
    """A pooled and flattened order ends in the head; a norm with one scale per channel tells channels apart."""
    run = lambda s, x: s.h(s.p(torch.relu(pick(s, s.a(x)))).flatten(1))  # noqa: E731
    _, fused = compiled(permuted(run, p=nn.AdaptiveAvgPool2d(1), h=nn.Linear(4, 3)), 4, **ALONE)
    assert left(fused, 4).permutations == 0
    for affine, kept in ((False, 0), (True, 1)):
        model = permuted(lambda s, x: s.b(s.n(pick(s, s.a(x)))), n=nn.InstanceNorm2d(4, affine=affine))
        _, fused = compiled(model, 4, ((8, 8), (3, 5)), **ALONE)
        assert left(fused, 4).permutations == kept
