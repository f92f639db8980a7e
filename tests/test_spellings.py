"""One row per spelling: the network as a small function, and the operations that may be left of it.

What torch, timm and torchvision offer to say one and the same thing must come out the same.  Beside the
rows that fold stand the near misses: a spelling one step away that means something else, declined with a
reason at a place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, LayerScale, LayerScale2d, ScaledStdConv2d, ScaledStdConv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

import repfx
from repfx.decline import Reason
from tests import hostile
from tests.compiling import EVEN, Net, assert_declined, compiled, conv, counted, left

BN = nn.BatchNorm2d
ONE = {"convolutions": 1}
LINEAR = {"linears": 1}
LONG = ((1,), (4,), (9,), (6,))
DEEP = ((1, 2, 3), (4, 3, 5), (2, 2, 2), (5, 4, 6))
LARGE = ((8, 8), (5, 7), (9, 4), (4, 12))
TOKENS = ((4,), (7, 4), (1, 4))  # channels are last; the input has shape (B, channels, *sizes)
FLAT = ((),)

Run = Callable[[Any, Tensor], Any]
RunOfTwo = Callable[[Any, Tensor, Tensor], Any]


@dataclass(frozen=True)
class Row:
    """A spelling, what it may leave, and at which inputs it is tried: (B, channels, *size)."""

    run: Run
    parts: dict[str, Callable[[], Any]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=lambda: dict(ONE))
    channels: int = 4
    sizes: Sequence[Sequence[int]] = hostile.SIZES
    example: Sequence[int] | None = None

    def make(self) -> nn.Module:
        """A fresh network."""
        return Net(self.run, **{name: part() for name, part in self.parts.items()})


def weight(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.zeros(*shape))


def c(*arguments: Any, **options: Any) -> Callable[[], nn.Conv2d]:
    return lambda: conv(*arguments, **options)


def after(run: Run, left: dict[str, int] | None = None, **parts: Callable[[], Any]) -> Row:
    """`run(self, self.a(x))` behind a 3x3 convolution 4 -> 4."""
    return Row(lambda s, x: run(s, s.a(x)), {"a": c(4, 4), **parts}, left or ONE)


def before(run: Run, left: dict[str, int] | None = None, outputs: int = 3, **options: Any) -> Row:
    """A 1x1 convolution behind `run(self, x)`, which returns four channels."""
    return Row(lambda s, x: s.a(run(s, x)), {"a": c(4, outputs, 1)}, left or ONE, **options)


def two(run: RunOfTwo, left: dict[str, int] | None = None) -> Row:
    """`run(self, a(x), b(x))` of a 3x3 and a 1x1 convolution of one value."""
    return Row(lambda s, x: run(s, s.a(x), s.b(x)), {"a": c(4, 4), "b": c(4, 4, 1)}, left or ONE)


def heads(run: RunOfTwo, left: dict[str, int] | None = None) -> Row:
    """`run(self, a(x), b(x))` of two linear heads, each behind its norm."""
    parts = {
        "a": lambda: nn.Linear(4, 3), "b": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(4),
        "m": lambda: nn.BatchNorm1d(4),
    }  # fmt: skip
    return Row(lambda s, x: run(s, s.a(s.n(x)), s.b(s.m(x))), parts, left or LINEAR, 4, FLAT, ())


def parts(run: Run, channels: int = 6, left: dict[str, int] | None = None, **options: Any) -> Row:
    """Depthwise branches on parts of two channels each."""
    return Row(run, {"a": c(2, 2, groups=2), "b": c(2, 2, (1, 5), groups=2)}, left or ONE, channels, **options)


SELECTIONS: dict[str, Row] = {
    "x[:, [2, 0, 1, 3]]": before(lambda s, x: x[:, [2, 0, 1, 3]], example=(8, 8)),
    "x[:, index]": Row(
        lambda s, x: s.a(x[:, s.i]), {"a": c(4, 3, 1), "i": lambda: torch.tensor([2, 0, 3, 1])}, example=(8, 8)
    ),
    "x[:, index, :, :]": Row(
        lambda s, x: s.a(x[:, s.i, :, :]), {"a": c(4, 3, 1), "i": lambda: torch.tensor([2, 0, -1, 1])}, example=(8, 8)
    ),
    "conv(x)[:, index]": after(lambda s, y: y[:, s.i], i=lambda: torch.tensor([1, 1, 3])),
    "conv(x)[:, [..]]": after(lambda s, y: y[:, [3, 1]]),
    "x[:, 1:3]": after(lambda s, y: y[:, 1:3]),
    "x[:, -2:]": after(lambda s, y: y[:, -2:]),
    "x[:, ::2]": after(lambda s, y: y[:, ::2]),
    "x[..., 1:3, :, :]": after(lambda s, y: y[..., 1:3, :, :]),
    "x[:, 1:2]": after(lambda s, y: y[:, 1:2]),
    "torch.index_select": after(lambda s, y: torch.index_select(y, 1, s.i), i=lambda: torch.tensor([1, 0, 3])),
    "torch.index_select by keyword": after(
        lambda s, y: torch.index_select(input=y, dim=1, index=s.i), i=lambda: torch.tensor([1, 0, 3])
    ),
    "x.index_select(-3)": after(lambda s, y: y.index_select(-3, s.i), i=lambda: torch.tensor([1, 0, 3])),
    "torch.flip": after(lambda s, y: torch.flip(y, (1,))),
    "torch.flip by keyword": after(lambda s, y: torch.flip(y, dims=[1])),
    "torch.flip(input=)": after(lambda s, y: torch.flip(input=y, dims=(1,))),
    "x.flip(1)": after(lambda s, y: y.flip(1)),
    "x.flip(-3)": after(lambda s, y: y.flip(-3)),
    "x.flip((1,))": after(lambda s, y: y.flip((1,))),
    "x.flip(dims=)": after(lambda s, y: y.flip(dims=[1])),
    "torch.roll": after(lambda s, y: torch.roll(y, 1, 1)),
    "x.roll(shifts, dims)": after(lambda s, y: y.roll(shifts=1, dims=1)),
    "x.narrow": after(lambda s, y: y.narrow(1, 1, 2)),
    "x.narrow by keyword": after(lambda s, y: y.narrow(dim=1, start=1, length=2)),
    "torch.narrow": after(lambda s, y: torch.narrow(y, dim=1, start=1, length=2)),
    "ChannelShuffle": after(lambda s, y: s.p(y), p=lambda: nn.ChannelShuffle(2)),
    "F.channel_shuffle": after(lambda s, y: F.channel_shuffle(y, 2)),
    "F.channel_shuffle by keyword": after(lambda s, y: F.channel_shuffle(y, groups=2)),
}


def joined(s: Any, *pieces: Tensor) -> Tensor:
    first, second, third = pieces
    return torch.cat([first, s.a(second), s.b(third)], 1)


SPLITS: dict[str, Row] = {
    "x.chunk(3, 1)": parts(lambda s, x: joined(s, *_three(x.chunk(3, 1)))),
    "x.chunk(3, dim=1)": parts(lambda s, x: joined(s, *_three(x.chunk(3, dim=1)))),
    "x.chunk(chunks=3, dim=1)": parts(lambda s, x: joined(s, *_three(x.chunk(chunks=3, dim=1)))),
    "torch.chunk": parts(lambda s, x: joined(s, *_three(torch.chunk(x, 3, 1)))),
    "torch.chunk by keyword": parts(lambda s, x: joined(s, *_three(torch.chunk(input=x, chunks=3, dim=1)))),
    "x.split(2, 1)": parts(lambda s, x: joined(s, *_three(x.split(2, 1))), example=(8, 8)),
    "x.split(2, dim=1)": parts(lambda s, x: joined(s, *_three(x.split(2, dim=1))), example=(8, 8)),
    "x.split(split_size=2, dim=1)": parts(
        lambda s, x: joined(s, *_three(x.split(split_size=2, dim=1))), example=(8, 8)
    ),
    "torch.split": parts(lambda s, x: joined(s, *_three(torch.split(x, [2, 2, 2], 1)))),
    "torch.split by keyword": parts(
        lambda s, x: joined(s, *_three(torch.split(tensor=x, split_size_or_sections=[2, 2, 2], dim=1)))
    ),
    "x.split(dim=-3)": parts(lambda s, x: joined(s, *_three(x.split([2, 2, 2], dim=-3))), example=(8, 8)),
    "x.split_with_sizes": parts(lambda s, x: joined(s, *_three(x.split_with_sizes([2, 2, 2], 1)))),
    "torch.tensor_split": parts(lambda s, x: joined(s, *_three(torch.tensor_split(x, 3, 1))), example=(8, 8)),
    "torch.tensor_split at indices": parts(
        lambda s, x: joined(s, *_three(torch.tensor_split(x, (2, 4), dim=1))), example=(8, 8)
    ),
    "x.tensor_split(sections=)": parts(
        lambda s, x: joined(s, *_three(x.tensor_split(sections=3, dim=1))), example=(8, 8)
    ),
    "x.tensor_split(indices=)": parts(
        lambda s, x: joined(s, *_three(x.tensor_split(indices=[2, 4], dim=1))), example=(8, 8)
    ),
    "torch.hsplit": parts(lambda s, x: joined(s, *_three(torch.hsplit(x, 3))), example=(8, 8)),
    "torch.hsplit at indices": parts(lambda s, x: joined(s, *_three(x.hsplit([2, 4]))), example=(8, 8)),
    "slices": parts(lambda s, x: joined(s, x[:, :2], x[:, 2:4], x[:, 4:]), example=(8, 8)),
    "view and unbind": parts(
        lambda s, x: joined(s, *_three(x.view(x.shape[0], 3, 2, x.shape[2], x.shape[3]).unbind(1))), example=(8, 8)
    ),
    "unflatten and torch.unbind": parts(
        lambda s, x: joined(s, *_three(torch.unbind(x.unflatten(1, (3, 2)), dim=1))), example=(8, 8)
    ),
    "view and indices": parts(
        lambda s, x: _by_index(s, x.view(x.shape[0], 3, 2, x.shape[2], x.shape[3])), example=(8, 8)
    ),
    "cat of duplicated and dropped parts": parts(
        lambda s, x: _dropped(s, x.split([2, 2, 2], 1)), left=ONE | {"permutations": 2}
    ),
    "torch.cat by keyword": parts(lambda s, x: _cat_by_keyword(s, x.chunk(3, 1))),
    "torch.concat": parts(lambda s, x: _concat(s, x.chunk(3, 1))),
    "torch.concatenate": parts(lambda s, x: _concatenate(s, x.chunk(3, 1))),
    "cat along -3": parts(lambda s, x: _cat_negative(s, x.chunk(3, 1)), example=(8, 8)),
    "torch.hstack": parts(lambda s, x: _hstack(s, x.chunk(3, 1))),
}


def _three(pieces: Any) -> tuple[Tensor, Tensor, Tensor]:
    return pieces[0], pieces[1], pieces[2]


def _by_index(s: Any, y: Tensor) -> Tensor:
    return joined(s, y[:, 0], y[:, 1], y[:, 2])


def _dropped(s: Any, pieces: Any) -> Tensor:
    return torch.cat([s.a(pieces[2]), pieces[0], pieces[0], s.b(pieces[2])], 1)


def _cat_by_keyword(s: Any, pieces: Any) -> Tensor:
    return torch.cat(tensors=(pieces[0], s.a(pieces[1]), s.b(pieces[2])), dim=1)


def _concat(s: Any, pieces: Any) -> Tensor:
    return torch.concat([pieces[0], s.a(pieces[1]), s.b(pieces[2])], dim=1)


def _concatenate(s: Any, pieces: Any) -> Tensor:
    return torch.concatenate([pieces[0], s.a(pieces[1]), s.b(pieces[2])], axis=1)  # type: ignore[call-arg]


def _cat_negative(s: Any, pieces: Any) -> Tensor:
    return torch.cat([pieces[0], s.a(pieces[1]), s.b(pieces[2])], dim=-3)


def _hstack(s: Any, pieces: Any) -> Tensor:
    return torch.hstack([pieces[0], s.a(pieces[1]), s.b(pieces[2])])


def valid(pad: Run, left: dict[str, int] | None = None, sizes: Sequence[Sequence[int]] = hostile.SIZES) -> Row:
    """`pad` on the model input, whose channels only the valid 3x3 convolution behind it tells."""
    return Row(lambda s, x: s.a(pad(s, x)), {"a": c(4, 3, 3, 0)}, left or ONE, 4, sizes)


def padded(module: Callable[[], nn.Module], kind: Callable[..., nn.Module], sizes: Any, **left: int) -> Row:
    """A padding module before a valid 3-tap convolution of that rank, and a norm behind."""
    return Row(lambda s, x: s.a(s.p(x)), {"a": lambda: kind(4, 3, 3), "p": module}, ONE | left, 4, sizes)


PADDINGS: dict[str, Row] = {
    "F.pad": valid(lambda s, x: F.pad(x, (1, 1, 1, 1))),
    "F.pad by keyword": valid(lambda s, x: F.pad(input=x, pad=[1, 1, 1, 1])),
    "F.pad of one axis": valid(lambda s, x: F.pad(x, (1, 1)), sizes=LARGE),
    "F.pad, one-sided": valid(lambda s, x: F.pad(x, (0, 1, 2, 1)), ONE | {"others": 1}),
    "F.pad that crops": valid(lambda s, x: F.pad(x, (-1, 0, 0, -1)), ONE | {"others": 1}, LARGE),
    "F.pad with a value": valid(lambda s, x: F.pad(x, (1, 1, 1, 1), value=0.5), ONE | {"border_terms": 1}),
    "F.pad(mode, value)": valid(lambda s, x: F.pad(x, (1, 1, 1, 1), "constant", 0.0)),
    "F.pad reflect": valid(lambda s, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), ONE | {"others": 1}, LARGE),
    "F.pad replicate": valid(lambda s, x: F.pad(x, (1, 1, 1, 1), mode="replicate"), ONE | {"others": 1}),
    "F.pad circular": valid(lambda s, x: F.pad(x, (1, 1, 1, 1), mode="circular"), ONE | {"others": 6}, LARGE),
    "torch.nn.functional.pad twice": valid(lambda s, x: F.pad(F.pad(x, (1, 1)), (0, 0, 1, 1))),
    **{
        f"norm, then F.pad {mode}": Row(
            lambda s, x, mode=mode: s.a(F.pad(s.n(x), (1, 1, 2, 1), mode=mode)),  # type: ignore[misc]
            {"a": c(4, 3, 3, 0), "n": lambda: BN(4)},
            ONE | {"others": 6 if mode == "circular" else 1},
            sizes=LARGE,
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "1x1, then circular": Row(
        lambda s, x: s.b(s.a(x)),
        {"a": c(4, 4, 1), "b": c(4, 3, padding_mode="circular")},
        ONE | {"others": 6},
        sizes=LARGE,
    ),
    "circular, then circular": Row(
        lambda s, x: s.b(s.a(x)),
        {"a": c(4, 4, groups=4, padding_mode="circular"), "b": c(4, 4, 5, groups=4, padding_mode="circular")},
        ONE | {"permutations": 2, "others": 4},
        sizes=((8, 8), (2, 3), (4, 2), (5, 9)),
    ),
    "crop": valid(lambda s, x: x[:, :, 1:, :-1], sizes=LARGE),
    "stride by slicing": Row(lambda s, x: s.a(x[:, :, ::2, ::2]), {"a": c(4, 3, 1)}),
    "pool of the input": Row(lambda s, x: s.a(F.avg_pool2d(x, 2)), {"a": c(4, 4, 1, groups=4)}, sizes=LARGE),
    "ZeroPad1d": padded(lambda: nn.ZeroPad1d(1), nn.Conv1d, LONG),
    "ZeroPad2d": padded(lambda: nn.ZeroPad2d(1), nn.Conv2d, hostile.SIZES),
    "ZeroPad3d": padded(lambda: nn.ZeroPad3d(1), nn.Conv3d, DEEP),
    "ConstantPad1d": padded(lambda: nn.ConstantPad1d(1, 0.5), nn.Conv1d, LONG, border_terms=1),
    "ConstantPad3d": padded(lambda: nn.ConstantPad3d(1, -2.0), nn.Conv3d, DEEP, border_terms=1),
    "ReflectionPad1d": padded(lambda: nn.ReflectionPad1d(1), nn.Conv1d, LONG, others=1),
    "ReflectionPad2d": padded(lambda: nn.ReflectionPad2d(1), nn.Conv2d, LARGE, others=1),
    "ReflectionPad3d": padded(lambda: nn.ReflectionPad3d(1), nn.Conv3d, DEEP[1:], others=1),
    "ReplicationPad1d": padded(lambda: nn.ReplicationPad1d(1), nn.Conv1d, LONG, others=1),
    "ReplicationPad2d": padded(lambda: nn.ReplicationPad2d(1), nn.Conv2d, hostile.SIZES, others=1),
    "ReplicationPad3d": padded(lambda: nn.ReplicationPad3d(1), nn.Conv3d, DEEP, others=1),
    "CircularPad1d": padded(lambda: nn.CircularPad1d(1), nn.Conv1d, LONG, others=4),
    "CircularPad2d": padded(lambda: nn.CircularPad2d(1), nn.Conv2d, LARGE, others=6),
    "CircularPad3d": padded(lambda: nn.CircularPad3d(1), nn.Conv3d, DEEP, others=8),
    "same": Row(lambda s, x: s.n(s.a(x)), {"a": lambda: nn.Conv2d(4, 3, 3, padding="same"), "n": lambda: BN(3)}),
    "same, even": Row(
        lambda s, x: s.n(s.a(x)),
        {"a": lambda: nn.Conv2d(4, 3, (2, 4), padding="same"), "n": lambda: BN(3)},
        ONE | {"others": 1},
    ),
    "same, dilated": Row(
        lambda s, x: s.n(s.a(x)), {"a": lambda: nn.Conv2d(4, 3, 3, padding="same", dilation=2), "n": lambda: BN(3)}
    ),
    "same, even and dilated": Row(
        lambda s, x: s.n(s.a(x)),
        {"a": lambda: nn.Conv2d(4, 3, (2, 4), padding="same", dilation=(1, 3)), "n": lambda: BN(3)},
        ONE | {"others": 1},
    ),
    "same, reflecting": Row(
        lambda s, x: s.n(s.a(x)),
        {"a": lambda: nn.Conv2d(4, 3, (3, 2), padding="same", padding_mode="reflect"), "n": lambda: BN(3)},
        ONE | {"others": 1},
        sizes=LARGE,
    ),
    "same, functional": Row(
        lambda s, x: s.n(F.conv2d(x, s.w, padding="same", dilation=2)), {"w": weight(3, 4, 3, 3), "n": lambda: BN(3)}
    ),
    "same, functional, even": Row(
        lambda s, x: s.n(F.conv2d(x, s.w, padding="same")),
        {"w": weight(3, 4, 2, 4), "n": lambda: BN(3)},
        ONE | {"others": 1},
    ),
    "valid": Row(
        lambda s, x: s.n(s.a(x)), {"a": lambda: nn.Conv2d(4, 3, 3, padding="valid"), "n": lambda: BN(3)}, sizes=LARGE
    ),
}
POOLS: dict[str, Row] = {
    **{
        name: Row(lambda s, x, run=run: s.a(x) + run(x), {"a": c(4, 4, groups=4)})  # type: ignore[misc]
        for name, run in {
            "F.avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, 1),
            "F.avg_pool2d by keyword": lambda x: F.avg_pool2d(x, kernel_size=(3, 3), stride=1, padding=1),
            "F.avg_pool2d with a divisor": lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=7),
            "count_include_pad": lambda x: F.avg_pool2d(x, 3, 1, 1, False, True),
            "torch.nn.functional.avg_pool2d": lambda x: torch.nn.functional.avg_pool2d(x, [3, 3], [1, 1], [1, 1]),
        }.items()
    },
    "AvgPool1d": Row(
        lambda s, x: s.a(x) + s.p(x),
        {"a": lambda: nn.Conv1d(4, 4, 3, padding=1, groups=4), "p": lambda: nn.AvgPool1d(3, 1, 1)},
        sizes=LONG,
    ),
    "AvgPool3d": Row(
        lambda s, x: s.a(x) + s.p(x),
        {"a": lambda: nn.Conv3d(4, 4, 3, padding=1, groups=4), "p": lambda: nn.AvgPool3d(3, 1, 1, divisor_override=4)},
        sizes=DEEP,
    ),
    "F.avg_pool1d": Row(
        lambda s, x: s.a(x) + F.avg_pool1d(x, 3, 1, 1),
        {"a": lambda: nn.Conv1d(4, 4, 3, padding=1, groups=4)},
        sizes=LONG,
    ),
    "F.avg_pool3d": Row(
        lambda s, x: s.a(x) + F.avg_pool3d(x, 3, stride=1, padding=1),
        {"a": lambda: nn.Conv3d(4, 4, 3, padding=1, groups=4)},
        sizes=DEEP,
    ),
    "uncounted but unpadded": Row(
        lambda s, x: s.a(x) + s.p(x),
        {"a": c(4, 4, 2, 0, stride=2, groups=4), "p": lambda: nn.AvgPool2d(2, count_include_pad=False)},
        sizes=EVEN,
    ),
}


class OwnNorm(nn.Module):
    """Batch norm written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (t[None, :, None, None] for t in (self.running_mean, self.running_var))
        x = (x - mean) / torch.sqrt(var + 1e-5)
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


NORMS: dict[str, Row] = {
    "FrozenBatchNorm2d": after(lambda s, y: s.n(y), n=lambda: FrozenBatchNorm2d(4)),
    "SyncBatchNorm": after(lambda s, y: s.n(y), n=lambda: nn.SyncBatchNorm(4)),
    "BatchNormAct2d": after(lambda s, y: s.n(y), ONE | {"others": 1}, n=lambda: BatchNormAct2d(4, act_layer=nn.SiLU)),
    "BatchNormAct2d without activation": after(lambda s, y: s.n(y), n=lambda: BatchNormAct2d(4, apply_act=False)),
    "written out": after(lambda s, y: s.n(y), n=lambda: OwnNorm(4)),
    "torch.batch_norm": after(
        lambda s, y: torch.batch_norm(y, s.g, s.h, s.m, s.v, False, 0.1, 1e-3, False),
        g=weight(4),
        h=weight(4),
        m=lambda: torch.linspace(-1, 1, 4),
        v=lambda: torch.linspace(0.3, 2, 4),
    ),
    "BatchNorm1d on (B, C, L)": Row(
        lambda s, x: s.n(s.a(x)),
        {"a": lambda: nn.Conv1d(4, 3, 3, padding=1), "n": lambda: nn.BatchNorm1d(3)},
        sizes=LONG,
    ),
    "BatchNorm1d on (B, C)": Row(
        lambda s, x: s.n(s.a(x)), {"a": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(3)}, LINEAR, 4, FLAT, ()
    ),
    "BatchNorm1d before a linear": Row(
        lambda s, x: s.a(s.n(x)), {"a": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(4)}, LINEAR, 4, FLAT, ()
    ),
    "BatchNorm1d on pooled features": Row(
        lambda s, x: s.a(s.n(F.adaptive_avg_pool2d(s.b(x), 1).flatten(1))),
        {"a": lambda: nn.Linear(4, 3), "b": c(4, 4), "n": lambda: nn.BatchNorm1d(4)},
        {"convolutions": 1, "others": 1},
    ),
    "tokens: flatten(0, 1), reshape_as": Row(
        lambda s, x: _norm_as(s, s.a(x)),
        {"a": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(3)},
        LINEAR,
        5,
        ((4,),),
        (4,),
    ),
    "tokens: reshape to (-1, C) and back": Row(
        lambda s, x: _norm_back(s, s.a(x)),
        {"a": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(3)},
        LINEAR,
        5,
        ((4,),),
        (4,),
    ),
    "tokens: transposed": Row(
        lambda s, x: s.n(s.a(x).transpose(1, 2)).transpose(1, 2),
        {"a": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(3)},
        LINEAR,
        5,
        ((4,),),
        (4,),
    ),
    "tokens: permuted": Row(
        lambda s, x: s.b(s.n(x.permute(0, 2, 1)).permute(0, 2, 1)),
        {"b": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(4)},
        LINEAR,
        5,
        ((4,),),
        (4,),
    ),
    "tokens: transposed thrice": Row(
        lambda s, x: s.b(s.n(x.transpose(1, 2).transpose(1, 2).transpose(1, 2)).transpose(1, 2)),
        {"b": lambda: nn.Linear(4, 3), "n": lambda: nn.BatchNorm1d(4)},
        LINEAR,
        5,
        ((4,),),
        (4,),
    ),
    "channels last: linear and scale": Row(
        lambda s, x: (s.b(x.permute(0, 2, 3, 1)) * s.g).permute(0, 3, 1, 2),
        {"b": lambda: nn.Linear(4, 3), "g": weight(3)},
        {"linears": 1, "adds": 1, "others": 1},
        example=(8, 8),
    ),
    "channels last: norm of a 1x1": Row(
        lambda s, x: s.a(x).permute(0, 2, 3, 1).mul(s.g).permute(0, 3, 1, 2), {"a": c(4, 4), "g": weight(4)}
    ),
}


def _norm_as(s: Any, y: Tensor) -> Tensor:
    return s.n(y.flatten(0, 1)).reshape_as(y)


def _norm_back(s: Any, y: Tensor) -> Tensor:
    B, N, C = y.shape
    return s.n(y.reshape(B * N, C)).reshape(B, N, C)


ARITHMETIC: dict[str, Row] = {
    "torch.add(alpha)": two(lambda s, a, b: torch.add(a, b, alpha=2)),
    "torch.add by keyword": two(lambda s, a, b: torch.add(input=a, other=b)),
    "a.add(b, alpha=)": two(lambda s, a, b: a.add(b, alpha=0.5)),
    "a.add_(b)": two(lambda s, a, b: a.add_(b)),
    "a.add_(b, alpha=)": two(lambda s, a, b: a.add_(b, alpha=0.5)),
    "a.__add__(b)": two(lambda s, a, b: a.__add__(b)),
    "operator.add": two(lambda s, a, b: operator.add(a, b)),
    "torch.sub": two(lambda s, a, b: torch.sub(a, b)),
    "torch.subtract": two(lambda s, a, b: torch.subtract(a, b, alpha=2)),
    "torch.rsub": two(lambda s, a, b: torch.rsub(a, b)),
    "a.sub_(b)": two(lambda s, a, b: a.sub_(b)),
    "torch.stack(dim=1).sum": two(lambda s, a, b: torch.stack([a, b], dim=1).sum(1)),
    "torch.stack.mean(dim=0)": two(lambda s, a, b: torch.stack((a, b)).mean(dim=0)),
    "torch.stack(dim=-1).mean(-1)": two(lambda s, a, b: torch.stack((a, b), -1).mean(-1)),
    "torch.sum(stack)": two(lambda s, a, b: torch.sum(torch.stack((a, b)), dim=0)),
    "torch.lerp": two(lambda s, a, b: torch.lerp(a, b, 0.25)),
    "a.lerp(b, number)": two(lambda s, a, b: a.lerp(b, 0.25)),
    "torch.lerp by a constant": Row(
        lambda s, x: torch.lerp(s.a(x), s.b(x), s.g), {"a": c(4, 4), "b": c(4, 4, 1), "g": weight(4, 1, 1)}
    ),
    "torch.lerp by a gate": Row(
        lambda s, x: torch.lerp(s.a(x), s.b(x), torch.sigmoid(s.g)), {"a": c(4, 4), "b": c(4, 4, 1), "g": weight(1)}
    ),
    "torch.addcmul": Row(
        lambda s, x: torch.addcmul(s.a(x), s.b(x), s.g), {"a": c(4, 4), "b": c(4, 4, 1), "g": weight(4, 1, 1)}
    ),
    "torch.addcmul(value)": Row(
        lambda s, x: torch.addcmul(s.a(x), s.g, s.b(x), value=0.5),
        {"a": c(4, 4), "b": c(4, 4, 1), "g": weight(4, 1, 1)},
    ),
    "torch.addcmul of constants": after(
        lambda s, y: torch.addcmul(s.h, y, s.g), g=weight(1, 4, 1, 1), h=weight(1, 4, 1, 1)
    ),
    "torch.addcdiv": Row(
        lambda s, x: torch.addcdiv(s.a(x), s.b(x), s.g), {"a": c(4, 4), "b": c(4, 4, 1), "g": weight(4, 1, 1)}
    ),
    "x.addcmul": Row(lambda s, x: x.addcmul(s.b(x), s.g, value=2), {"b": c(4, 4), "g": weight(4, 1, 1)}),
    "1 - x": after(lambda s, y: 1 - y),
    "x - c": after(lambda s, y: y - s.g, g=weight(4, 1, 1)),
    "c - x": after(lambda s, y: s.g - y, g=weight(4, 1, 1)),
    "torch.rsub(x, 1)": after(lambda s, y: torch.rsub(y, 1)),
    "torch.mul": after(lambda s, y: torch.mul(y, s.g), g=weight(4, 1, 1)),
    "torch.multiply": after(lambda s, y: torch.multiply(s.g, y), g=weight(4, 1, 1)),
    "torch.div": after(lambda s, y: torch.div(y, s.g), g=weight(4, 1, 1)),
    "torch.true_divide": after(lambda s, y: torch.true_divide(y, 2)),
    "x.mul_": after(lambda s, y: y.mul_(s.g), g=weight(4, 1, 1)),
    "x.div_": after(lambda s, y: y.div_(s.g), g=weight(4, 1, 1)),
    "x.add_(number)": after(lambda s, y: y.add_(0.5)),
    "x.neg": after(lambda s, y: y.neg()),
    "torch.neg": after(lambda s, y: torch.neg(y)),
    "torch.negative": after(lambda s, y: torch.negative(y)),
    "+x": after(lambda s, y: +y),
    "torch.clone": after(lambda s, y: s.n(torch.clone(y)), n=lambda: BN(4)),
    "x.clone().contiguous()": after(lambda s, y: s.n(y.clone().contiguous()), n=lambda: BN(4)),
    "softplus of a parameter": after(lambda s, y: y * F.softplus(s.g).view(1, -1, 1, 1), g=weight(4)),
    "tanh of a parameter": after(lambda s, y: s.g.tanh().reshape(4, 1, 1) * y, g=weight(4)),
    "exp of a parameter": after(lambda s, y: y * s.g.exp()[:, None, None], g=weight(4)),
    "sigmoid by unsqueeze": after(lambda s, y: y * torch.sigmoid(s.g).unsqueeze(-1).unsqueeze(-1), g=weight(4)),
    "gated sum": Row(
        lambda s, x: s.g.sigmoid() * s.a(x) + (1 - s.g.sigmoid()) * s.b(x),
        {"a": c(4, 4), "b": c(4, 4, 1), "g": weight(4, 1, 1)},
    ),
    "softmax over branches": Row(lambda s, x: _softmax(s, x), {"a": c(4, 4), "b": c(4, 4, 1), "g": weight(2)}),
    "LayerScale2d": after(lambda s, y: s.n(y), n=lambda: LayerScale2d(4)),
    "LayerScale2d in a residual branch": Row(
        lambda s, x: x + s.n(s.a(x)), {"a": c(4, 4), "n": lambda: LayerScale2d(4)}
    ),
    "LayerScale": Row(
        lambda s, x: s.n(s.a(x)), {"a": lambda: nn.Linear(4, 3), "n": lambda: LayerScale(3)}, LINEAR, 5, ((4,),), (4,)
    ),
}


def _softmax(s: Any, x: Tensor) -> Tensor:
    w = F.softmax(s.g, 0)
    return w[0] * s.a(x) + w[1] * s.b(x)


def token_row(run: Run, **parts: Callable[[], Any]) -> Row:
    """`run(self, linear(x))` on tokens (B, 5, 4)."""
    return Row(lambda s, x: run(s, s.a(x)), {"a": lambda: nn.Linear(4, 3), **parts}, LINEAR, 5, ((4,),), (4,))


LINEARS: dict[str, Row] = {
    "x @ W": token_row(lambda s, y: y @ s.w, w=weight(3, 2)),
    "x @ W.t()": token_row(lambda s, y: y @ s.w.t(), w=weight(2, 3)),
    "torch.matmul": token_row(lambda s, y: torch.matmul(y, s.w), w=weight(3, 2)),
    "x.matmul": token_row(lambda s, y: y.matmul(s.w), w=weight(3, 2)),
    "torch.matmul by keyword": token_row(lambda s, y: torch.matmul(input=y, other=s.w), w=weight(3, 2)),
    "F.linear": token_row(lambda s, y: F.linear(y, s.w, s.h), w=weight(2, 3), h=weight(2)),
    "F.linear by keyword": token_row(lambda s, y: F.linear(input=y, weight=s.w, bias=s.h), w=weight(2, 3), h=weight(2)),
    "x @ W + b": token_row(lambda s, y: y @ s.w + s.h, w=weight(3, 2), h=weight(2)),
    "einsum over tokens": token_row(lambda s, y: torch.einsum("bnc,cd->bnd", y, s.w), w=weight(3, 2)),
    "einsum, weight first": token_row(lambda s, y: torch.einsum("oc,bnc->bno", s.w, y), w=weight(2, 3)),
    "einsum with an ellipsis": token_row(lambda s, y: torch.einsum("...c,cd->...d", y, s.w), w=weight(3, 2)),
    "torch.mm": Row(
        lambda s, x: torch.mm(s.a(x), s.w), {"a": lambda: nn.Linear(4, 3), "w": weight(3, 2)}, LINEAR, 4, FLAT, ()
    ),
    "torch.addmm": Row(
        lambda s, x: torch.addmm(s.h, s.a(x), s.w),
        {"a": lambda: nn.Linear(4, 3), "w": weight(3, 2), "h": weight(2)},
        LINEAR,
        4,
        FLAT,
        (),
    ),
    "torch.addmm(beta, alpha)": Row(
        lambda s, x: torch.addmm(s.h, s.a(x), s.w, beta=2, alpha=0.5),
        {"a": lambda: nn.Linear(4, 3), "w": weight(3, 2), "h": weight(2)},
        LINEAR,
        4,
        FLAT,
        (),
    ),
    "einsum as 1x1": after(lambda s, y: torch.einsum("bchw,oc->bohw", y, s.w), w=weight(2, 4)),
    "einsum as 1x1, weight first": after(lambda s, y: torch.einsum("oi,nihw->nohw", s.w, y), w=weight(2, 4)),
    "einsum as a scale": after(lambda s, y: torch.einsum("bchw,c->bchw", y, s.w), w=weight(4)),
    "F.bilinear is none, two linears are": Row(
        lambda s, x: s.b(s.a(x)), {"a": lambda: nn.Linear(4, 3), "b": lambda: nn.Linear(3, 2)}, LINEAR, 4, FLAT, ()
    ),
}


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2.0 * weight.flip(-1)


class Centred(nn.Module):
    """A parametrization with state of its own."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(like))

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True) + self.shift


class Masked(nn.Conv2d):
    """weight * mask, in its own forward."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.register_buffer("mask", torch.ones(1, 1, 3, 3).triu())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class CentralDifference(nn.Conv2d):
    """A subclass that calls F.conv2d with a weight of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - F.pad(self.weight.sum((2, 3), keepdim=True), (1, 1, 1, 1))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def registered(kind: Callable[[nn.Conv2d], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = conv(4, 4)
        parametrize.register_parametrization(module, "weight", kind(module))
        return module

    return make


def generated(make: Callable[[], nn.Module]) -> Row:
    """A convolution whose weight is an expression, a norm behind it, and a 1x1 beside it."""
    return Row(lambda s, x: s.n(s.w(x)) + s.a(x), {"w": make, "a": c(4, 4, 1), "n": lambda: BN(4)})


WEIGHTS: dict[str, Row] = {
    "parametrize": generated(registered(lambda m: Doubled())),
    "parametrize with state": generated(registered(lambda m: Centred(m.weight))),
    "weight_norm hook": generated(lambda: weight_norm(conv(4, 4))),
    "weight_norm parametrization": generated(lambda: parametrizations.weight_norm(conv(4, 4))),
    "spectral_norm hook": generated(lambda: spectral_norm(conv(4, 4))),
    "spectral_norm parametrization": generated(lambda: parametrizations.spectral_norm(conv(4, 4))),
    "ScaledStdConv2d": generated(lambda: ScaledStdConv2d(4, 4, 3, padding=1)),
    "ScaledStdConv2dSame": Row(
        lambda s, x: s.n(s.w(x)), {"w": lambda: ScaledStdConv2dSame(4, 4, 3), "n": lambda: BN(4)}, example=(8, 8)
    ),
    "masked subclass": generated(Masked),
    "subclass calling F.conv2d": generated(lambda: CentralDifference(4, 4, 3, padding=1)),
    "masked, functional": Row(
        lambda s, x: s.n(F.conv2d(x, s.w * s.m, s.h, padding=1)) + s.a(x),
        {
            "w": weight(4, 4, 3, 3),
            "h": weight(4),
            "m": lambda: torch.ones(1, 1, 3, 3).tril(),
            "a": c(4, 4, 1),
            "n": lambda: BN(4),
        },
    ),
    "einsum-built": Row(
        lambda s, x: F.conv2d(x, torch.einsum("om,mihw->oihw", s.w[:, :, 0, 0], s.v), padding=1) + s.a(x),
        {"w": weight(4, 2, 1, 1), "v": weight(2, 4, 3, 3), "a": c(4, 4, 1)},
    ),
    "sum of kernels": Row(
        lambda s, x: s.n(F.conv2d(x, s.w + F.pad(s.v, (1, 1, 1, 1)), s.h, 1, 1)),
        {"w": weight(4, 4, 3, 3), "v": weight(4, 4, 1, 1), "h": weight(4), "n": lambda: BN(4)},
    ),
    "torch.conv2d": Row(
        lambda s, x: s.n(torch.conv2d(x, s.w, s.h, padding=1)),
        {"w": weight(4, 4, 3, 3), "h": weight(4), "n": lambda: BN(4)},
    ),
    "F.conv1d": Row(
        lambda s, x: s.n(F.conv1d(x, s.w, s.h, padding=1)),
        {"w": weight(4, 4, 3), "h": weight(4), "n": lambda: nn.BatchNorm1d(4)},
        sizes=LONG,
    ),
    "masked linear": Row(
        lambda s, x: s.a(F.linear(x, s.w * s.m)),
        {"w": weight(3, 4), "m": lambda: torch.ones(3, 4).tril(), "a": lambda: nn.Linear(3, 2)},
        LINEAR,
        4,
        FLAT,
        (),
    ),
}
HEADS: dict[str, Row] = {
    "(a + b) / 2": heads(lambda s, a, b: (a + b) / 2),
    "(a + b) * 0.5": heads(lambda s, a, b: (a + b) * 0.5),
    "0.5 * a + 0.5 * b": heads(lambda s, a, b: 0.5 * a + 0.5 * b),
    "torch.stack.mean(0)": heads(lambda s, a, b: torch.stack([a, b]).mean(0)),
    "torch.stack(dim=1).mean(dim=1)": heads(lambda s, a, b: torch.stack([a, b], dim=1).mean(dim=1)),
    "torch.stack(dim=2).mean(2)": heads(lambda s, a, b: torch.stack([a, b], 2).mean(2)),
    "torch.mean(stack, dim=0)": heads(lambda s, a, b: torch.mean(torch.stack([a, b]), dim=0)),
    "sum([a, b]) / len": heads(lambda s, a, b: sum([a, b]) / 2),
    "torch.add(a, b).div(2)": heads(lambda s, a, b: torch.add(a, b).div(2)),
    "torch.lerp(a, b, 0.5)": heads(lambda s, a, b: torch.lerp(a, b, 0.5)),
    "a.add_(b).mul_(0.5)": heads(lambda s, a, b: a.add_(b).mul_(0.5)),
    "torch.stack.sum(0) / 2": heads(lambda s, a, b: torch.stack([a, b]).sum(0) / 2),
    "cat, reshape, mean is left out; a / 2 + b / 2": heads(lambda s, a, b: a / 2 + b / 2),
}
ROWS = SELECTIONS | SPLITS | PADDINGS | POOLS | NORMS | ARITHMETIC | LINEARS | WEIGHTS | HEADS


@pytest.mark.parametrize("name", ROWS)
def test_folds(name: str) -> None:
    row = ROWS[name]
    original, fused = compiled(row.make(), row.channels, row.sizes, row.example)
    size = (8, 8) if len(row.sizes[0]) == 2 else row.sizes[-1]
    found = counted(left(fused, row.channels, size))
    listing = "\n".join(f"  {d}" for d in repfx.report(fused).declines)
    assert found == row.left, f"of {counted(left(original, row.channels, size))}\n{listing}"


# --- near misses ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stays:
    """A network in which `kept` operations must stay, for this reason at this place."""

    run: Run
    parts: dict[str, Callable[[], Any]]
    place: str
    fact: str
    kept: dict[str, int]
    reason: Reason = Reason.NOT_EXACT
    sizes: Sequence[Sequence[int]] = ((8, 8), (5, 8), (9, 8))
    example: Sequence[int] | None = None


PAIR: dict[str, Callable[[], Any]] = {"a": c(4, 4), "b": c(4, 4, 1)}
NORM: dict[str, Callable[[], Any]] = {"a": c(4, 4), "n": lambda: BN(4)}
TWO_CONVS = {"convolutions": 2}
LONE_NORM = {"convolutions": 1, "batch_norms": 1}
FOLLOWS = "which is no affine map, and nothing that reads it can take it up"


def mixed_experts(s: Any, x: Tensor) -> Tensor:
    """CondConv: kernels mixed by a gate that looks at the input."""
    gate = torch.softmax(x.mean((0, 2, 3))[:2], 0).view(2, 1, 1, 1, 1)
    return s.n(F.conv2d(x, (gate * s.w).sum(0), padding=1))


STAYS: dict[str, Stays] = {
    # --- weights that depend on the input
    "weight times a mean of the input": Stays(
        lambda s, x: s.n(F.conv2d(x, s.w * torch.sigmoid(x.mean()), padding=1)),
        {"w": weight(4, 4, 3, 3), "n": lambda: BN(4)}, "conv2d", "its weight depends on the input", LONE_NORM,
    ),
    "mixed experts": Stays(
        mixed_experts, {"w": weight(2, 4, 4, 3, 3), "n": lambda: BN(4)}, "conv2d", "its weight depends on the input",
        LONE_NORM,
    ),
    "bias that depends on the input": Stays(
        lambda s, x: s.n(F.conv2d(x, s.w, x.mean((0, 2, 3)), padding=1)),
        {"w": weight(4, 4, 3, 3), "n": lambda: BN(4)}, "conv2d", "its bias depends on the input", LONE_NORM,
    ),
    "index that depends on the input": Stays(
        lambda s, x: s.b(s.a(x)[:, x.mean((0, 2, 3)).argsort()]), PAIR, "getitem", "its index depends on the input",
        TWO_CONVS,
    ),
    "mask for an index": Stays(
        lambda s, x: s.b(s.a(x)[:, s.m]),
        {"a": c(4, 4), "b": c(2, 4, 1), "m": lambda: torch.tensor([True, False, True, False])},
        "getitem", "its index is a mask", TWO_CONVS,
    ),
    "index of an unknown number of channels": Stays(
        lambda s, x: s.b(x[:, [1, 0]]), {"b": c(2, 4, 1)}, "getitem", "channel count is not known",
        {"convolutions": 1}, Reason.UNKNOWN_FACT,
    ),
    # --- what stands in between is not affine
    "norm behind an activation": Stays(
        lambda s, x: s.n(torch.relu(s.a(x))), NORM, "n", f"follows relu, {FOLLOWS}", LONE_NORM
    ),
    "norm behind c / x": Stays(
        lambda s, x: s.n(1.0 / (s.a(x).abs() + 1)), NORM, "n", f"follows truediv, {FOLLOWS}", LONE_NORM
    ),
    "norm behind a rounded division": Stays(
        lambda s, x: s.n(torch.div(s.a(x), 0.5, rounding_mode="floor")), NORM, "n", f"follows div, {FOLLOWS}", LONE_NORM
    ),
    "norm behind another memory format": Stays(
        lambda s, x: s.n(s.a(x).contiguous(memory_format=torch.channels_last)), NORM, "contiguous",
        "changes the memory format", LONE_NORM,
    ),
    "norm behind a maximum": Stays(
        lambda s, x: s.n(torch.stack([s.a(x), s.b(torch.relu(x))]).amax(0)), PAIR | {"n": lambda: BN(4)}, "n",
        f"follows amax, {FOLLOWS}", {"convolutions": 2, "batch_norms": 1},
    ),
    "lerp by the input": Stays(
        lambda s, x: torch.lerp(s.a(x), s.b(torch.relu(x)), torch.sigmoid(x)), PAIR, "lerp", "its weight is no number",
        TWO_CONVS,
    ),
    "lerp of an activation": Stays(
        lambda s, x: torch.lerp(torch.relu(x), s.b(x), s.g), {"b": c(4, 4), "g": weight(4, 1, 1)}, "lerp",
        "what it mixes cannot take it up", {"convolutions": 1},
    ),
    "lerp by a weight that varies over the image": Stays(
        lambda s, x: torch.lerp(s.a(x), s.b(torch.relu(x)), s.g), PAIR | {"g": weight(4, 8, 8)}, "lerp",
        "its weight is no number", TWO_CONVS, sizes=((8, 8),),
    ),
    "addcmul by a weight that varies over the image": Stays(
        lambda s, x: torch.addcmul(s.a(x), s.b(torch.relu(x)), s.g), PAIR | {"g": weight(1, 1, 8, 8)}, "addcmul",
        "cannot take the factor up", TWO_CONVS, sizes=((8, 8),),
    ),
    "addcmul of two values": Stays(
        lambda s, x: torch.addcmul(x, s.a(x), s.b(torch.relu(x))), PAIR, "addcmul", "multiplies two values", TWO_CONVS
    ),
    # --- products that are no 1x1 convolution
    "einsum over the height": Stays(
        lambda s, x: s.n(torch.einsum("bchw,wk->bchk", s.a(x), s.w)), NORM | {"w": weight(8, 8)}, "n",
        "mixes maps over 0 and 2 spatial axes", LONE_NORM,
    ),
    "einsum over the rows": Stays(
        lambda s, x: s.n(torch.einsum("bchw,hk->bckw", s.a(x), s.w)), NORM | {"w": weight(8, 8)}, "einsum",
        "contracts other axes than the channels", LONE_NORM, sizes=((8, 8), (8, 3)),
    ),
    "einsum that sums the height up": Stays(
        lambda s, x: torch.einsum("bchw,cd->bdw", s.a(x), s.w), {"a": c(4, 4), "w": weight(4, 4)}, "einsum",
        "contracts other axes than the channels", {"convolutions": 1},
    ),
    "matrix from the left": Stays(
        lambda s, x: s.n(s.w @ s.a(x)), NORM | {"w": weight(8, 8)}, "matmul",
        "multiplies an axis that is not the channel axis", LONE_NORM, sizes=((8, 8), (8, 3)),
    ),
    "matrix per channel": Stays(
        lambda s, x: s.n(s.a(x) @ s.w), NORM | {"w": weight(4, 8, 8)}, "matmul", "a constant of 3 axes", LONE_NORM
    ),
    "scale of a value that it spreads": Stays(
        lambda s, x: s.n(s.a(x).mean((1, 2, 3), keepdim=True) * s.g), NORM | {"g": weight(4, 1, 1)}, "mul",
        "spreads a value over a constant", LONE_NORM,
    ),
    # --- padding modes
    "reflect, then zeros": Stays(
        lambda s, x: s.b(s.a(x)), {"a": c(4, 4, groups=4, padding_mode="reflect"), "b": c(4, 4, groups=4)}, "b",
        "zero-pads the output of a reflect-padded map", TWO_CONVS,
    ),
    "zeros, then circular": Stays(
        lambda s, x: s.b(s.a(x)), {"a": c(4, 4, groups=4), "b": c(4, 4, groups=4, padding_mode="circular")}, "b",
        "circular-pads a zeros-padded map", TWO_CONVS,
    ),
    "pads and crops at once": Stays(
        lambda s, x: s.b(F.pad(s.a(x), (1, -1, 0, 0), mode="circular")), PAIR, "pad",
        "pads and crops, the crop first", TWO_CONVS,
    ),
    "circular and strided, then circular": Stays(
        lambda s, x: s.b(s.a(x)),
        {"a": c(4, 4, groups=4, stride=2, padding_mode="circular"), "b": c(4, 4, groups=4, padding_mode="circular")},
        "b", "circular-pads a map that is not per-pixel", TWO_CONVS,
    ),
    "replicate beside zeros, concatenated": Stays(
        lambda s, x: torch.cat([s.a(x), s.b(x)], 1),
        {"a": c(4, 4, groups=4), "b": c(4, 4, groups=4, padding_mode="replicate")}, "cat",
        "concatenates maps with padding modes replicate and zeros", TWO_CONVS,
    ),
    "one axis by zeros, the other by reflection": Stays(
        lambda s, x: s.a(F.pad(F.pad(x, (1, 1)), (0, 0, 1, 1), mode="reflect")), {"a": c(4, 4, 3, 0)}, "pad_1",
        "reflect-pads a zeros-padded map", {"convolutions": 1, "others": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    case = STAYS[name]
    network = Net(case.run, **{part: make() for part, make in case.parts.items()})
    _, fused = compiled(network, 4, case.sizes, case.example)
    assert_declined(fused, case.reason, case.place, case.fact)
    found = counted(left(fused, 4, case.sizes[0]))
    assert {kind: found.get(kind, 0) for kind in case.kept} == case.kept


def test_going_round_more_than_once_survives_compiling_again_and_exporting() -> None:
    """torch's own circular padding refuses images smaller than the pad; each of the two had room."""
    mode = "circular"
    network = Net(
        lambda s, x: s.b(s.a(x)), a=conv(4, 4, groups=4, padding_mode=mode), b=conv(4, 4, groups=4, padding_mode=mode)
    )
    original, fused = compiled(network, 4, ((1, 1), (8, 8), (1, 5)))
    longer = Net(lambda s, x: s.n(s.f(x)), f=fused, n=hostile.prepared(BN(4), 1)).eval()
    again = repfx.reparameterize(longer)
    assert "batch_norms" not in counted(left(again, 4))
    hostile.assert_same(longer, again, torch.randn(2, 4, 1, 3, dtype=torch.float64))
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    size = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(fused, (torch.randn(1, 4, 9, 12).double(),), dynamic_shapes=(size,)).module()
    x = torch.randn(1, 4, 5, 14).double()
    with torch.no_grad():
        assert hostile.relative_error(original(x), program(x)) <= hostile.TOLERANCE


def test_a_norm_between_transpositions_that_others_read_too() -> None:
    """The norm is one of the input by way of the transpositions, and still itself for the other reader."""

    def run(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        n = s.n(x.transpose(2, 3))
        return s.a(n), s.b(n.transpose(2, 3))

    network = Net(run, a=conv(4, 4, 3, 0), b=conv(4, 4, 1), n=BN(4))
    _, fused = compiled(network, 4, LARGE, (8, 8))
    assert counted(left(fused, 4)) == {"convolutions": 2}


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: s.b(s.a(x)[[1, 0]]),
        lambda s, x: s.b(s.a(x)[s.i, :]),
        lambda s, x: s.b(s.a(x)[:, :, s.i]),
        lambda s, x: s.b(s.a(x)[:, :, x.shape[2] // 2].unsqueeze(2)),
        lambda s, x: s.b(torch.roll(s.a(x), 1, 2)),
        lambda s, x: s.b(torch.roll(s.a(x), 1)),
        lambda s, x: s.b(s.a(x).flip(2, 3)),
        lambda s, x: s.b(s.a(x).flip(0)),
    ],
    ids=["batch", "batch by tensor", "rows", "one row", "rolled rows", "rolled flat", "flipped image", "flipped batch"],
)
def test_indices_of_other_axes_than_the_channels(run: Run) -> None:
    _, fused = compiled(Net(run, a=conv(4, 4), b=conv(4, 4, 1), i=torch.tensor([1, 0])), 4, ((8, 8), (5, 7)))
    assert counted(left(fused, 4))["convolutions"] == 2
    assert not repfx.report(fused).declines


def test_moved_back_to_another_place() -> None:
    """Height and width come back exchanged, which is nothing to a scale per channel."""
    _, fused = compiled(
        Net(
            lambda s, x: (s.a(x).permute(0, 2, 3, 1) * s.g).permute(0, 3, 2, 1),
            a=conv(4, 4),
            g=nn.Parameter(torch.zeros(4)),
        ),
        4,
    )
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_a_channel_order_does_not_pass_a_norm_of_tokens() -> None:
    """A lifted operation that looks through the reordered value keeps its order."""

    def run(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = s.p(s.a(x)).relu()
        z = y.transpose(1, 2).contiguous().relu()
        n = s.n(z.transpose(1, 2))
        return s.b(n), n.transpose(1, 2)

    parts = {"a": nn.Conv1d(4, 4, 1), "b": nn.Conv1d(4, 4, 1), "n": nn.BatchNorm1d(4), "p": nn.ChannelShuffle(2)}
    _, fused = compiled(Net(run, **parts), 4, LONG, (5,))
    found = left(fused, 4, (5,))
    assert (found.convolutions, found.batch_norms, found.permutations) == (2, 1, 0)
    assert "ChannelShuffle" not in str(fused), "its order is in the weights of a"
