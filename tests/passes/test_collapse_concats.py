"""collapse_concats alone: branches of one value, concatenated, are one map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import repfx
from passes.collapse_concats import CollapseConcats
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only

ALONE = only(CollapseConcats())


def chunked(s: Net, x: Tensor) -> Tensor:
    a, b, c = x.chunk(3, 1)
    return torch.cat([a, s.a(b), s.b(c)], 1)


def branches() -> dict[str, nn.Module]:
    return {"a": conv(4, 4, 3, groups=4), "b": conv(4, 4, (1, 5), groups=4)}


def test_chunk_conv_cat() -> None:
    _, fused = compiled(Net(chunked, **branches()), 12, **ALONE)
    assert counted(left(fused, 12)) == {"convolutions": 1}


def test_clones_carry_their_order() -> None:
    """cat of two depthwise branches of one value: one convolution and a channel order, not a multiplier of two."""
    _, fused = compiled(Net(lambda s, x: torch.cat([s.a(x), s.b(x)], 1), **branches()), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "permutations": 1}


def test_declined_for_unequal_output_sizes() -> None:
    model = Net(lambda s, x: torch.cat([s.a(x), s.b(x)], 1), a=conv(4, 4, 3, 0), b=conv(4, 4, 1))
    fused = repfx.reparameterize(model.eval().double(), verify=False, **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "cat", "concatenates maps whose output sizes differ", "collapse_concats")


def test_declined_where_a_branch_is_read_outside() -> None:
    model = Net(lambda s, x: torch.cat([y := s.a(x), s.b(x)], 1) * torch.cat([y, y], 1), **branches())
    _, fused = compiled(model, 4, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "a", "is read inside the region and by", "collapse_concats")


def test_dense_branches_do_not_grow() -> None:
    model = Net(lambda s, x: torch.cat([s.a(x), s.b(x)], 1), a=conv(4, 4, 5), b=conv(4, 4, 1))
    _, fused = compiled(model, 4, **ALONE)
    assert_declined(fused, Reason.COST, "cat", "a dense convolution would grow", "collapse_concats")
    assert left(fused, 4).convolutions == 2


def test_macs_objective_keeps_cheap_branches() -> None:
    _, fused = compiled(Net(chunked, **branches()), 12, objective="macs", **ALONE)
    assert_declined(fused, Reason.COST, "cat", "multiply-accumulates per pixel", "collapse_concats")
    assert left(fused, 12).convolutions == 2


def test_different_origins_stay() -> None:
    model = Net(lambda s, x: torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x))], 1), **branches())
    _, fused = compiled(model, 4, **ALONE)
    assert left(fused, 4).concats == 1
    model = Net(lambda s, x: torch.cat([s.a(y := torch.relu(x)), s.b(y)], 1), **branches())  # one step away
    _, fused = compiled(model, 4, **ALONE)
    assert left(fused, 4).concats == 0


def test_concatenation_along_another_axis_stays() -> None:
    for axis, concats in ((2, 1), (1, 0)):
        model = Net(lambda s, x, axis=axis: torch.cat([s.a(x), s.b(x)], axis), **branches())
        _, fused = compiled(model, 4, example=(8, 8), **ALONE)
        assert left(fused, 4).concats == concats


def swapped(s: Net, x: Tensor) -> Tensor:
    a, b = s.c(x).chunk(2, 1)
    return torch.cat([b, s.a(a)], 1)


def test_the_map_before_a_fork_takes_its_branches_up_where_they_alone_would_grow() -> None:
    """A 1x1 of one half makes a sparse 1x1 of the whole; the convolution before it is dense in any case."""
    for objective in ("single-branch", "macs"):
        _, fused = compiled(Net(swapped, c=conv(6, 8), a=conv(4, 4, 1)), 6, objective=objective, **ALONE)
        assert counted(left(fused, 6)) == {"convolutions": 1}


def test_the_map_before_a_fork_grows_for_no_branch() -> None:
    _, fused = compiled(Net(swapped, c=conv(8, 8, groups=8), a=conv(4, 4, 1)), 8, **ALONE)
    assert_declined(fused, Reason.COST, "cat", "a dense convolution would grow from 16 to 64", "collapse_concats")
    assert left(fused, 8).convolutions == 2
    costs = [decline for decline in repfx.report(fused).declines if decline.reason is Reason.COST]
    assert len(costs) == 1  # the first try says it all


def test_the_map_behind_a_join_takes_its_branches_up() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return s.c(torch.cat([b, 3 * a], 1))

    _, fused = compiled(Net(run, c=conv(8, 5)), 8, example=(8, 8), **ALONE)
    assert counted(left(fused, 8)) == {"convolutions": 1}


def test_the_maps_before_and_behind() -> None:
    """A depthwise branch of many channels, between two 1x1 of few: with either of them alone it would grow."""
    parts = {"c": conv(2, 8, 1, bias=False), "a": conv(4, 4, 3, groups=4), "d": conv(8, 2, 1)}
    model = Net(lambda s, x: s.d(swapped(s, x)), **parts)
    _, fused = compiled(model, 2, **ALONE)
    assert counted(left(fused, 2)) == {"convolutions": 1}


def test_parts_in_their_order_hide_nothing() -> None:
    """A split and the concatenation of its parts is the value itself, whose neighbours then meet."""
    model = Net(lambda s, x: s.n(torch.cat(list(s.c(x).chunk(2, 1)), 1)), c=conv(4, 4), n=nn.BatchNorm2d(4))
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == {"convolutions": 1}
