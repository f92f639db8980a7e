"""Specification -> nn.Module.  Every module here traces with torch.fx unless its docstring says not."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import parametrize, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from tests import specs, tricks
from tests.pieces import (
    ACTS,
    AssignedBorder,
    ChannelLayerNorm,
    Doubled,
    DynamicConv,
    FunctionalNorm,
    NothingModule,
    PermuteModule,
    ScaleModule,
    SqueezeExcite,
    StridedSlice,
    SumWeightConv,
    TokenLinear,
)
from tests.specs import Node, divisor, shares

SUMS = (
    "add", "torch.add", "sum", "operator", "stack.sum", "stack.mean", "half", "weighted", "alpha", "sub",
    "gate", "iadd", "iadd.alias",
)  # fmt: skip
JOINS = ("cat", "interleave", "stack.reshape")
PRODUCTS = ("mul", "maximum")

SharedConvs = dict[tuple[int, int], nn.Conv2d]


def block(node: Node, channels: int) -> nn.Module:
    """The module of one node on `channels` input channels."""
    return build(node, channels, {})[0]


def network(spec: specs.Network) -> NetworkModule:
    """The module of a whole network."""
    return NetworkModule(spec)


def build(node: Node, channels: int, shared: SharedConvs) -> tuple[nn.Module, int]:
    """The module of a node, and how many channels it returns."""
    c = channels
    match node:
        case specs.Identity():
            return nn.Identity(), c
        case specs.Conv():
            return _conv(node, c)
        case specs.ConvTranspose(out, kernel, stride, padding, groups, bias):
            out = out or c
            conv = nn.ConvTranspose2d(c, out, kernel, stride, padding, 0, divisor(groups, c, out), bias)
            return conv, out
        case specs.Norm(spelling, affine):
            return _norm(spelling, affine, c), c
        case specs.Scale(spelling):
            return ScaleModule(spelling, c), c
        case specs.AvgPool(kernel, stride, padding, count, ceil, div):
            return nn.AvgPool2d(kernel, stride, min(padding, kernel // 2), ceil, count, div or None), c
        case specs.Pad(spelling="assign"):
            return AssignedBorder(c), c
        case specs.Pad(before, after, value):
            return nn.ConstantPad2d((before[1], after[1], before[0], after[0]), value), c
        case specs.Permute(spelling):
            return PermuteModule(spelling, c), c
        case specs.Resize(spelling):
            return _resize(spelling, c)
        case specs.Nothing(spelling):
            return NothingModule(spelling), c
        case specs.Act(spelling):
            return ACTS[spelling](), c
        case specs.MaxPool():
            return nn.MaxPool2d(3, 1, 1), c
        case specs.Gate("dynamic"):
            return DynamicConv(c), c
        case specs.Gate():
            return SqueezeExcite(c), c
        case specs.GroupNorm("layer"):
            return ChannelLayerNorm(c), c
        case specs.GroupNorm():
            return nn.GroupNorm(1, c), c
        case specs.Tokens():
            return TokenLinear(node, c), node.out or c
        case specs.Generated(spelling):
            return _generated(spelling, c), c
        case specs.Trick(spelling):
            return tricks.Trick(spelling, c), c
        case specs.Shared(key, tied, norm):
            return _shared(shared.setdefault((key, c), nn.Conv2d(c, c, 3, 1, 1)), tied, norm), c
        case specs.Serial(parts):
            return _serial(parts, c, shared)
        case specs.Twice(body):
            inner, out = build(body, c, shared)
            return TwiceModule(_fitted(inner, out, c)), c
        case specs.Parallel(branches, how):
            built = [build(branch, c, shared) for branch in branches]
            join = Join.of(how, built)
            return ParallelModule(join), join.channels
        case specs.Split(parts, spelling, how, order):
            sizes = shares(c, tuple(part.weight for part in parts))
            built = [build(part.node, size, shared) for part, size in zip(parts, sizes)]
            join = Join.of(how, built, order)
            return SplitModule(sizes, spelling, join), join.channels
        case _:
            assert_never(node)


# --- single operations ----------------------------------------------------------------------------


def _conv(node: specs.Conv, c: int) -> tuple[nn.Module, int]:
    out = node.out or c
    groups = divisor(node.groups, c, out)
    symmetric = node.before == node.after and min(node.before) >= 0
    if node.same and node.stride == (1, 1):
        padding: str | tuple[int, int] = "same"
    else:
        padding = node.before if symmetric else (0, 0)
    mode = node.mode if symmetric else "zeros"
    conv = nn.Conv2d(c, out, node.kernel, node.stride, padding, node.dilation, groups, node.bias, padding_mode=mode)  # type: ignore[arg-type]
    if symmetric or padding == "same":
        return conv, out
    (top, left), (bottom, right) = node.before, node.after
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv), out


def _norm(spelling: str, affine: bool, c: int) -> nn.Module:
    match spelling:
        case "functional":
            return FunctionalNorm(c)
        case "frozen":
            return FrozenBatchNorm2d(c)
        case "act":
            return BatchNormAct2d(c, act_layer=nn.ReLU)
        case "stateless":
            return nn.BatchNorm2d(c, affine=affine, track_running_stats=False)
        case _:
            return nn.BatchNorm2d(c, affine=affine)


def _resize(spelling: str, c: int) -> tuple[nn.Module, int]:
    match spelling:
        case "unshuffle":
            return nn.PixelUnshuffle(2), 4 * c
        case "shuffle" if c % 4 == 0:
            return nn.PixelShuffle(2), c // 4
        case "slice":
            return StridedSlice(), c
        case _:
            return nn.Upsample(scale_factor=2, mode="nearest"), c


def _shared(conv: nn.Conv2d, tied: bool, norm: bool) -> nn.Module:
    if tied:
        own = nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1)
        own.weight = conv.weight
        conv = own
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)) if norm else conv


def _serial(parts: Sequence[Node], c: int, shared: SharedConvs) -> tuple[nn.Module, int]:
    modules = []
    for part in parts:
        module, c = build(part, c, shared)
        modules.append(module)
    return nn.Sequential(*modules), c


def _fitted(module: nn.Module, has: int, wanted: int) -> nn.Module:
    return module if has == wanted else nn.Sequential(module, nn.Conv2d(has, wanted, 1))


def _generated(spelling: str, c: int) -> nn.Module:
    conv = nn.Conv2d(c, c, 3, 1, 1)
    match spelling:
        case "parametrized":
            parametrize.register_parametrization(conv, "weight", Doubled(), unsafe=True)
            return conv
        case "weight_norm":
            return weight_norm(conv)
        case "weight_norm.new":
            return nn.utils.parametrizations.weight_norm(conv)
        case _:
            return SumWeightConv(c)


# --- distribute and aggregate ---------------------------------------------------------------------


class TwiceModule(nn.Module):
    """body(body(x))."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x))


class Join(nn.Module):
    """Branches and how their results become one."""

    def __init__(self, branches: Sequence[nn.Module], channels: int, how: str, order: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.channels, self.how, self.order = channels, how, order
        self.alpha = nn.Parameter(torch.zeros(channels)) if how == "gate" else None

    @staticmethod
    def of(how: str, built: Sequence[tuple[nn.Module, int]], order: str = "same") -> Join:
        """Repair channel counts where the results must agree."""
        if how == "cat":
            widths = _ordered([width for _, width in built], order)
            return Join([module for module, _ in built], sum(widths), how, order)
        width = built[0][1]
        modules = [_fitted(module, has, width) for module, has in built]
        count = len(_ordered(list(range(len(built))), order))
        return Join(modules, width * count if how in JOINS else width, how, order)

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        outs = _ordered([branch(value) for branch, value in zip(self.branches, values)], self.order)
        if self.how == "gate" and len(outs) == 2:
            a = torch.sigmoid(self.alpha).view(1, -1, 1, 1)  # type: ignore[arg-type]
            return (1 - a) * outs[0] + a * outs[1]
        return joined(self.how, outs)


def _ordered(items: list[Any], order: str) -> list[Any]:
    match order:
        case "reversed":
            return items[::-1]
        case "dropped" if len(items) > 1:
            return items[:-1]
        case "doubled":
            return [*items, items[0]]
        case _:
            return items


def joined(how: str, outs: list[Tensor]) -> Tensor:
    """The results as one tensor, in the spelling `how`."""
    first, *rest = outs
    match how:
        case "cat":
            return torch.cat(outs, dim=1)
        case "interleave":
            return torch.stack(outs, 2).flatten(1, 2)
        case "stack.reshape":
            B, C, H, W = first.shape
            return torch.stack(outs, dim=2).reshape(B, C * len(outs), H, W)
        case "sum":
            return sum(outs)  # type: ignore[return-value]
        case "stack.sum":
            return torch.stack(outs).sum(0)
        case "stack.mean":
            return torch.mean(torch.stack(outs), 0)
        case "half":
            return sum(rest, start=first) / len(outs)
        case "weighted":
            return sum(0.5 ** (i + 1) * out for i, out in enumerate(outs))  # type: ignore[return-value]
        case "iadd.alias":
            total = first
            for out in rest:
                total += out
            return total + first
        case _:
            total = first
            for out in rest:
                total = _pair(how, total, out)
            return total


def _pair(how: str, a: Tensor, b: Tensor) -> Tensor:
    match how:
        case "torch.add":
            return torch.add(a, b)
        case "operator":
            return operator.add(a, b)
        case "alpha":
            return torch.add(a, b, alpha=0.5)
        case "sub":
            return a - b
        case "iadd":
            a += b
            return a
        case "mul":
            return a * b
        case "maximum":
            return torch.maximum(a, b)
        case _:
            return a + b


class ParallelModule(nn.Module):
    """Every branch reads x."""

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join([x] * len(self.join.branches))


class SplitModule(nn.Module):
    """Every branch reads its share of the channels."""

    def __init__(self, sizes: Sequence[int], spelling: str, join: Join) -> None:
        super().__init__()
        self.sizes, self.spelling = list(sizes), spelling
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.parts(x))

    def parts(self, x: Tensor) -> list[Tensor]:
        """The shares, in the spelling asked for."""
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        count = len(self.sizes)
        match self.spelling:
            case "slice":
                return [x[:, a : a + n] for a, n in zip(starts, self.sizes)]
            case "narrow":
                return [x.narrow(1, a, n) for a, n in zip(starts, self.sizes)]
            case "chunk" if len(set(self.sizes)) == 1:
                pieces = x.chunk(count, dim=1)
            case "tensor_split":
                pieces = torch.tensor_split(x, starts[1:], dim=1)
            case _:
                pieces = torch.split(x, self.sizes, dim=1)
        return [pieces[i] for i in range(count)]


# --- whole networks -------------------------------------------------------------------------------


class NetworkModule(nn.Module):
    """Steps, taps and head of a `specs.Network`."""

    def __init__(self, spec: specs.Network) -> None:
        super().__init__()
        shared: SharedConvs = {}
        steps, c = [], spec.channels
        for node in spec.steps:
            module, c = build(node, c, shared)
            steps.append(module)
        self.steps = nn.ModuleList(steps)
        self.taps = sorted({tap % len(steps) for tap in spec.taps}) if steps else []
        self.returns = spec.returns
        self.head = None if spec.head is None else HeadModule(spec.head, c)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
        kept = []
        for i, step in enumerate(self.steps):
            x = step(x)
            if i in self.taps:
                kept.append(x)
        last = x if self.head is None else self.head(x)
        if not kept:
            return last
        if self.returns == "dict":
            return {"last": last, **{f"tap{i}": t for i, t in enumerate(kept)}}
        return (last, *kept)


class HeadModule(nn.Module):
    """Global pooling, then one linear or the average of several."""

    def __init__(self, head: specs.Head, c: int) -> None:
        super().__init__()
        self.pool, self.average = head.pool, head.average
        self.heads = nn.ModuleList(self._one(head, c) for _ in range(max(1, head.heads)))

    @staticmethod
    def _one(head: specs.Head, c: int) -> nn.Module:
        linear = nn.Linear(c, head.classes)
        return nn.Sequential(nn.BatchNorm1d(c), linear) if head.norm else linear

    def forward(self, x: Tensor) -> Tensor:
        match self.pool:
            case "adaptive":
                x = F.adaptive_avg_pool2d(x, 1).flatten(1)
            case "max":
                x = x.amax((2, 3))
            case _:
                x = x.mean((-2, -1))
        outs = [head(x) for head in self.heads]
        return outs[0] if len(outs) == 1 else joined(self.average, outs)
