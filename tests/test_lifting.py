"""What each operation means: every spelling that folds, and for each a near miss one step away that must not.

The first table is EXACTNESS.md line by line: a network, and the operations that may be left of it.  The
second one holds the near misses: what the report must say, and where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath
from torch import Tensor, nn
from torch.nn.utils import parametrize, weight_norm
from torchvision.ops import FrozenBatchNorm2d

import repfx
from repfx.decline import Reason
from tests import hostile
from tests.compiling import EVEN, Net, assert_declined, compiled, conv, counted, left

BN = nn.BatchNorm2d
CONV = {"convolutions": 1}


@dataclass(frozen=True)
class Folds:
    """A network that folds to `wanted` operations."""

    make: Callable[[], nn.Module]
    wanted: dict[str, int]
    channels: int = 4
    sizes: tuple[tuple[int, ...], ...] = hostile.SIZES
    example: tuple[int, ...] | None = None


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def after_conv(run: Callable[..., Any], **parts: Any) -> Callable[[], Net]:
    """`run(self, self.a(x))` behind a 3x3 convolution 4 -> 4."""
    return lambda: Net(lambda s, x: run(s, s.a(x)), a=conv(4, 4), **{k: v() for k, v in parts.items()})


def in_norm(kind: Callable[[], nn.Module]) -> Folds:
    return Folds(lambda: Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=kind()), CONV)


def three(run: Callable[..., Any], wanted: dict[str, int] | None = None) -> Folds:
    """3x3, 1x1 and batch norm on one value."""
    return Folds(lambda: Net(run, a=conv(4, 4), b=conv(4, 4, 1), n=BN(4)), wanted or CONV)


def iadd(s: Net, x: Tensor) -> Tensor:
    total = s.a(x)
    total += s.b(x)
    return total


def statistics() -> dict[str, Callable[[], Any]]:
    return {
        "m": lambda: torch.linspace(-1, 1, 4),
        "v": lambda: torch.linspace(0.3, 2, 4),
        "g": lambda: parameter(4),
        "h": lambda: parameter(4),
    }


def chunked(s: Net, x: Tensor) -> Tensor:
    a, b, c = x.chunk(3, 1)
    return torch.cat([a, s.a(b), s.b(c)], 1)


def shuffled_parts(s: Net, x: Tensor) -> Tensor:
    """Reordered and duplicated parts of unequal size; one is dropped."""
    a, b, c, _ = x.split([1, 2, 2, 1], 1)
    return torch.cat([s.b(c), a, s.a(b), a], 1)


def stacked_parts(s: Net, x: Tensor) -> Tensor:
    return torch.stack((s.a(x), s.b(x)), 2).reshape(x.shape[0], 8, x.shape[2] // 2, x.shape[3] // 2)


def written_border(s: Net, x: Tensor) -> Tensor:
    """DBB: pad, then write the batch norm's response to zero into the border."""
    y = F.pad(s.n(s.b(x)), [1, 1, 1, 1])
    value = (s.n.bias - s.n.running_mean * s.n.weight / torch.sqrt(s.n.running_var + s.n.eps)).view(1, -1, 1, 1)
    y[:, :, 0:1, :] = value
    y[:, :, -1:, :] = value
    y[:, :, :, 0:1] = value
    y[:, :, :, -1:] = value
    return s.a(y)


def frame(sides: str, width: int = 1, other: float = 1.0) -> Callable[[], Net]:
    """Pad by one, then write a value per channel into some sides of a frame; `other` scales the last one's."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = F.pad(x, [1, 1, 1, 1])
        value = s.g.view(1, -1, 1, 1)
        if "t" in sides:
            y[:, :, 0:width, :] = value
        if "b" in sides:
            y[:, :, -width:, :] = value
        if "l" in sides:
            y[:, :, :, 0:width] = value
        if "r" in sides:
            y[:, :, :, -width:] = value if other == 1.0 else value * other
        return s.a(y)

    return lambda: Net(run, a=conv(4, 4, 3, 0), g=parameter(4))


def viewed(_: Net, y: Tensor, groups: int) -> Tensor:
    B, C, H, W = y.shape
    return y.view(B, groups, C // groups, H, W).transpose(1, 2).reshape(B, C, H, W)


def split_net(run: Callable[..., Any]) -> Callable[[], Net]:
    return lambda: Net(run, a=conv(2, 2, 3, groups=2), b=conv(2, 2, (1, 5), groups=2))


FOLDS = {
    # --- pointwise
    "conv, BatchNorm2d": in_norm(lambda: BN(4)),
    "conv, BatchNorm2d without affine": in_norm(lambda: BN(4, affine=False)),
    "conv, SyncBatchNorm": in_norm(lambda: nn.SyncBatchNorm(4)),
    "conv, FrozenBatchNorm2d": in_norm(lambda: FrozenBatchNorm2d(4)),
    "conv, BatchNormAct2d": in_norm(lambda: BatchNormAct2d(4, apply_act=False)),
    "conv, BatchNormAct2d with its activation": Folds(
        lambda: Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BatchNormAct2d(4)), CONV | {"others": 1}
    ),
    "conv, F.batch_norm positional": Folds(
        after_conv(lambda s, y: F.batch_norm(y, s.m, s.v, s.g, s.h, False, 0.1, 1e-3), **statistics()), CONV
    ),
    "conv, F.batch_norm by keyword": Folds(
        after_conv(
            lambda s, y: F.batch_norm(input=y, running_mean=s.m, running_var=s.v, weight=s.g, bias=s.h, eps=1e-3),
            **statistics(),
        ),
        CONV,
    ),
    "linear, BatchNorm1d": Folds(
        lambda: Net(lambda s, x: s.n(s.a(x)), a=nn.Linear(4, 3), n=nn.BatchNorm1d(3)), {"linears": 1}, 4, ((),), ()
    ),
    "conv1d, BatchNorm1d": Folds(
        lambda: Net(lambda s, x: s.n(s.a(x)), a=nn.Conv1d(4, 3, 3, padding=1), n=nn.BatchNorm1d(3)),
        CONV,
        4,
        ((1,), (4,), (9,)),
    ),
    "conv3d, BatchNorm3d": Folds(
        lambda: Net(lambda s, x: s.n(s.a(x)), a=nn.Conv3d(4, 3, 3, padding=1), n=nn.BatchNorm3d(3)),
        CONV,
        4,
        ((1, 2, 3), (4, 3, 5)),
    ),
    "norm, padded conv": Folds(
        lambda: Net(lambda s, x: s.a(s.n(x)), a=conv(4, 4), n=BN(4)), CONV | {"border_terms": 1}
    ),
    "norm, valid conv": Folds(lambda: Net(lambda s, x: s.a(s.n(x)), a=conv(4, 4, 3, 0), n=BN(4)), CONV),
    "norm, reflecting conv": Folds(
        lambda: Net(lambda s, x: s.a(s.n(x)), a=conv(4, 4, 3, padding_mode="reflect"), n=BN(4)),
        CONV | {"others": 1},
        4,
        ((8, 8), (3, 5), (2, 9)),
    ),
    "times (C,1,1)": Folds(after_conv(lambda s, y: y * s.g, g=lambda: parameter(4, 1, 1)), CONV),
    "times (1,C,1,1), plus": Folds(
        after_conv(lambda s, y: s.g * y + s.h, g=lambda: parameter(1, 4, 1, 1), h=lambda: parameter(1, 4, 1, 1)), CONV
    ),
    "minus, divided": Folds(
        after_conv(lambda s, y: (y - s.h) / s.g, g=lambda: parameter(4, 1, 1), h=lambda: parameter(4, 1, 1)), CONV
    ),
    "constant minus": Folds(after_conv(lambda s, y: s.h - y, h=lambda: parameter(4, 1, 1)), CONV),
    "scalar constant": Folds(after_conv(lambda s, y: s.g * y - s.g, g=lambda: parameter(())), CONV),  # type: ignore[arg-type]
    "numbers": Folds(after_conv(lambda s, y: 1 - 2.5 * y), CONV),
    "negated": Folds(after_conv(lambda s, y: -y), CONV),
    "sigmoid of a parameter": Folds(
        after_conv(lambda s, y: y * torch.sigmoid(s.g).view(1, -1, 1, 1), g=lambda: parameter(4)), CONV
    ),
    "exp and getitem of a parameter": Folds(
        after_conv(lambda s, y: y * torch.exp(s.g[1]), g=lambda: parameter(3)), CONV
    ),
    "dropouts and no-ops": Folds(
        after_conv(lambda s, y: s.n(F.dropout(s.d(y), training=False).contiguous()), n=lambda: BN(4), d=nn.Dropout),
        CONV,
    ),
    "stochastic depth": Folds(after_conv(lambda s, y: s.n(s.d(y)), n=lambda: BN(4), d=lambda: DropPath(0.5)), CONV),
    # --- weights that are expressions of parameters
    "parametrized weight": Folds(lambda: Net(lambda s, x: s.n(s.a(x)), a=_doubled(conv(4, 4)), n=BN(4)), CONV),
    "weight_norm": Folds(lambda: Net(lambda s, x: s.n(s.a(x)), a=weight_norm(conv(4, 4)), n=BN(4)), CONV),
    "weight built from parameters": Folds(
        lambda: Net(
            lambda s, x: s.n(F.conv2d(x, torch.einsum("oi,ihw->oihw", s.w, s.k), padding=1)),
            w=parameter(4, 4),
            k=parameter(4, 3, 3),
            n=BN(4),
        ),
        CONV,
    ),
    # --- serial
    "1xk, kx1": Folds(
        lambda: Net(lambda s, x: s.b(s.a(x)), a=conv(4, 4, (1, 5), groups=4), b=conv(4, 4, (5, 1), groups=4)),
        CONV | {"border_terms": 1},
    ),
    "3x3 p2, valid 3x3": Folds(
        lambda: Net(lambda s, x: s.b(s.a(x)), a=conv(4, 4, 3, 2, groups=4), b=conv(4, 4, 3, 0, groups=4)), CONV
    ),
    "same with an even kernel": Folds(
        lambda: Net(lambda s, x: s.n(s.a(x)) + s.m(x), a=nn.Conv2d(4, 4, 4, padding="same"), n=BN(4), m=BN(4)),
        CONV | {"others": 1},
    ),
    # --- parallel
    "a + b + norm": three(lambda s, x: s.a(x) + s.b(x) + s.n(x)),
    "torch.add with alpha": three(lambda s, x: torch.add(s.a(x), s.b(x), alpha=-0.5)),
    "a - b": three(lambda s, x: s.a(x) - s.b(x)),
    "sum of a list": three(lambda s, x: sum([s.a(x), s.b(x)])),
    "stack.sum": three(lambda s, x: torch.stack([s.a(x), s.b(x)]).sum(0)),
    "torch.mean of a stack": three(lambda s, x: torch.mean(torch.stack([s.a(x), s.b(x)]), 0)),
    "half of a sum": three(lambda s, x: (s.a(x) + s.b(x)) / 2),
    "sum of halves": three(lambda s, x: 0.5 * s.a(x) + 0.5 * s.b(x)),
    "in place": three(iadd),
    "scaled identity": three(lambda s, x: s.a(x) - 0.3 * x),
    "two heads, each with its norm": Folds(
        lambda: Net(
            lambda s, x: (s.a(s.n(x)) + s.b(s.m(x))) / 2,
            a=nn.Linear(4, 3),
            b=nn.Linear(4, 3),
            n=nn.BatchNorm1d(4),
            m=nn.BatchNorm1d(4),
        ),
        {"linears": 1},
        4,
        ((),),
        (),
    ),
    # --- split and concatenate
    "chunk, parts, cat": Folds(split_net(chunked), CONV, 6),
    "reordered, duplicated, dropped parts": Folds(split_net(shuffled_parts), CONV | {"permutations": 1}, 6),
    "slices, cat": Folds(
        lambda: Net(lambda s, x: torch.cat([x[:, :2], s.a(x[:, 2:])], 1), a=conv(4, 4, groups=4)),
        CONV,
        6,
        hostile.SIZES,
        (8, 8),
    ),
    "stack and reshape": Folds(
        lambda: Net(stacked_parts, a=conv(4, 4, 3, stride=2, groups=4), b=conv(4, 4, 7, stride=2, groups=4)),
        CONV,
        4,
        EVEN,
        (8, 8),
    ),
    "cloned depthwise, cat, 1x1": Folds(
        lambda: Net(
            lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)),
            a=conv(4, 4, groups=4),
            b=conv(4, 4, 7, groups=4),
            c=conv(8, 3, 1),
        ),
        {"convolutions": 2},
    ),
    "norm after cat": Folds(
        lambda: Net(
            lambda s, x: s.n(torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x))], 1)),
            a=conv(4, 4),
            b=conv(4, 2, 1),
            n=BN(6),
        ),
        {"convolutions": 2, "concats": 1, "others": 2},
    ),
    **{
        f"{name} carried through an activation": Folds(
            lambda run=run: Net(  # type: ignore[misc]
                lambda s, x: s.b(torch.relu(run(s, s.a(x)))),
                a=conv(4, 4),
                b=conv(4, 3, 1),
                p=nn.ChannelShuffle(2),
                i=torch.tensor([2, 0, 3, 1]),
            ),
            {"convolutions": 2, "others": 1},
        )
        for name, run in {
            "shuffle": lambda s, y: s.p(y),
            "flip": lambda s, y: torch.flip(y, [1]),
            "index_select": lambda s, y: torch.index_select(y, 1, s.i),
        }.items()
    },
    **{
        f"{spelling} of six channels in {groups} groups": Folds(
            lambda run=run, groups=groups: Net(  # type: ignore[misc]
                lambda s, x: s.b(torch.relu(run(s, s.a(x), groups))),
                a=conv(6, 6),
                b=conv(6, 3, 1),
                p=nn.ChannelShuffle(groups),
            ),
            {"convolutions": 2, "others": 1},
            6,
        )
        for groups in (2, 3)
        for spelling, run in {
            "ChannelShuffle": lambda s, y, groups: s.p(y),
            "channel_shuffle": lambda s, y, groups: F.channel_shuffle(y, groups),
            "view, transpose, reshape": viewed,
        }.items()
    },
    # --- pooling
    "average pool that counts its padding": Folds(
        lambda: Net(lambda s, x: s.a(x) + s.p(x), a=conv(4, 4, groups=4), p=nn.AvgPool2d(3, 1, 1)), CONV
    ),
    "average pool with a divisor": Folds(
        lambda: Net(lambda s, x: s.a(x) + s.p(x), a=conv(4, 4, groups=4), p=nn.AvgPool2d(3, 1, 1, divisor_override=5)),
        CONV,
    ),
    "norm, average pool that counts its padding": Folds(
        lambda: Net(lambda s, x: s.p(s.n(x)), n=BN(4), p=nn.AvgPool2d(3, 2, 1)), CONV | {"border_terms": 1}
    ),
    # --- constant padding
    "padded by a value": Folds(
        lambda: Net(lambda s, x: s.a(F.pad(x, (1, 1, 1, 1), value=0.7)), a=conv(4, 4, 3, 0)),
        CONV | {"border_terms": 1},
        4,
        hostile.SIZES,
        (8, 8),
    ),
    "padded on one side, and cropped on another": Folds(
        lambda: Net(lambda s, x: s.a(F.pad(x, (2, 0, 1, -1))), a=conv(4, 4, 3, 0)),
        CONV | {"others": 1},
        4,
        ((9, 12), (8, 8), (7, 5), (13, 11)),
        (8, 8),
    ),
    "frame written whole": Folds(frame("tblr"), CONV | {"border_terms": 1}),
    "border written as the norm's response": Folds(
        lambda: Net(written_border, a=conv(4, 4, 3, 0), n=BN(4), b=conv(4, 4, 1, bias=False)), CONV
    ),
}


class _Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2.0 * weight.flip(3)


def _doubled(module: nn.Conv2d) -> nn.Conv2d:
    parametrize.register_parametrization(module, "weight", _Double())
    return module


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str) -> None:
    case = FOLDS[name]
    original, fused = compiled(case.make(), case.channels, case.sizes, case.example)
    size = (8, 8) if len(case.sizes[0]) == 2 else case.sizes[-1]
    found = counted(left(fused, case.channels, size))
    if "border_terms" in found and "border_terms" not in case.wanted:
        pytest.fail(f"{name} needs no border term")
    assert found == case.wanted, f"of {counted(left(original, case.channels, size))}"


# --- near misses ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stays:
    """A network in which `kept` operations must stay, for this reason at this place."""

    make: Callable[[], nn.Module]
    reason: Reason
    place: str
    fact: str
    kept: dict[str, int]
    sizes: tuple[tuple[int, ...], ...] = hostile.SIZES
    example: tuple[int, ...] | None = None


class Stubborn(BN):
    """In training mode whatever the model around it is told."""

    def train(self, mode: bool = True) -> Stubborn:
        return super().train(True)


class LoudNorm(BN):
    """Not a batch norm any more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


NORM_STAYS = {"convolutions": 1, "batch_norms": 1}
STAYS = {
    "no running statistics": Stays(
        lambda: Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4, track_running_stats=False)),
        Reason.NOT_EXACT,
        "n",
        "keeps no running statistics",
        NORM_STAYS,
        ((8, 8), (3, 5)),
    ),
    "F.batch_norm that uses the batch": Stays(
        after_conv(lambda s, y: F.batch_norm(y, s.m.clone(), s.v.clone(), s.g, s.h, True), **statistics()),
        Reason.NOT_EXACT,
        "batch_norm",
        "uses the batch's own statistics",
        NORM_STAYS,
        ((8, 8), (3, 5)),
    ),
    "F.batch_norm whose weight depends on the input": Stays(
        after_conv(lambda s, y: F.batch_norm(y, s.m, s.v, y.mean((0, 2, 3)), s.h), **statistics()),
        Reason.NOT_EXACT,
        "batch_norm",
        "its weight depends on the input",
        NORM_STAYS,
    ),
    "weight that depends on the input": Stays(
        lambda: Net(lambda s, x: F.conv2d(x, s.w * x.mean(), padding=1), w=parameter(4, 4, 3, 3)),
        Reason.NOT_EXACT,
        "conv2d",
        "its weight depends on the input",
        {"convolutions": 1},
    ),
    "linear weight that depends on the input": Stays(
        lambda: Net(lambda s, x: F.linear(x, s.w * x.mean()), w=parameter(3, 4)),
        Reason.NOT_EXACT,
        "linear",
        "its weight depends on the input",
        {"linears": 1},
        ((),),
    ),
    "constant with spatial extent": Stays(
        after_conv(lambda s, y: y + s.h, h=lambda: parameter(1, 4, 8, 8)),
        Reason.NOT_EXACT,
        "add",
        "varies over the image",
        {"convolutions": 1, "adds": 1},
        ((8, 8),),
    ),
    "constant along the width": Stays(
        after_conv(lambda s, y: y * s.h, h=lambda: parameter(4)),
        Reason.NOT_EXACT,
        "mul",
        "mixes maps over 0 and 2 spatial axes",
        {"convolutions": 1, "muls": 1},
        ((8, 4), (1, 4)),
    ),
    "pool that does not count its padding": Stays(
        lambda: Net(
            lambda s, x: s.a(x) + s.p(x), a=conv(4, 4, groups=4), p=nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        ),
        Reason.NOT_EXACT,
        "p",
        "count_include_pad=False",
        {"convolutions": 1, "adds": 1},
    ),
    "norm behind a cast": Stays(
        after_conv(lambda s, y: s.n(y.to(torch.float32).to(torch.float64)), n=lambda: BN(4)),
        Reason.NOT_EXACT,
        "n",
        "follows to_1, which is no affine map",
        NORM_STAYS | {"others": 2},
    ),
    "pool that clips": Stays(
        lambda: Net(
            lambda s, x: s.b(x) + s.p(x), b=conv(4, 4, 2, 0, stride=2, groups=4), p=nn.AvgPool2d(2, 2, ceil_mode=True)
        ),
        Reason.NOT_EXACT,
        "p",
        "ceil_mode",
        {"convolutions": 1, "adds": 1},
        ((8, 8), (2, 4), (16, 4)),
    ),
    "padding by a value that depends on the size": Stays(
        lambda: Net(lambda s, x: s.a(F.pad(x, (x.shape[3] // 2, 1))), a=conv(4, 4, 1)),
        Reason.NOT_EXACT,
        "pad",
        "its padding depends on the input's size",
        {"convolutions": 1},
    ),
    "convolution padded by the size": Stays(
        lambda: Net(lambda s, x: s.n(F.conv2d(x, s.w, None, 1, x.shape[2] // 2)), w=parameter(4, 4, 1, 1), n=BN(4)),
        Reason.NOT_EXACT,
        "conv2d",
        "its padding depends on the input's size",
        {"convolutions": 1},
    ),
    "slice of an unknown number of channels": Stays(
        lambda: Net(lambda s, x: s.a(x[:, ::2]), a=conv(2, 2, 1)),
        Reason.UNKNOWN_FACT,
        "getitem",
        "channel count is not known",
        {"convolutions": 1},
    ),
    "3x3 p1, 3x3 p1": Stays(
        lambda: Net(lambda s, x: s.b(s.a(x)), a=conv(4, 4, groups=4), b=conv(4, 4, groups=4)),
        Reason.NOT_EXACT,
        "b",
        "differ on the frame",
        {"convolutions": 2},
    ),
    "3x3 s2 p1, 3x3 p1": Stays(
        lambda: Net(lambda s, x: s.b(s.a(x)), a=conv(4, 4, groups=4, stride=2), b=conv(4, 4, groups=4)),
        Reason.NOT_EXACT,
        "b",
        "differ on the frame",
        {"convolutions": 2},
        ((7, 9), (5, 5), (8, 8)),
    ),
    "branches of unequal size": Stays(
        lambda: Net(lambda s, x: s.a(x) + s.b(x), a=conv(4, 4, 3, 0, groups=4), b=conv(4, 4, 1, groups=4)),
        Reason.NOT_EXACT,
        "add",
        "output sizes differ",
        {"convolutions": 2, "adds": 1},
        ((3, 3),),
    ),
    "frame written on three sides": Stays(
        frame("tbl"), Reason.NOT_EXACT, "setitem_2", "something else than its whole frame", CONV
    ),
    "frame of two values": Stays(frame("tblr", other=2.0), Reason.NOT_EXACT, "setitem_3", "different values", CONV),
    "frame wider than the pad": Stays(
        frame("tblr", width=2), Reason.NOT_EXACT, "setitem_3", "something else than its whole frame", CONV
    ),
    "linear, BatchNorm1d of a value of unknown rank": Stays(
        lambda: Net(lambda s, x: s.n(s.a(x)), a=nn.Linear(4, 3), n=nn.BatchNorm1d(3)),
        Reason.UNKNOWN_FACT,
        "n",
        "whose rank is not known",
        {"linears": 1, "batch_norms": 1},
        ((),),
    ),
    "mixed padding modes": Stays(
        lambda: Net(
            lambda s, x: s.a(x) + s.b(x), a=conv(4, 4, groups=4), b=conv(4, 4, groups=4, padding_mode="replicate")
        ),
        Reason.NOT_EXACT,
        "add",
        "padding modes",
        {"convolutions": 2, "adds": 1},
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    case = STAYS[name]
    _, fused = compiled(case.make(), 4, case.sizes, case.example)
    assert_declined(fused, case.reason, case.place, case.fact)
    found = counted(left(fused, 4, case.sizes[0]))
    assert {kind: found.get(kind, 0) for kind in case.kept} == case.kept


def test_a_dropout_that_drops_stays() -> None:
    original = hostile.prepared(Net(lambda s, x: s.n(F.dropout(s.a(x), 0.5, training=True)), a=conv(4, 4), n=BN(4)), 0)
    fused = repfx.reparameterize(original, verify=False)
    assert_declined(fused, Reason.NOT_EXACT, "dropout", "drops values at random (training is not False)")
    x = torch.ones(1, 4, 8, 8, dtype=torch.float64)
    torch.manual_seed(0)
    expected = original(x)
    torch.manual_seed(0)
    assert hostile.relative_error(expected, fused(x)) <= hostile.TOLERANCE
    assert not torch.equal(fused(x), fused(x))


def test_a_pixel_shuffle_before_a_padded_convolution_stays() -> None:
    """PixelUnshuffle then conv is one strided conv; the other way round there is none."""
    run = Net(lambda s, x: s.b(F.pixel_shuffle(s.a(x), 2)), a=conv(4, 4), b=conv(1, 4))
    _, fused = compiled(run, 4)
    assert counted(left(fused, 4)) == {"convolutions": 2, "others": 1}


@pytest.mark.parametrize("axes", [(3, 2), (2, 2)], ids=str)
def test_a_stack_reshaped_to_sizes_that_are_not_its_own_stays(axes: tuple[int, int]) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return torch.stack((s.a(x), s.b(x)), 2).reshape(x.shape[0], 8, x.shape[axes[0]] // 2, x.shape[axes[1]] // 2)

    parts = {"a": conv(4, 4, 3, stride=2, groups=4), "b": conv(4, 4, 7, stride=2, groups=4)}
    _, fused = compiled(Net(run, **parts), 4, ((8, 8), (4, 12), (2, 2)), (8, 8))
    assert counted(left(fused, 4)) == {"convolutions": 2, "concats": 1}


def test_a_batch_norm_in_training_mode_stays() -> None:
    """In training mode inside an eval model: not an affine map of the input."""
    original = hostile.prepared(Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=Stubborn(4)), 0)
    fused = repfx.reparameterize(original, verify=False)
    hostile.assert_same(original, fused, torch.randn(3, 4, 5, 6, dtype=torch.float64))
    assert counted(left(fused, 4))["batch_norms"] == 1
    report = repfx.report(fused)
    assert "n" in {island.path for island in report.islands} | {d.subject for d in report.declines}
    assert type(fused.get_submodule("n")) is Stubborn


def test_a_batch_norm_with_a_forward_of_its_own_is_read_as_it_is_written() -> None:
    original = hostile.prepared(Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=LoudNorm(4)), 0)
    fused = repfx.reparameterize(original, verify=False)
    hostile.assert_same(original, fused, torch.randn(3, 4, 5, 6, dtype=torch.float64))
    assert bool((fused(torch.randn(3, 4, 5, 6, dtype=torch.float64)) >= 0).all())
    assert counted(left(fused, 4)) == {"convolutions": 1, "others": 1}
