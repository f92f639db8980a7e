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
