"""fold_scales alone: a scale and shift goes backward into all branches or forward into all readers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import repfx
from passes.fold_scales import FoldScales
from repfx.decline import Reason
from tests import hostile
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only

ALONE = only(FoldScales())
BN = nn.BatchNorm2d


def test_backward_over_a_concatenation() -> None:
    model = Net(
        lambda s, x: s.n(torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x))], 1)), a=conv(4, 2), b=conv(4, 4), n=BN(6)
    )
    _, fused = compiled(model, 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 2, "concats": 1, "others": 2}


def test_backward_over_a_sum_shifts_once() -> None:
    model = Net(lambda s, x: s.n(s.a(torch.relu(x)) + s.b(torch.tanh(x))), a=conv(4, 4), b=conv(4, 4), n=BN(4))
    _, fused = compiled(model, 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 2, "adds": 1, "others": 2}


def test_forward_into_all_readers() -> None:
    def model(padding: int) -> Net:
        return Net(
            lambda s, x: torch.relu(s.a(y := s.n(torch.relu(x)))) * s.b(y),
            n=BN(4), a=conv(4, 4, 3, padding), b=conv(4, 4, 3, padding),
        )  # fmt: skip

    _, fused = compiled(model(0), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 2, "muls": 1, "others": 2}
    _, fused = compiled(model(1), 4, **ALONE)
    assert left(fused, 4).batch_norms + left(fused, 4).border_terms in (1, 2), "either it stays or both take a border"


def test_a_branch_that_is_read_elsewhere_takes_no_scale() -> None:
    model = Net(
        lambda s, x: torch.relu(s.n(torch.cat([y := s.a(torch.relu(x)), s.b(torch.tanh(x))], 1))).sum(1) * y.sum(1),
        a=conv(4, 2), b=conv(4, 4), n=BN(6),
    )  # fmt: skip
    _, fused = compiled(model, 4, **ALONE)
    found = left(fused, 4)
    assert (found.convolutions, found.batch_norms) == (2, 0)
    assert found.muls == 2, "the scale of the shared branch must be executed somewhere"


def test_a_reader_that_is_not_affine_keeps_the_norm() -> None:
    model = Net(lambda s, x: torch.relu(y := s.n(torch.relu(x))) * s.b(y), n=BN(4), b=conv(4, 4, 1))
    _, fused = compiled(model, 4, **ALONE)
    assert left(fused, 4).batch_norms == 1
    assert_declined(fused, Reason.NOT_EXACT, "n", "nothing that reads it can take it up", "fold_scales")


def test_declined_into_a_reader_that_extends_the_border_otherwise() -> None:
    def model(mode: str) -> Net:
        return Net(
            lambda s, x: s.a(y := s.p(s.n(torch.relu(x)))).sum(1) * s.b(y).sum(1),
            n=BN(4), p=nn.Identity(), a=conv(4, 4, 1), b=conv(4, 4, padding_mode=mode),
        )  # fmt: skip

    for mode in ("reflect", "zeros"):
        sizes = ((8, 8), (4, 7))
        _, fused = compiled(model(mode), 4, sizes)
        assert left(fused, 4).batch_norms == 0, mode


def test_declined_for_unknown_parts() -> None:
    model = Net(lambda s, x: s.n(torch.cat([torch.relu(x), s.a(x)], 1)), a=conv(4, 4), n=BN(8))
    _, fused = compiled(model, 4, **ALONE)
    found = left(fused, 4)
    assert found.batch_norms + found.muls >= 1
    if found.batch_norms:
        assert_declined(fused, Reason.UNKNOWN_FACT, "relu", "channel count is not known", "fold_scales")


def test_a_reader_that_was_lifted_over_an_earlier_value_keeps_the_norm() -> None:
    """norm(x.transpose(2, 3)).transpose(2, 3) is norm(x): a map of x, not of the norm's output."""
    model = Net(lambda s, x: (s.b(n := s.n(x.transpose(2, 3))), n.transpose(2, 3)), n=BN(4), b=conv(4, 4, 1))
    _, fused = compiled(model, 4, example=(8, 8), **ALONE)
    assert (left(fused, 4).convolutions, left(fused, 4).batch_norms) == (1, 1)
    assert not repfx.report(fused).merges


def test_a_reader_that_names_an_earlier_value_is_no_reader_of_the_scale() -> None:
    """reshape_as is lifted as a map of the tokens before the norm: the scale is in it already."""

    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.relu(x)
        normed = s.n(tokens.flatten(0, 1))
        return s.a(normed.reshape_as(tokens)), s.b(normed)

    model = Net(run, n=nn.BatchNorm1d(4), a=nn.Linear(4, 3), b=nn.Linear(4, 5))
    original = hostile.prepared(model, 0)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,), verify=False, **ALONE)
    hostile.assert_same(original, fused, x)
    assert_declined(fused, Reason.NOT_EXACT, "reshape_as", "nothing that reads it can take it up", "fold_scales")
    assert not repfx.report(fused).merges
