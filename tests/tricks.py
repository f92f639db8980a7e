"""Steps of random networks that no plain layer is: views and in-place writes, code that does not trace, hooks,
other axes, generated weights, tokens and heads.  Each keeps the channel count and the spatial size."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Trick(nn.Module):
    """One of `TRICKS` on c channels, with the parts that they share."""

    def __init__(self, spelling: str, c: int) -> None:
        super().__init__()
        self.run = TRICKS[spelling]
        self.c = c
        self.a = nn.Conv2d(c, c, 3, 1, 1)
        self.b = nn.Conv2d(c, c, 1)
        self.norm = nn.BatchNorm2d(c)
        self.extra = PARTS[spelling](c) if spelling in PARTS else nn.Identity()
        self.g = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Branching(nn.Module):
    """Does not trace: its way depends on the values; one way works in place."""

    def __init__(self, c: int, overwrites: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, 1, 1), nn.BatchNorm2d(c))
        self.overwrites = overwrites

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e12:
            return x
        if self.overwrites:
            x.mul_(0.5)
        return torch.tanh(self.body(x))


def hooked(c: int) -> nn.Module:
    conv = nn.Conv2d(c, c, 1)
    conv.register_forward_hook(lambda module, args, out: out.clamp(min=-2.0))
    return conv


def write_half(s: Trick, x: Tensor) -> Tensor:
    y = s.a(x)
    before = s.b(y)
    first, _ = torch.tensor_split(y, [max(1, s.c // 2)], 1)
    first.mul_(0.5)
    return before + s.norm(y)


def write_slice(s: Trick, x: Tensor) -> Tensor:
    y = s.norm(x).clone()
    y[:, :1] = 1.0
    return s.b(y)


def write_clone(s: Trick, x: Tensor) -> Tensor:
    y = s.b(x)
    z = y.clone()
    F.relu(z, inplace=True)
    return s.a(y) + z


def power(s: Trick, x: Tensor) -> Tensor:
    y = torch.tanh(s.b(x))
    z = y
    z **= 2
    return s.a(y) + z


def into_out(s: Trick, x: Tensor) -> Tensor:
    y = torch.tanh(x)
    before = s.b(y)
    torch.add(y, 1.0, out=y)
    return before + s.a(y)


def island(s: Trick, x: Tensor) -> Tensor:
    y = torch.tanh(x)
    before = s.b(y)
    between = s.extra(y)
    return before + s.a(y) + between


def pooled_gate(s: Trick, x: Tensor) -> Tensor:
    return s.norm(s.a(x) + s.b(x).mean((2, 3), keepdim=True))


def one_channel(s: Trick, x: Tensor) -> Tensor:
    return s.norm(s.a(x) + s.extra(x))


def einsum(s: Trick, x: Tensor) -> Tensor:
    return s.norm(torch.einsum("oi,bihw->bohw", s.b.weight[:, :, 0, 0] * s.g, x))


def generated(s: Trick, x: Tensor) -> Tensor:
    weight = s.a.weight * torch.sigmoid(s.g).view(-1, 1, 1, 1) + F.pad(s.b.weight, (1, 1, 1, 1))
    return s.norm(F.conv2d(input=x, weight=weight, bias=s.a.bias + s.g, padding=(1, 1)))


def tied(s: Trick, x: Tensor) -> Tensor:
    return s.norm(s.a(x)) + F.conv2d(x, s.a.weight.flip(2), padding=1) + F.conv2d(torch.tanh(x), s.a.weight, padding=1)


def shared_norm(s: Trick, x: Tensor) -> Tensor:
    return s.norm(s.a(s.norm(x))) + s.norm(s.b(x))


def padded(mode: str) -> Callable[[Trick, Tensor], Tensor]:
    return lambda s, x: F.conv2d(F.pad(s.norm(s.b(x)), (1, 1, 1, 1), mode=mode), s.a.weight, s.a.bias)


def layer_norm_linear(s: Trick, x: Tensor) -> Tensor:
    norm, linear = s.extra
    y = linear(norm(x.permute(0, 2, 3, 1))) * s.g
    return y.permute(0, 3, 1, 2) + x


def bilinear(s: Trick, x: Tensor) -> Tensor:
    y = F.interpolate(s.norm(x), scale_factor=2, mode="bilinear", align_corners=False)
    return F.avg_pool2d(s.b(y), 2)


def nearest(s: Trick, x: Tensor) -> Tensor:
    return s.norm(F.avg_pool2d(s.a(F.interpolate(s.b(x), scale_factor=2)), 2))


def transposed(s: Trick, x: Tensor) -> Tensor:
    up, down = s.extra
    return s.norm(down(up(s.b(x))))


def transposed_same(s: Trick, x: Tensor) -> Tensor:
    return s.norm(s.extra(x) + s.a(x))


def gated(s: Trick, x: Tensor) -> Tensor:
    value, gate = torch.chunk(torch.cat([s.a(x), s.b(x)], 1), 2, 1)
    return value * torch.sigmoid(gate)


def heads(s: Trick, x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    q, k, v = s.extra(x.flatten(2).transpose(1, 2)).chunk(3, -1)
    attention = (q * C**-0.5 @ k.transpose(-2, -1)).softmax(-1)
    return (attention @ v).transpose(1, 2).reshape(B, C, H, W) * s.g.view(-1, 1, 1)


def signal(s: Trick, x: Tensor) -> Tensor:
    one, norm, other = s.extra
    y = x.flatten(2)
    y = norm(one(y)) + other(y) + y
    return y.reshape(x.shape)


def volume(s: Trick, x: Tensor) -> Tensor:
    one, norm, other = s.extra
    y = x.unsqueeze(2)
    return (norm(one(y)) + other(y)).squeeze(2)


def pools(s: Trick, x: Tensor) -> Tensor:
    y = s.b(x)
    total = F.avg_pool2d(y, 3, 1, 1) + F.avg_pool2d(y, 5, 1, 2, count_include_pad=False) + y
    return s.norm(total - F.avg_pool2d(x, (1, 3), 1, (0, 1)))


def spoken(s: Trick, x: Tensor) -> Tensor:
    total = torch.stack([s.a(x), s.b(x)], axis=0).sum(axis=0) + torch.stack([x, s.b(x)], dim=-5).mean(-5)
    return s.norm(input=total)


def stream(s: Trick, x: Tensor) -> Tensor:
    """A shuffle inside a residual stream, twice."""
    y = x + s.extra(torch.relu(s.a(x)))
    return y + s.extra(torch.relu(s.b(y)))


def channelwise(s: Trick, x: Tensor) -> Tensor:
    order = torch.relu(s.a(x)).flip(1)
    return s.b(s.extra(torch.clamp(order, max=s.g.view(-1, 1, 1))))


def parts(s: Trick, x: Tensor) -> Tensor:
    """Unequal parts, one doubled, one dropped, one moved; filled up to the old width."""
    y = s.a(x)
    if s.c < 3:
        return y
    first, second, _ = y.split([1, s.c - 2, 1], 1)
    return s.norm(torch.cat([second.flip(1), first, first], 1))


def channels_last(s: Trick, x: Tensor) -> Tensor:
    y = torch.relu(x.permute(0, 2, 3, 1))
    half = torch.cat(y.chunk(2, 1)[::-1], 1)
    return s.a((half * s.g).permute(0, 3, 1, 2))


def corners(s: Trick, x: Tensor) -> Tensor:
    """Padded by a value, cropped, padded again."""
    y = F.pad(s.norm(x), (2, 1, 1, 2), value=0.5)[:, :, 1:-1, 1:-1]
    return s.a(y)[:, :, :-1, :-1] + s.b(x)


def numbers(s: Trick, x: Tensor) -> Tensor:
    return s.norm((s.a(x) - x.shape[2]) * 2 / 3 + x.size(0)) + 0 - (1 - s.b(x))


TRICKS: dict[str, Callable[[Trick, Tensor], Tensor]] = {
    "write half": write_half, "write slice": write_slice, "write clone": write_clone, "power": power, "out": into_out,
    "island": island, "overwriting island": island, "hook": lambda s, x: s.norm(s.extra(s.a(x))),
    "pooled": pooled_gate, "one channel": one_channel, "einsum": einsum, "generated": generated, "tied": tied,
    "shared norm": shared_norm, "reflect": padded("reflect"), "replicate": padded("replicate"),
    "circular": padded("circular"), "layer norm": layer_norm_linear, "bilinear": bilinear, "nearest": nearest,
    "transposed": transposed, "transposed same": transposed_same, "gated": gated, "heads": heads, "signal": signal,
    "volume": volume, "pools": pools, "axis": spoken, "stream": stream, "channelwise": channelwise,
    "instance norm": channelwise, "parts": parts, "channels last": channels_last, "corners": corners,
    "numbers": numbers,
}  # fmt: skip
PARTS: dict[str, Callable[[int], nn.Module]] = {
    "island": lambda c: Branching(c, overwrites=False),
    "overwriting island": lambda c: Branching(c, overwrites=True),
    "hook": hooked,
    "one channel": lambda c: nn.Conv2d(c, 1, 1),
    "layer norm": lambda c: nn.ModuleList([nn.LayerNorm(c), nn.Linear(c, c)]),
    "transposed": lambda c: nn.ModuleList([nn.ConvTranspose2d(c, c, 4, 2, 1), nn.Conv2d(c, c, 2, 2)]),
    "transposed same": lambda c: nn.ConvTranspose2d(c, c, 3, 1, 1, groups=c),
    "heads": lambda c: nn.Linear(c, 3 * c),
    "signal": lambda c: nn.ModuleList([nn.Conv1d(c, c, 3, padding=1), nn.BatchNorm1d(c), nn.Conv1d(c, c, 1)]),
    "volume": lambda c: nn.ModuleList(
        [nn.Conv3d(c, c, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(c), nn.Conv3d(c, c, 1)]
    ),
    "stream": lambda c: nn.ChannelShuffle(2 if c % 2 == 0 else 1),
    "channelwise": lambda c: nn.PReLU(c),
    "instance norm": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
}
