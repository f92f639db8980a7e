"""Traps that no list names: what an adversary tried, and what was wrong once.  Each is a named regression.

Every network is compiled under both objectives, with and without an example input, and compared with the
original call by call: results, shapes, dtypes, and what the forward does to its input and to its own state.
Nothing is said here about what folds; a trap is passed by leaving the operation as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.utils._pytree import tree_flatten

import repfx
from repfx.decline import Reason
from tests import hostile
from tests.check import OBJECTIVES
from tests.compiling import Net, assert_declined, conv

BN = nn.BatchNorm2d
IMAGE = (2, 4, 8, 8)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.complex128: 1e-10}


@dataclass(frozen=True)
class Trap:
    """A network, the shape of its example, and the shapes it is called with, in this order."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    others: tuple[tuple[int, ...], ...] = ()
    dtype: torch.dtype | None = torch.float64  # None: as made, with float32 inputs


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 2, 60).repeat(20)[: torch.Size(shape).numel()].reshape(shape).to(dtype))


def net(run: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], Net]:
    """A network with a 3x3 convolution a, 1x1 convolutions b and c, a norm n, and more parts."""
    return lambda: Net(
        run, a=conv(4, 4), b=conv(4, 4, 1), c=conv(4, 4, 1), n=BN(4), **{name: part() for name, part in parts.items()}
    )


# --- memory ---------------------------------------------------------------------------------------


def written(write: Callable[[Net, Tensor], Any]) -> Trap:
    """b and c read one value, which `write` changes in between: they must not become one convolution."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        before = s.b(y)
        write(s, y)
        return before + s.c(y)

    return Trap(net(run, d=nn.Dropout2d, i=Overwriting, h=hooked, r=lambda: nn.ReLU(inplace=True)))


class Overwriting(nn.Module):
    """Does not trace, and changes its argument."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        x.mul_(2.0)
        return x.sin()


def hooked() -> nn.Module:
    """A module whose hook changes its argument in place."""
    module = nn.Tanh()
    module.register_forward_pre_hook(lambda module, args: args[0].mul_(2.0).sum() and None)
    return module


def power(s: Net, y: Tensor) -> None:
    y **= 2


def floored(s: Net, y: Tensor) -> None:
    y //= 0.25


def remainder(s: Net, y: Tensor) -> None:
    y %= 0.25


def into_out(s: Net, y: Tensor) -> None:
    torch.add(torch.sin(y), 1.0, out=y)


def one_relu_for_values_and_views(s: Net, x: Tensor) -> Tensor:
    y = s.r(s.a(x)) - 1
    first, _ = y.chunk(2, 1)
    s.r(first)
    return s.b(y)


def a_clone_protects_from_an_in_place_relu(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    first, _ = y.chunk(2, 1)
    s.r(first)
    z = s.b(y)
    copied = z.clone()
    s.r(copied)
    return s.c(z) + copied


def a_clone_protects_from_an_island(s: Net, x: Tensor) -> Tensor:
    y = torch.tanh(x)
    copied = y.clone()
    out = s.i(copied)
    return s.b(y) + out


def switched_requires_grad(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    y.requires_grad_(False)
    return s.n(y)


# --- state ----------------------------------------------------------------------------------------


def counting_buffer(s: Net, x: Tensor) -> Tensor:
    s.k.add_(1.0)
    return s.a(x) * s.k


def counted_afterwards(s: Net, x: Tensor) -> Tensor:
    y = s.a(x) * s.k
    s.k.add_(1.0)
    return y


def written_statistics(s: Net, x: Tensor) -> Tensor:
    s.n.running_mean.add_(1.0)
    return s.n(s.a(x))


def written_weight(s: Net, x: Tensor) -> Tensor:
    s.a.weight.data.mul_(2.0)
    return s.n(s.a(x))


def assigned_buffer(s: Net, x: Tensor) -> Tensor:
    s.k[0] = x.mean()
    return s.a(x) * s.k


def copied_buffer(s: Net, x: Tensor) -> Tensor:
    s.k.copy_(x.mean())
    return s.a(x) * s.k


def counting_attribute(s: Net, x: Tensor) -> Tensor:
    s.count += 1
    return s.a(x) * s.count


def remembered_output(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    if s.last is not None:
        y = y + s.last
    s.last = y.detach()
    return s.b(y)


def many_numbers(x: Tensor) -> Tensor:
    for _ in range(600):
        x = x * 1.001
    return x


class Stateful(Net):
    """With Python attributes that the forward changes."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__(run, **parts)
        self.count, self.last = 1, None


def another_part_next_time(s: Net, x: Tensor) -> Tensor:
    y = s.r(s.n(s.a(x)))
    s.r = nn.Sigmoid()
    return y


def reassigned_buffer(s: Net, x: Tensor) -> Tensor:
    s.k = s.k + 1.0
    return s.a(x) + s.k


def remembered_in_a_list(s: Net, x: Tensor) -> Tensor:
    s.kept["last"].append(s.a(x))
    return s.b(s.kept["last"][0])


def counted_in_a_dictionary(s: Net, x: Tensor) -> Tensor:
    s.kept["calls"] += 1
    return s.a(x) * s.kept["calls"]


def flagged_in_a_dictionary(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    if "done" not in s.kept:
        s.kept["done"] = True
        y = y * 2.0
    return y


def taken_out_of_a_dictionary(s: Net, x: Tensor) -> Tensor:
    return s.a(x) * (2.0 if s.kept.pop("calls", None) is not None else 1.0)


def hooked_on_the_way(s: Net, x: Tensor) -> Tensor:
    if not s.a._forward_hooks:
        s.a.register_forward_hook(lambda module, args, output: output * 2.0)
    return s.n(s.a(x))


def saved_work(s: Net, x: Tensor) -> Tensor:
    if "scale" not in s.kept:
        s.kept["scale"] = s.g.exp()
    return s.n(s.a(x)) * s.kept["scale"]


class Keeping(Net):
    """With a dictionary that the forward writes to."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__(run, **parts)
        self.kept: dict[str, Any] = {"last": [], "calls": 0}


class Bending(nn.Conv2d):
    """Does more in a call than in its forward."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).tanh()


class Centred(nn.Conv2d):
    """Computes with another weight than its own."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Subclass(nn.Conv2d):
    """A convolution like torch's."""


def patched(conv: nn.Module, name: str) -> nn.Module:
    """A layer with a method of its own on the object."""
    original = getattr(conv, name)
    setattr(conv, name, lambda *args: original(*args) * 3.0)
    return conv


class MadeAnew(nn.Module):
    """Puts another activation in the place of its own at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        self.act = nn.Sigmoid()
        return self.act(x)


class MadeLate(nn.Module):
    """Makes its activation in the first forward."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "act"):
            self.act = nn.Sigmoid()
        return self.act(x)


class Inner(nn.Module):
    """A stateful module inside a network that keeps no state."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 1

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


def noise(s: Net, x: Tensor) -> Tensor:
    return s.n(s.a(x + torch.randn(4, 1, 1, dtype=x.dtype if isinstance(x, Tensor) else torch.float64)))


class Noise(nn.Module):
    """Draws numbers whose shape does not depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(4, 1, 1, dtype=torch.float64)


# --- dtypes ---------------------------------------------------------------------------------------


def autocast_inside(s: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return s.n(s.a(x))


def round_trip(s: Net, x: Tensor) -> Tensor:
    return s.n(s.a(x).half().to(x.dtype))


def in_bfloat16(run: Callable[..., Any], **parts: Callable[[], Any]) -> Trap:
    return Trap(lambda: Net(run, a=conv(4, 4).bfloat16(), **{name: part() for name, part in parts.items()}), dtype=None)


def complex_convs(s: Net, x: Tensor) -> Tensor:
    return s.q(s.p(torch.complex(x, -x))).abs()


def complex_scale(s: Net, x: Tensor) -> Tensor:
    return (s.a(x) * s.g).abs()


def complex_conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, 1, dtype=torch.complex64)


def rounded(s: Net, x: Tensor) -> Tensor:
    """Fake quantization: in float32 half of these weights are ties, which float64 would break otherwise."""
    return s.n(F.conv2d(x, torch.round(s.w / s.k).clamp(-8, 7) * s.k))


# --- channel orders -------------------------------------------------------------------------------


def shuffled(run: Callable[[Net, Tensor], Tensor], shape: tuple[int, ...] = (2, 4, 8, 4), **parts: Any) -> Trap:
    """`run` behind a shuffle that only an activation separates from the convolution before it."""
    return Trap(net(lambda s, x: run(s, s.p(torch.relu(s.a(x)))), p=lambda: nn.ChannelShuffle(2), **parts), shape)


TRAPS = {
    # an in-place operation, between two readers
    "y **= 2": written(power),
    "y //= 0.25": written(floored),
    "y %= 0.25": written(remainder),
    "add with out": written(into_out),
    "in place through mT": written(lambda s, y: y.mT.mul_(2.0)),
    "in place through T": written(lambda s, y: y.flatten(1).T.mul_(2.0)),
    "in place through data": written(lambda s, y: y.data.mul_(2.0)),
    "in place through real": written(lambda s, y: y.real.mul_(2.0)),
    "in place through a channel dropout": written(lambda s, y: s.d(y).mul_(2.0)),
    "in place through einsum": written(lambda s, y: torch.einsum("bchw->bhwc", y).mul_(2.0)),
    "positional inplace": written(lambda s, y: F.relu(y, True)),
    "an island that changes its argument": written(lambda s, y: s.i(y)),
    "a hook that changes the argument": written(lambda s, y: s.h(y)),
    "an island that changes a view": written(lambda s, y: s.i(y[:, :2])),
    "one in-place relu for values and views": Trap(
        net(one_relu_for_values_and_views, r=lambda: nn.ReLU(inplace=True))
    ),
    "a clone that protects from an in-place relu": Trap(
        net(a_clone_protects_from_an_in_place_relu, r=lambda: nn.ReLU(inplace=True))
    ),
    "a clone that protects from an island": Trap(net(a_clone_protects_from_an_island, i=Overwriting)),
    "requires_grad_ is no in-place operation": Trap(net(switched_requires_grad)),
    # state that one forward leaves for the next
    "a buffer that counts": Trap(net(counting_buffer, k=lambda: torch.zeros(()))),
    "a buffer that counts afterwards": Trap(net(counted_afterwards, k=lambda: torch.ones(()))),
    "written running statistics": Trap(net(written_statistics)),
    "a weight written through data": Trap(net(written_weight)),
    "a buffer assigned by item": Trap(net(assigned_buffer, k=lambda: torch.ones(4, 1, 1))),
    "a buffer copied into": Trap(net(copied_buffer, k=lambda: torch.ones(()))),
    "an attribute that counts": Trap(lambda: Stateful(counting_attribute, a=conv(4, 4))),
    "a remembered output": Trap(lambda: Stateful(remembered_output, a=conv(4, 4), b=conv(4, 4, 1))),
    "an inner attribute that counts": Trap(net(lambda s, x: s.n(s.i(s.a(x))), i=Inner)),
    "a buffer that is another one": Trap(net(reassigned_buffer, k=lambda: nn.Buffer(torch.zeros(())))),
    "a remembered output in a list": Trap(lambda: Keeping(remembered_in_a_list, a=conv(4, 4), b=conv(4, 4, 1))),
    "a counter in a dictionary": Trap(lambda: Keeping(counted_in_a_dictionary, a=conv(4, 4))),
    "a flag in a dictionary": Trap(lambda: Keeping(flagged_in_a_dictionary, a=conv(4, 4))),
    "a number taken out of a dictionary": Trap(lambda: Keeping(taken_out_of_a_dictionary, a=conv(4, 4))),
    "a hook registered on the way": Trap(net(hooked_on_the_way)),
    "a class that does more in a call": Trap(net(lambda s, x: s.b(torch.relu(s.t(x))), t=lambda: Bending(4, 4, 3))),
    "another weight in the class": Trap(net(lambda s, x: s.n(s.t(x)), t=lambda: Centred(4, 4, 3))),
    "a patched forward of a subclass": Trap(
        net(lambda s, x: s.n(s.t(x)), t=lambda: patched(Subclass(4, 4, 3), "forward"))
    ),
    "a patched inner method": Trap(net(lambda s, x: s.n(s.t(x)), t=lambda: patched(conv(4, 4), "_conv_forward"))),
    "an empty slice": Trap(net(lambda s, x: s.n(s.a(x))[:, :0].sum() + s.n(s.a(x)))),
    "many numbers in a row": Trap(net(lambda s, x: many_numbers(s.a(x)))),
    "another part for the next forward": Trap(net(another_part_next_time, r=nn.ReLU)),
    "a part made anew": Trap(net(lambda s, x: s.n(s.b(s.i(s.n(s.a(x))))), i=MadeAnew)),
    "a part made in the first forward": Trap(net(lambda s, x: s.b(s.i(s.n(s.a(x)))), i=MadeLate)),
    "noise of a fixed shape": Trap(net(lambda s, x: s.n(s.a(s.i(x))), i=Noise)),
    "noise of a fixed shape in the outermost forward": Trap(net(lambda s, x: s.n(Noise.forward(s, s.a(x))))),
    # dtypes
    "autocast inside": Trap(lambda: Net(autocast_inside, a=conv(4, 4), n=BN(4)), dtype=None),
    "half and back": Trap(lambda: Net(round_trip, a=conv(4, 4), n=BN(4)), dtype=None),
    "float32 norm, bfloat16 conv": in_bfloat16(lambda s, x: s.a(s.n(x.bfloat16())), n=lambda: BN(4)),
    "bfloat16 conv, float32 norm": in_bfloat16(lambda s, x: s.n(s.a(x.bfloat16())), n=lambda: BN(4)),
    "bfloat16 conv, float32 scale": in_bfloat16(lambda s, x: s.a(x.bfloat16()) * s.g, g=lambda: parameter(4, 1, 1)),
    "float32 conv, float64 scale": Trap(
        lambda: Net(lambda s, x: s.a(x) * s.g, a=conv(4, 4), g=parameter(4, 1, 1, dtype=torch.float64)), dtype=None
    ),
    "float64 scale in place": Trap(
        lambda: Net(
            lambda s, x: torch.relu(s.a(x)).mul_(s.g), a=conv(4, 4), g=parameter(4, 1, 1, dtype=torch.float64)
        ),
        dtype=None,
    ),
    "complex convolutions": Trap(net(complex_convs, p=complex_conv, q=complex_conv), dtype=None),
    "complex scale": Trap(
        lambda: Net(complex_scale, a=conv(4, 4), g=parameter(4, 1, 1, dtype=torch.complex64)), dtype=None
    ),
    "weights rounded at ties": Trap(
        lambda: Net(
            rounded,
            w=nn.Parameter((torch.arange(4 * 4 * 9).remainder(16) - 7.5).reshape(4, 4, 3, 3) * 0.1),
            k=torch.tensor(0.1),
            n=BN(4),
        ),
        dtype=None,
    ),
    "no parameters, float64": Trap(lambda: Net(lambda s, x: F.avg_pool2d(x, 3, 1, 1) + x)),
    "no parameters, float32": Trap(lambda: Net(lambda s, x: F.avg_pool2d(x, 3, 1, 1) + x), dtype=None),
    # spellings
    "stack along axis=": Trap(net(lambda s, x: torch.stack([s.a(x), s.b(x)], axis=1).sum(0))),
    "sum of a stack with keepdims=": Trap(net(lambda s, x: torch.stack([s.a(x), s.b(x)]).sum(0, keepdims=True))),
    "mean of a stack in another dtype": Trap(
        net(lambda s, x: torch.stack([s.a(x), s.b(x)]).mean(0, dtype=torch.float32))
    ),
    "pool of one pixel with a divisor": Trap(net(lambda s, x: F.avg_pool2d(s.a(x), 1, 1, 0, False, True, 5))),
    "pool module of one pixel with a divisor": Trap(
        net(lambda s, x: s.q(s.a(x)), q=lambda: nn.AvgPool2d(1, divisor_override=5))
    ),
    "constant with more axes than the value": Trap(
        lambda: Net(lambda s, x: s.a(x * s.g), a=nn.Linear(4, 3), g=parameter(1, 1, 4)), (2, 4)
    ),
    "constant (1,1,1,1) before a linear": Trap(
        lambda: Net(lambda s, x: s.a(x * s.g), a=nn.Linear(4, 3), g=parameter(1, 1, 1, 1)), (2, 4)
    ),
    # channel orders meet operations that tell channels apart, or read another axis
    "shuffle, instance norm with weights": shuffled(
        lambda s, y: s.b(s.i(y)), i=lambda: nn.InstanceNorm2d(4, affine=True)
    ),
    "shuffle, instance norm with statistics": shuffled(
        lambda s, y: s.b(s.i(y)), i=lambda: nn.InstanceNorm2d(4, track_running_stats=True)
    ),
    "shuffle, clamp per channel": shuffled(lambda s, y: s.b(torch.clamp(y, s.g)), g=lambda: parameter(4, 1, 1)),
    "shuffle, clamp method per channel": shuffled(lambda s, y: s.b(y.clamp(max=s.g)), g=lambda: parameter(4, 1, 1)),
    "shuffle, mean of rows, linear over columns": shuffled(
        lambda s, y: s.l(y.mean(2)), l=lambda: nn.Linear(4, 3)
    ),
    "shuffle, linear over columns": shuffled(lambda s, y: s.l(torch.sigmoid(y)), l=lambda: nn.Linear(4, 3)),
    "shuffle, constant per column": shuffled(lambda s, y: s.b(torch.sigmoid(y) * s.g), g=lambda: parameter(4)),
    "shuffle, constant per pixel": shuffled(
        lambda s, y: s.b(torch.sigmoid(y) * s.g), g=lambda: parameter(1, 4, 8, 4)
    ),
    "shuffle, pooled gate": shuffled(lambda s, y: s.b(y * y.mean((2, 3), keepdim=True))),
    "shuffle, prelu per channel": shuffled(lambda s, y: s.b(s.i(y)), i=lambda: nn.PReLU(4)),
    "shuffle, pooled, linear": shuffled(lambda s, y: s.l(y.mean((2, 3))), l=lambda: nn.Linear(4, 3)),
    "shuffle, mean of channels": shuffled(lambda s, y: s.b(y * y.mean(1, keepdim=True))),
    "shuffle, transposed axes": shuffled(lambda s, y: s.b(y.transpose(1, 2)), (2, 4, 4, 4)),
    # an example's sizes are no facts
    "first rows of a channels-last image": Trap(
        net(lambda s, x: s.a(torch.relu(x.permute(0, 2, 3, 1))[:, :8].permute(0, 3, 1, 2))),
        others=((2, 4, 12, 12),),
    ),
    "first columns by narrow": Trap(
        net(lambda s, x: torch.relu(s.a(x)).narrow(3, 0, 8).sin()), others=((2, 4, 8, 12),)
    ),
    "halves of the width swapped": Trap(
        net(lambda s, x: torch.cat(s.a(x).relu().chunk(2, -1)[::-1], -1).sin()), others=((2, 4, 8, 12), (2, 4, 6, 7))
    ),
    "first part of a split along the width": Trap(
        net(lambda s, x: torch.relu(s.a(x)).split(8, -1)[0].sin()), others=((2, 4, 8, 12),)
    ),
    "first tokens": Trap(
        lambda: Net(lambda s, x: s.a(torch.relu(x)[:, :8]), a=nn.Linear(4, 3)), (2, 8, 4), ((2, 12, 4),)
    ),
    "first samples of a signal": Trap(
        lambda: Net(lambda s, x: s.a(torch.relu(x)[..., :8]), a=nn.Conv1d(4, 4, 3)), (2, 4, 8), ((2, 4, 12),)
    ),
    "factors of scores between tokens": Trap(
        lambda: Net(
            lambda s, x: (s.a(y := torch.tanh(x)).sin() @ s.b(y).mT * s.t * 0.5 / 2).softmax(-1) @ y,
            a=nn.Linear(4, 3), b=nn.Linear(4, 3), t=nn.Parameter(torch.ones(1)),
        ),
        (2, 8, 4), ((2, 12, 4), (2, 1, 4)),
    ),
    "factors of tokens": Trap(
        lambda: Net(
            lambda s, x: torch.tanh(s.a(x).sin() * s.t * 0.5 + 2), a=nn.Linear(4, 3), t=nn.Parameter(torch.ones(1))
        ),
        (2, 8, 4), ((2, 12, 4), (2, 1, 4)),
    ),
    "factors of features": Trap(
        lambda: Net(lambda s, x: torch.tanh(x.sin() * s.t * 0.5 + 2), t=nn.Parameter(torch.ones(1))), (2, 8), ((2, 12),)
    ),
    "first features": Trap(lambda: Net(lambda s, x: torch.relu(x)[:, :8].sin()), (2, 8), ((2, 12),)),
    # values used in more than one way
    "inputs and duplicates among the outputs": Trap(net(lambda s, x: (x, y := s.a(x), {"again": y, "norm": s.n(y)}))),
    "one norm behind two convolutions": Trap(net(lambda s, x: s.n(s.a(x)) + s.n(s.b(x)))),
    "one norm before, between and after": Trap(net(lambda s, x: s.n(torch.relu(s.n(s.a(torch.relu(s.n(x)))))))),
    "a weight that another call uses too": Trap(
        net(lambda s, x: s.n(s.a(x)) + torch.relu(F.conv2d(x, s.a.weight.flip(-1), s.a.bias, padding=1)))
    ),
    "a value minus itself": Trap(net(lambda s, x: s.a(x) - s.a(x) + (x - x))),
    "a value plus itself, times nothing": Trap(net(lambda s, x: s.a(x + x) + 0.0 * x)),
    "sizes as numbers": Trap(net(lambda s, x: s.n(s.a(x) * x.shape[0] + x.size(1) - x.shape[2] / 2))),
    "a size as a third term": Trap(net(lambda s, x: s.a(x) + s.b(x) + x.shape[2])),
    "one channel broadcast over four": Trap(
        net(lambda s, x: s.n(s.a(x) + s.q(x)), q=lambda: conv(4, 1, 1)),
    ),
    "pooled values broadcast over the image": Trap(
        net(lambda s, x: s.c(s.a(x) + s.b(x).mean((2, 3), keepdim=True))),
    ),
    "an empty batch": Trap(
        net(lambda s, x: torch.cat([s.a(s.n(x)), x[:, 2:]], 1)), others=((0, 4, 8, 8),),
    ),
    # geometry
    "norm after a pad that also crops": Trap(net(lambda s, x: s.n(F.pad(x, (2, -1, 0, 3), value=1.5)))),
    "padded by a value, then by zeros": Trap(net(lambda s, x: s.a(F.pad(x, (2, -1, 0, 3), value=1.5)))),
    "padded channels": Trap(net(lambda s, x: s.q(F.pad(x, (1, 1, 1, 1, 1, 1))), q=lambda: conv(6, 4))),
    "padded features": Trap(
        lambda: Net(lambda s, x: F.linear(F.pad(torch.relu(x), (1, 1)), s.w), w=parameter(3, 6)), (2, 4)
    ),
    "stride larger than the kernel, pad larger than both": Trap(
        net(lambda s, x: s.b(s.q(s.n(x))), q=lambda: nn.Conv2d(4, 4, 4, stride=7, padding=9, dilation=2)),
        others=((2, 4, 3, 17),),
    ),
    "negative axes and keywords": Trap(
        net(lambda s, x: torch.cat(tensors=list(torch.chunk(input=s.a(input=x), chunks=2, dim=-3))[::-1], dim=-3))
    ),
}  # fmt: skip


def compared(original: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """One call of each, with the same random numbers: same results, same effect on the input."""
    mine, theirs = x.clone(), x.clone()
    with torch.no_grad():
        torch.manual_seed(3)
        expected = tree_flatten(original(theirs))[0]
        torch.manual_seed(3)
        actual = tree_flatten(fused(mine))[0]
    assert len(actual) == len(expected)
    for e, a in zip(expected, actual):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert hostile.relative_error(e, a) <= TOLERANCE[e.dtype]
    assert torch.equal(mine, theirs), "the input is changed in another way"


@pytest.mark.parametrize("name", TRAPS)
def test_trap(name: str) -> None:
    trap = TRAPS[name]
    original = trap.make().eval() if trap.dtype is None else hostile.prepared(trap.make(), 0)
    generator = torch.Generator().manual_seed(1)
    dtype = trap.dtype or torch.float32
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in (trap.shape, trap.shape, *trap.others)]
    for objective in OBJECTIVES:
        for example in (None, (inputs[0].clone(),)):
            before = hostile.snapshot(original)
            fused = repfx.reparameterize(original, example, objective=objective, verify=False)
            hostile.assert_untouched(original, before)
            reference = copy.deepcopy(original)
            for x in inputs:
                compared(reference, fused, x)


# --- calls that the table cannot spell ------------------------------------------------------------


def test_what_is_kept_to_save_work_is_no_state() -> None:
    """The attention biases of LeViT: computed from parameters in the first forward of a device."""
    model = hostile.prepared(Keeping(saved_work, a=conv(4, 4), n=BN(4), g=parameter(4, 1, 1)), 0)
    fused = repfx.reparameterize(model)
    report = repfx.report(fused)
    assert not report.islands
    assert (report.after.batch_norms, report.after.muls) == (0, 0)
    assert set(model.kept) == {"last", "calls"}
    hostile.assert_same(model, fused, torch.randn(IMAGE, dtype=torch.float64))


def bordered() -> nn.Module:
    """Norm, then a padded convolution: a border term when compiled."""
    return hostile.prepared(Net(lambda s, x: torch.relu(s.a(s.n(x))), a=conv(4, 4), n=BN(4)), 0)


def test_compiled_and_called_in_inference_mode() -> None:
    original = bordered()
    x = torch.randn(IMAGE, dtype=torch.float64)
    with torch.inference_mode():
        fused = repfx.reparameterize(original)
        hostile.assert_same(original, fused, x)
    hostile.assert_same(original, fused, x)


def test_a_border_term_follows_weights_that_are_changed_through_data() -> None:
    """An average of weights kept by `p.data.mul_` leaves no version behind."""
    fused = repfx.reparameterize(bordered())
    x = torch.randn(IMAGE, dtype=torch.float64)
    with torch.no_grad():
        before = fused(x)
        for parameter in fused.parameters():
            parameter.data.mul_(2.0)
        assert hostile.relative_error(2.0 * before, fused(x)) <= hostile.TOLERANCE


@pytest.mark.parametrize("part", ["a", "n", "l"])
def test_a_bias_that_a_hook_recomputes_is_stale(part: str) -> None:
    model = hostile.prepared(
        Net(lambda s, x: s.l(s.n(s.a(x)).mean((2, 3))), a=conv(4, 4), n=BN(4), l=nn.Linear(4, 3)), 0
    )
    weight_norm(model.get_submodule(part), "bias", dim=None)
    x = torch.randn(IMAGE, dtype=torch.float64)
    model(x)
    with torch.no_grad():
        model.get_submodule(part).bias_g.mul_(3.0)
    fused = repfx.reparameterize(model, verify=False)
    assert_declined(fused, Reason.NOT_EXACT, part, "a hook recomputes its bias at every call")
    hostile.assert_same(model, fused, x)
