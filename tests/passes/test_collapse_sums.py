"""collapse_sums alone: branches of one value, added, are one map; terms of another origin stay terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passes.collapse_sums import CollapseSums
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only

ALONE = only(CollapseSums())


def branches(run: Any, **more: nn.Module) -> Net:
    return Net(run, a=conv(4, 4), b=conv(4, 4, 1), n=nn.BatchNorm2d(4), **more)


def test_repvgg_block() -> None:
    _, fused = compiled(branches(lambda s, x: s.a(x) + s.b(x) + s.n(x)), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_a_term_of_another_origin_stays_a_term() -> None:
    _, fused = compiled(branches(lambda s, x: s.a(x) + torch.tanh(x) + s.b(x)), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "adds": 1, "others": 1}


def test_factors_of_terms_beside_another_origin() -> None:
    _, fused = compiled(branches(lambda s, x: 0.5 * s.a(x) + torch.tanh(x) - 2 * s.b(x)), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "adds": 1, "others": 1}


def test_nested_sums_with_factors() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return (s.a(x) - 2 * s.b(x)) / 3 + (x - s.n(x)) * 0.5

    _, fused = compiled(branches(run), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_aliased_total_is_not_added_wrongly() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        a = s.a(x)
        total = a
        total += s.b(x)
        return total + a  # 2 (a + b): a and total are one tensor

    _, fused = compiled(branches(run), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_declined_for_unequal_output_sizes() -> None:
    model = Net(lambda s, x: s.a(x) + s.b(x), a=conv(4, 4, 3, 0), b=conv(4, 4, 1))
    _, fused = compiled(model, 4, ((3, 3),), **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "add", "output sizes differ", "collapse_sums")
    cropped = Net(lambda s, x: s.a(x) + s.b(x)[:, :, 1:-1, 1:-1], a=conv(4, 4, 3, 0), b=conv(4, 4, 1))
    _, fused = compiled(cropped, 4, **ALONE)  # one step away
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_declined_for_unequal_strides() -> None:
    model = Net(lambda s, x: s.a(x) + s.b(x), a=conv(4, 4, 3, stride=2), b=conv(4, 4, 1))
    _, fused = compiled(model, 4, ((1, 1),), **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "add", "adds maps of stride 2x2 and 1x1", "collapse_sums")


def test_declined_where_a_branch_is_read_outside() -> None:
    model = branches(lambda s, x: torch.relu(s.b(x) + (y := s.a(x))) * y)
    _, fused = compiled(model, 4, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "a", "is read inside the region and by mul", "collapse_sums")
    assert left(fused, 4).convolutions == 2


def test_declined_for_its_cost() -> None:
    model = Net(lambda s, x: s.a(x) + s.b(x), a=conv(4, 4, (1, 7)), b=conv(4, 4, (7, 1)))
    _, fused = compiled(model, 4, **ALONE)
    assert_declined(fused, Reason.COST, "add", "a dense convolution would grow", "collapse_sums")
    depthwise = Net(lambda s, x: s.a(x) + s.b(x), a=conv(4, 4, (1, 7), groups=4), b=conv(4, 4, (7, 1), groups=4))
    _, fused = compiled(depthwise, 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_the_map_before_a_fork_takes_its_branches_up_where_they_alone_would_grow() -> None:
    """The sum of two halves of a convolution's channels is a convolution to half as many."""

    def run(s: Net, x: Tensor) -> Tensor:
        a, b = s.c(x).chunk(2, 1)
        return a - b

    for objective in ("single-branch", "macs"):
        _, fused = compiled(Net(run, c=conv(6, 8)), 6, objective=objective, **ALONE)
        assert counted(left(fused, 6)) == {"convolutions": 1}
        assert left(fused, 6).parameters == 6 * 4 * 9 + 4


def test_a_scale_that_is_left_has_no_shift_where_none_was_added() -> None:
    model = Net(lambda s, x: x + s.c(x), c=conv(4, 4, 1, groups=4, bias=False))
    _, fused = compiled(model, 4, objective="macs", **ALONE)
    assert counted(left(fused, 4)) == {"muls": 1}
    assert left(fused, 4).parameters == 4  # as before: "macs" promises that none is added
