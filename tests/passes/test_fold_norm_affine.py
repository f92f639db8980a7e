"""fold_norm_affine alone: the scale and shift of a norm goes into all readers; declined where one cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from passes.fold_norm_affine import FoldNormAffine
from repfx.decline import Reason
from tests import hostile
from tests.compiling import Net, assert_declined, compiled, conv, declines, left

ALONE: dict[str, Any] = {"passes": (FoldNormAffine(),)}
TOKENS = ((7, 4), (1, 4), (12, 4))


def linear(outputs: int = 3, inputs: int = 4, **options: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


def tokens(run: Callable[..., Any], **parts: Any) -> Net:
    """A network over tokens (B, 6, N, 4): each of six groups is one sequence."""
    return Net(run, **parts)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


FOLDS: dict[str, Net] = {
    "one linear": tokens(lambda s, x: s.a(s.n(x)), n=nn.LayerNorm(4), a=linear()),
    "three siblings": tokens(
        lambda s, x: (s.a(y := s.n(x)), s.b(y), s.c(y)), n=nn.LayerNorm(4), a=linear(), b=linear(5), c=linear(2)
    ),
    "linear without bias": tokens(lambda s, x: s.a(s.n(x)), n=nn.LayerNorm(4), a=linear(bias=False)),
    "norm without bias": tokens(lambda s, x: s.a(s.n(x)), n=nn.LayerNorm(4, bias=False), a=linear()),
    "functional": tokens(
        lambda s, x: F.linear(F.layer_norm(x, (4,), s.w, s.b, 1e-3), s.v),
        w=parameter(4), b=parameter(4), v=nn.Parameter(torch.ones(3, 4)),
    ),
    "functional by keyword": tokens(
        lambda s, x: s.a(F.layer_norm(x, normalized_shape=[4], bias=s.b, weight=s.w)),
        w=parameter(4), b=parameter(4), a=linear(),
    ),
    "mean of tokens": tokens(lambda s, x: s.a(s.n(x.flatten(1, 2)).mean(1)), n=nn.LayerNorm(4), a=linear()),
    "one token": tokens(lambda s, x: s.a(s.n(x.flatten(1, 2))[:, 0]), n=nn.LayerNorm(4), a=linear()),
    "channels first between permutations": tokens(
        lambda s, x: s.a(s.n(x).permute(0, 3, 1, 2)), n=nn.LayerNorm(4), a=conv(4, 3, 1)
    ),
    "into a patch convolution": tokens(
        lambda s, x: s.a(s.n(x).permute(0, 3, 1, 2)), n=nn.LayerNorm(4), a=conv(4, 3, 2, 0, stride=2)
    ),
    "RMS norm": tokens(lambda s, x: s.a(s.n(x)), n=nn.RMSNorm(4, eps=1e-6), a=linear()),
    "functional RMS norm": tokens(
        lambda s, x: s.a(F.rms_norm(x, (4,), s.w)), w=parameter(4), a=linear()
    ),
    "RMS norm into a padded convolution": tokens(
        lambda s, x: s.a(s.n(x).permute(0, 3, 1, 2)), n=nn.RMSNorm(4, eps=1e-6), a=conv(4, 3)
    ),
    "group norm": tokens(lambda s, x: s.a(s.n(x)), n=nn.GroupNorm(2, 6), a=conv(6, 3, 1)),
    "functional group norm": tokens(
        lambda s, x: s.a(F.group_norm(x, 3, s.w, s.b)), w=parameter(6), b=parameter(6), a=conv(6, 3, 1)
    ),
    "group norm before a head": tokens(
        lambda s, x: s.a(s.n(x).mean((2, 3))), n=nn.GroupNorm(3, 6), a=linear(3, 6)
    ),
}  # fmt: skip


def scaled_norms(fused: nn.Module) -> int:
    """Norms that still multiply by a weight or add a bias."""
    count = 0
    for node in fused.graph.nodes:
        if node.op == "call_module":
            module = fused.get_submodule(node.target)
            norm = isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
            count += norm and (module.weight is not None)
        elif node.op == "call_function" and node.target in (F.layer_norm, F.group_norm, F.rms_norm):
            count += any(n.op == "get_attr" for n in node.all_input_nodes)
    return count


@pytest.mark.parametrize("name", FOLDS)
def test_scale_and_shift_go_into_the_readers(name: str) -> None:
    _, fused = compiled(FOLDS[name], 6, TOKENS, (7, 4), **ALONE)
    assert scaled_norms(fused) == 0
    assert not declines(fused)
    again = repfx.reparameterize(fused, (torch.randn(2, 6, 7, 4, dtype=torch.float64),), **ALONE)
    assert not repfx.report(again).merges, "the second time there is nothing to do"


@pytest.mark.parametrize("name", FOLDS)
def test_the_gate_agrees(name: str) -> None:
    example = (torch.randn(2, 6, 7, 4, dtype=torch.float64),)
    fused = repfx.reparameterize(hostile.prepared(FOLDS[name], 1), example, **ALONE)
    assert all(merge.error is not None for merge in repfx.report(fused).merges), "no probe was accepted"
    assert not declines(fused, Reason.VERIFICATION)
    assert scaled_norms(fused) == 0


def test_it_trains() -> None:
    fused = repfx.reparameterize(FOLDS["three siblings"].float().eval())
    assert "fold_norm_affine" in repfx.report(fused).merges[0].rule
    total = sum(y.square().mean() for y in fused.train()(torch.randn(2, 6, 7, 4)))
    total.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in fused.parameters())


def test_one_norm_called_twice_is_two_norms() -> None:
    model = tokens(lambda s, x: s.a(s.n(x)) + torch.relu(s.n(x * 2))[..., :3], n=nn.LayerNorm(4), a=linear())
    _, fused = compiled(model, 6, TOKENS, (7, 4), **ALONE)
    assert scaled_norms(fused) == 1


def test_sizes_read_behind_the_norm_do_not_matter() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.n(x)
        b, g, n, c = y.shape
        return x + s.a(y).reshape(b, g * n, c).reshape(b, g, n, c)

    model = tokens(run, n=nn.LayerNorm(4), a=linear(4))
    _, fused = compiled(model, 6, TOKENS, (7, 4), **ALONE)
    assert scaled_norms(fused) == 0


def test_an_instance_norm_with_running_statistics_is_a_batch_norm() -> None:
    model = Net(lambda s, x: s.n(s.a(x)), a=conv(4, 6), n=nn.InstanceNorm2d(6, affine=True, track_running_stats=True))
    original = hostile.prepared(model, 0)
    fused = repfx.reparameterize(copy.deepcopy(original), verify=False)  # before torch 2.10 a forward rounds its means
    hostile.assert_same(original, fused, torch.randn(2, 4, 9, 12, dtype=torch.float64))
    assert [type(m).__name__ for m in fused.children()] == ["Conv2d"]


def response(y: Tensor) -> Tensor:
    """What a global response norm multiplies its input by, before its own scale and shift: y (B, ..., C)."""
    norm = y.pow(2).sum((1, 2), keepdim=True).sqrt()
    return norm / (norm.mean(-1, keepdim=True) + 1e-6)


def test_scale_and_shift_of_a_global_response_norm_go_into_the_linear() -> None:
    parts = {"g": parameter(4), "b": parameter(4), "h": linear()}
    model = tokens(lambda s, x: s.h(s.g * (x * response(x)) + s.b), **parts)
    original, fused = compiled(model, 6, TOKENS)
    before, after = left(original, 6, (7, 4)), left(fused, 6, (7, 4))
    assert (before.muls - after.muls, before.adds - after.adds, after.linears) == (1, 1, 1)


def test_a_global_response_norm_that_adds_its_input_keeps_them() -> None:
    """h(g (x n) + b + x): the scale belongs to one of the two terms only."""
    parts = {"g": parameter(4), "b": parameter(4), "h": linear()}
    model = tokens(lambda s, x: s.h(s.g * (x * response(x)) + s.b + x), **parts)
    original, fused = compiled(model, 6, TOKENS, (7, 4))
    assert left(fused, 6, (7, 4)).muls == left(original, 6, (7, 4)).muls
    assert_declined(fused, Reason.NOT_EXACT, "mul_1", "follows mul, which is no affine map")


# --- one step away ----------------------------------------------------------------------------------------------


def kept(model: nn.Module, reason: Reason, place: str, fact: str, channels: int = 6, **options: Any) -> None:
    _, fused = compiled(model, channels, TOKENS, (7, 4), **{**ALONE, **options})
    assert_declined(fused, reason, place, fact, "fold_norm_affine")
    assert scaled_norms(fused) == 1


def test_declined_where_a_reader_is_not_affine() -> None:
    run = lambda s, x: s.a(y := s.n(x)) + torch.relu(y)[..., :3]  # noqa: E731
    kept(tokens(run, n=nn.LayerNorm(4), a=linear()), Reason.NOT_EXACT, "n", "is read by relu")


def test_declined_where_the_residual_reads_the_norm() -> None:
    kept(
        tokens(lambda s, x: s.a(y := s.n(x)) + y, n=nn.LayerNorm(4), a=linear(4)),
        Reason.NOT_EXACT,
        "n",
        "is read by add",
    )


def test_declined_where_it_is_returned() -> None:
    kept(tokens(lambda s, x: s.n(x), n=nn.LayerNorm(4)), Reason.NOT_EXACT, "n", "is read by the output")


def test_declined_where_a_reader_pads() -> None:
    model = tokens(lambda s, x: s.a(s.n(x).permute(0, 3, 1, 2)), n=nn.LayerNorm(4), a=conv(4, 3))
    kept(model, Reason.COST, "n", "is read by a, which pads it; its shift would be a border term")
    kept(tokens(lambda s, x: s.a(s.n(x)), n=nn.GroupNorm(2, 6), a=conv(6, 3)), Reason.COST, "n", "which pads it")


def test_declined_where_the_reader_reads_other_channels() -> None:
    """The linear reads the last axis, the group norm scales axis 1."""
    kept(tokens(lambda s, x: s.a(s.n(x)), n=nn.GroupNorm(2, 6), a=linear()), Reason.NOT_EXACT, "n", "is read by a")


def test_declined_where_parameters_would_grow() -> None:
    model = tokens(lambda s, x: s.a(s.n(x)), n=nn.LayerNorm(4), a=linear(9, bias=False))
    kept(model, Reason.COST, "a", "would grow from 44 to 45 parameters", objective="macs")


def test_excluded_norms_stay() -> None:
    _, fused = compiled(FOLDS["one linear"], 6, TOKENS, (7, 4), exclude=("n",), **ALONE)
    assert scaled_norms(fused) == 1


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm((7, 4)), nn.InstanceNorm2d(6, affine=True)],
    ids=["over positions too", "instance norm"],
)
def test_other_norms_stay(norm: nn.Module) -> None:
    model = tokens(lambda s, x: s.a(s.n(x)), n=norm, a=conv(6, 3, 1))
    _, fused = compiled(model, 6, ((7, 4),), (7, 4))
    assert fused.n.weight is not None
    assert not repfx.report(fused).merges
