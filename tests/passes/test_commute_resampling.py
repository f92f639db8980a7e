"""commute_resampling alone: per-pixel maps pass what does the same to every channel; declined one step away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from passes.commute_resampling import CommuteResampling
from repfx.decline import Reason
from tests import hostile
from tests.compiling import Net, assert_declined, compiled, conv, counted, declines, left, only

ALONE = only(CommuteResampling())
BN = nn.BatchNorm2d
TOKENS = ((7,), (1,), (12,))


class Tokens(Net):
    """A network over tokens (B, N, C), fed by images of shape (C, N)."""

    def forward(self, x: Tensor) -> Any:
        """x (B, C, N)."""
        return self.run(self, x.transpose(1, 2))


def head(pool: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> Net:
    return Net(lambda s, x: s.h(pool(s, s.n(torch.relu(x)))), n=BN(4), h=nn.Linear(4, 3), **parts)


HEADS: dict[str, Net] = {
    "mean method": head(lambda s, y: y.mean((2, 3))),
    "mean of the last axes": head(lambda s, y: y.mean([-2, -1])),
    "torch.mean": head(lambda s, y: torch.mean(y, dim=(-1, -2))),
    "one mean after another": head(lambda s, y: y.mean(-1).mean(dim=2)),
    "keepdim, flatten": head(lambda s, y: torch.flatten(y.mean((2, 3), keepdim=True), 1)),
    "keepdim by position, Flatten": head(lambda s, y: s.f(y.mean((2, 3), True)), f=nn.Flatten()),
    "keepdim, squeeze twice": head(lambda s, y: y.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)),
    "pool, flatten": head(lambda s, y: s.p(y).flatten(1), p=nn.AdaptiveAvgPool2d(1)),
    "functional pool, flatten": head(lambda s, y: F.adaptive_avg_pool2d(y, (1, 1)).flatten(1)),
    "pool, view by its size": head(lambda s, y: (z := s.p(y)).view(z.size(0), -1), p=nn.AdaptiveAvgPool2d((1, 1))),
    "pool, view by an earlier size": head(lambda s, y: s.p(y).view(y.shape[0], -1), p=nn.AdaptiveAvgPool2d((1, 1))),
    "pool, reshape to channels": head(lambda s, y: s.p(y).reshape(-1, 4), p=nn.AdaptiveAvgPool2d(1)),
    "pool, a pixel": head(lambda s, y: s.p(y)[:, :, 0, 0], p=nn.AdaptiveAvgPool2d(1)),
    "a pixel": head(lambda s, y: y[..., 0, 0]),
    "flatten, mean": head(lambda s, y: y.flatten(2).mean(2)),
    "flatten, transpose, mean of tokens": head(lambda s, y: y.flatten(2).transpose(1, 2).mean(1)),
    "permute, mean": head(lambda s, y: y.permute(0, 2, 3, 1).mean((1, 2))),
    "permute, one token": head(lambda s, y: y.permute(0, 2, 3, 1).flatten(1, 2)[:, 0]),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_norm_before_a_global_pool_goes_into_the_head(name: str) -> None:
    _, fused = compiled(HEADS[name], 4, example=None, **ALONE)
    found = left(fused, 4)
    assert (found.batch_norms, found.muls, found.linears) == (0, 0, 1)
    assert not declines(fused)


RESIZES: dict[str, tuple[Callable[[Net, Tensor], Tensor], dict[str, nn.Module]]] = {
    "nearest": (lambda s, y: s.u(y), {"u": nn.UpsamplingNearest2d(scale_factor=2)}),
    "bilinear": (lambda s, y: s.u(y), {"u": nn.UpsamplingBilinear2d(scale_factor=2)}),
    "bicubic": (lambda s, y: s.u(y), {"u": nn.Upsample(scale_factor=3, mode="bicubic")}),
    "align_corners": (lambda s, y: F.interpolate(y, None, 2, "bilinear", True), {}),
    "to a size": (lambda s, y: F.interpolate(y, size=(5, 9), mode="bilinear"), {}),
    "to the size of another": (lambda s, y: F.interpolate(y, size=s.x.shape[-2:], mode="nearest"), {}),  # type: ignore[arg-type]
    "downwards": (lambda s, y: F.interpolate(y, scale_factor=0.5, mode="bilinear", antialias=True), {}),
    "uncounted padding": (lambda s, y: s.p(y), {"p": nn.AvgPool2d(3, 2, 1, count_include_pad=False)}),
    "ceil mode": (lambda s, y: s.p(y), {"p": nn.AvgPool2d(3, 2, ceil_mode=True)}),
    "ceil mode, uncounted": (
        lambda s, y: s.p(y),
        {"p": nn.AvgPool2d(4, 3, 2, ceil_mode=True, count_include_pad=False)},
    ),
    "adaptive": (lambda s, y: s.p(y), {"p": nn.AdaptiveAvgPool2d((3, 2))}),
    "adaptive, one axis": (lambda s, y: s.p(y), {"p": nn.AdaptiveAvgPool2d((None, 2))}),
    "mean of a row, kept": (lambda s, y: y.mean(3, keepdim=True), {}),
}


@pytest.mark.parametrize("name", RESIZES)
def test_a_norm_after_a_resize_goes_into_the_convolution_before_it(name: str) -> None:
    resize, parts = RESIZES[name]

    def run(s: Net, x: Tensor) -> Tensor:
        s.__dict__["x"] = x
        return torch.relu(s.n(resize(s, s.a(x))))

    _, fused = compiled(Net(run, a=conv(4, 6), n=BN(6), **parts), 4, **ALONE)
    found = left(fused, 4, (12, 12))
    assert (found.convolutions, found.batch_norms, found.muls) == (1, 0, 0)
    assert not declines(fused, Reason.NOT_EXACT) or "uncounted" in name or "ceil" in name


def test_a_norm_before_a_resize_goes_into_a_padded_reader_as_a_border_term() -> None:
    model = Net(lambda s, x: s.b(s.u(s.n(torch.relu(x)))), n=BN(4), u=nn.Upsample(scale_factor=2), b=conv(4, 3))
    _, fused = compiled(model, 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "border_terms": 1, "others": 2}


def test_all_readers_take_it_through_their_own_resamplings() -> None:
    model = Net(
        lambda s, x: (s.a(y := s.n(torch.relu(x))), s.b(z := y.mean((2, 3), keepdim=True)), s.c(z.flatten(1))),
        n=BN(4), a=conv(4, 2, 1), b=conv(4, 3, 1), c=nn.Linear(4, 5),
    )  # fmt: skip
    _, fused = compiled(model, 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 2, "linears": 1, "others": 2}


def test_a_pixel_wise_convolution_moves_to_the_lower_resolution() -> None:
    model = Net(lambda s, x: s.b(s.u(s.a(x))), a=conv(4, 6), u=nn.Upsample(scale_factor=2), b=conv(6, 5, 1))
    original, fused = compiled(model, 4, **ALONE)
    before, after = left(original, 4), left(fused, 4)
    assert after.convolutions == 1
    assert after.macs == 2 * 64 * 4 * 5 * 9 < before.macs

    model = Net(lambda s, x: s.b(s.u(torch.relu(x))), u=nn.Upsample(scale_factor=2), b=conv(4, 3, 1))
    original, fused = compiled(model, 4, **ALONE)
    assert 4 * left(fused, 4).macs == left(original, 4).macs


def test_a_pixel_wise_convolution_and_a_head_are_one() -> None:
    for objective in ("single-branch", "macs"):
        model = Net(lambda s, x: s.h(s.a(torch.relu(x)).mean((2, 3))), a=conv(4, 6, 1), h=nn.Linear(6, 3))
        _, fused = compiled(model, 4, objective=objective, **ALONE)
        found = left(fused, 4)
        assert (found.convolutions, found.linears, found.macs) == (0, 1, 2 * 12)


def test_a_convolutional_head_takes_what_follows_the_flattening() -> None:
    model = Net(
        lambda s, x: s.n(torch.flatten(s.a(s.p(torch.relu(s.c(x)))), 1)), c=conv(4, 4), p=nn.AdaptiveAvgPool2d(1),
        a=conv(4, 3, 1), n=nn.BatchNorm1d(3),
    )  # fmt: skip
    _, fused = compiled(model, 4, **ALONE)
    found = left(fused, 4)
    assert (found.convolutions, found.batch_norms, found.muls) == (2, 0, 0)


def test_linear_maps_of_tokens_and_layouts() -> None:
    model = Tokens(lambda s, x: s.b(s.a(torch.relu(x)).mean(1)), a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    _, fused = compiled(model, 4, TOKENS, (7,), **ALONE)
    assert left(fused, 4, (7,)).linears == 1

    model = Net(  # type: ignore[assignment]  # ConvNeXt's layer scale behind a permutation
        lambda s, x: s.a(torch.relu(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2) * s.g,
        a=nn.Linear(4, 4), g=nn.Parameter(torch.ones(4, 1, 1)),
    )  # fmt: skip
    _, fused = compiled(model, 4, **ALONE)
    assert left(fused, 4).muls == 0


def test_a_norm_around_the_mean_leaves_mean_and_linear() -> None:
    model = Net(lambda s, x: s.h(s.m(s.n(torch.relu(x)).mean((2, 3)))), n=BN(4), m=nn.BatchNorm1d(4), h=nn.Linear(4, 3))
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == {"linears": 1, "others": 2}
    again = repfx.reparameterize(fused)
    assert not repfx.report(again).merges


# --- one step away ---------------------------------------------------------------------------------------------


def kept(model: nn.Module, reason: Reason, place: str, fact: str, **options: Any) -> nn.Module:
    """The batch norm or convolution stays, and the report says why."""
    original, fused = compiled(model, 4, **{**ALONE, **options})
    assert_declined(fused, reason, place, fact, "commute_resampling")
    assert left(fused, 4).macs == left(original, 4).macs
    return fused


def test_declined_where_a_reader_is_not_affine() -> None:
    model = Net(lambda s, x: torch.relu(s.n(torch.relu(x)).mean((2, 3))), n=BN(4))
    kept(model, Reason.NOT_EXACT, "n", "is read by relu_1")
    model = Net(lambda s, x: s.n(torch.relu(x)).mean((2, 3)), n=BN(4))
    kept(model, Reason.NOT_EXACT, "n", "is read by the output")


def test_declined_where_one_of_two_readers_cannot() -> None:
    model = Net(
        lambda s, x: s.h(y := s.n(torch.relu(x)).mean((2, 3))) * torch.relu(y).sum(), n=BN(4), h=nn.Linear(4, 3)
    )
    kept(model, Reason.NOT_EXACT, "n", "is read by relu_1")


def test_declined_where_the_convolution_before_is_read_too() -> None:
    model = Net(
        lambda s, x: torch.relu(s.n(s.u(y := s.a(x)))).mean() * y, a=conv(4, 6), n=BN(6), u=nn.Upsample(scale_factor=2)
    )
    kept(model, Reason.OUTSIDE_USE, "a", "is read by mul too, so n cannot move into it")


def test_declined_where_it_would_cost_more() -> None:
    model = Net(lambda s, x: s.h(s.a(torch.relu(x)).mean((2, 3))), a=conv(4, 6), h=nn.Linear(6, 7))
    kept(model, Reason.COST, "h", "would grow from 216 to 252 multiply-accumulates per pixel for some input sizes")
    model = Net(lambda s, x: s.h(s.a(torch.relu(x)).mean((2, 3))), a=conv(4, 1, 1), h=nn.Linear(1, 7))
    kept(model, Reason.COST, "h", "would grow from 11 to 28 multiply-accumulates")
    model = Net(
        lambda s, x: s.b(F.interpolate(s.a(x), size=(5, 4))), a=conv(4, 2), b=conv(2, 3, 1)
    )  # downwards for some sizes
    kept(model, Reason.COST, "b", "would grow from 72 to 108 multiply-accumulates")


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),  # counts the padding, but not what is beyond it
        nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=7),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=7),
        nn.MaxPool2d(2),
        nn.LPPool2d(2, 2),
    ],
    ids=str,
)
def test_rows_that_do_not_sum_to_one_keep_the_norm(pool: nn.Module) -> None:
    model = Net(lambda s, x: s.n(s.p(s.a(x))), a=conv(4, 6), n=BN(6), p=pool)
    _, fused = compiled(model, 4)
    assert left(fused, 4).batch_norms == 1
    assert_declined(fused, Reason.NOT_EXACT, "n", "follows p, which is no affine map", "fold_scales")


@pytest.mark.parametrize(
    "reduce",
    [
        lambda y: y.sum((2, 3)),
        lambda y: y.amax((2, 3)),
        lambda y: y.mean((1, 2)),  # the channels themselves
        lambda y: y.mean((0, 2, 3))[None],
        lambda y: y.mean((2, 3), dtype=torch.float32).double(),
        lambda y: y.flatten(1)[:, :4],  # a row of pixels
        lambda y: y.flatten(1).view(y.shape[0], 4, -1).transpose(0, 1).mean(2).transpose(0, 1) * 1,
    ],
)
def test_other_reductions_keep_the_norm(reduce: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda s, x: s.h(reduce(s.n(torch.relu(x)))), n=BN(4), h=nn.Linear(4, 3))
    _, fused = compiled(model, 4, ((4, 4), (2, 4)))
    assert left(fused, 4, (4, 4)).batch_norms == 1
    assert_declined(fused, Reason.NOT_EXACT, "n", "nothing that reads it can take it up", "fold_scales")


def test_a_view_that_cuts_the_batch_keeps_no_channels() -> None:
    """(2 B, 8, 1, 1) as (B, 8, 2): the second axis is as long as before, and is another one."""

    def run(s: Net, x: Tensor) -> Tensor:
        frames = torch.cat([x, x * 2], 0)
        return s.n(s.a(s.p(frames)).view(x.shape[0], 8, 2))

    model = Net(run, a=conv(4, 8, 1), p=nn.AdaptiveAvgPool2d(1), n=nn.BatchNorm1d(8))
    _, fused = compiled(model, 4, example=(4, 4))
    assert left(fused, 4).batch_norms == 1
    assert_declined(fused, Reason.NOT_EXACT, "n", "follows view, which is no affine map", "fold_scales")


def test_a_view_that_names_the_channels_keeps_their_number() -> None:
    def model(flat: Callable[[Tensor], Tensor]) -> Net:
        parts = {"a": conv(4, 6), "n": BN(6), "b": nn.Conv1d(6, 3, 1)}
        return Net(lambda s, x: s.b(flat(s.n(s.a(x)))), **parts)

    views = {
        "names": (lambda y: y.view(y.size(0), 6, -1), 2),
        "names none": (lambda y: y.flatten(2), 1),
    }
    for flat, maps in views.values():
        _, fused = compiled(model(flat), 4)
        assert left(fused, 4).convolutions == maps
        if maps == 2:
            assert_declined(fused, Reason.NOT_EXACT, "b", "follows a view that names the number of channels")
    parts = {"a": conv(4, 6), "m": BN(6), "n": nn.BatchNorm1d(6)}
    _, fused = compiled(Net(lambda s, x: s.n(s.m(s.a(x)).view(x.size(0), 6, -1)), **parts), 4)  # a scale keeps it
    assert (left(fused, 4).convolutions, left(fused, 4).batch_norms) == (1, 0)


def test_one_pixel_by_the_example_alone_is_no_fact() -> None:
    """A flattened 1x1 map of the example input is a larger one for others."""
    model = Net(lambda s, x: s.a(x).flatten(1) * 2 + 1, a=conv(4, 3, 2, 0, stride=2))
    _, fused = compiled(model, 4, ((2, 2), (4, 4), (8, 2)), example=(2, 2), **ALONE)
    assert left(fused, 4).muls == 1
    model = Net(lambda s, x: s.p(s.a(x)).flatten(1) * 2 + 1, a=conv(4, 3, 2, 0, stride=2), p=nn.AdaptiveAvgPool2d(1))
    _, fused = compiled(model, 4, ((2, 2), (4, 4), (8, 2)), example=(2, 2))  # one step away
    assert left(fused, 4).muls == 0


def test_excluded_resamplings_stay() -> None:
    model = Net(
        lambda s, x: s.h(s.p(s.n(torch.relu(x))).flatten(1)), n=BN(4), p=nn.AdaptiveAvgPool2d(1), h=nn.Linear(4, 3)
    )
    _, fused = compiled(model, 4, exclude=("p",), **ALONE)
    assert left(fused, 4).batch_norms == 1
    _, fused = compiled(model, 4, **ALONE)  # one step away
    assert left(fused, 4).batch_norms == 0


@pytest.mark.parametrize("name", [*HEADS, *(name for name in RESIZES if "another" not in name)])  # keeps a traced value
def test_the_gate_agrees(name: str) -> None:
    """With verify=True the probes run and find nothing."""
    if name in HEADS:
        model: nn.Module = HEADS[name]
    else:
        resize, parts = RESIZES[name]
        model = Net(lambda s, x: torch.relu(s.n(resize(s, s.a(x)))), a=conv(4, 6), n=BN(6), **parts)
    fused = repfx.reparameterize(hostile.prepared(model, 1), **ALONE)
    merges = repfx.report(fused).merges
    assert merges
    assert all(merge.error is not None for merge in merges), "no probe was accepted"
    assert not declines(fused, Reason.VERIFICATION)
