"""Token mixers of RepNeXt in their multi-branch form, their single-branch equivalents, and the two blocks.

A token mixer is depthwise: every output channel reads one input channel.  The multi-branch mixers distribute
channels (split or clone), transform each part with several parallel and serial kernels, and aggregate by
concatenation (RepNeXt, section 3.2).  The single-branch mixers have the receptive field of the largest branch
and are what the E variants train directly.

Sizes: a mixer of stride 1 keeps `(N, C, H, W)`; one of stride 2 gives `(N, 2C, ceil(H/2), ceil(W/2))`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from repnext.layers import ActivationLayer, depthwise, pointwise_mlp

MixerLayer = Callable[[int], nn.Module]  # channels -> token mixer


class SmallKernels(nn.Module):
    """Parallel 3x3, 1x3, 3x1 and 2x2 (dilation 2) depthwise branches, summed; support 3x3.

    At stride 1 the 1x3 and the 3x1 are two branches, each biased.  At stride 2 they form one serial branch
    without biases, the 1x3 striding over columns and the 3x1 over rows.
    """

    def __init__(self, channels: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.serial = stride != 1
        self.conv_3_3 = depthwise(channels, (3, 3), stride=stride, bias=bias)
        self.conv_3_w = depthwise(channels, (1, 3), stride=(1, stride), bias=bias and not self.serial)
        self.conv_3_h = depthwise(channels, (3, 1), stride=(stride, 1), bias=bias and not self.serial)
        self.conv_2_2 = depthwise(channels, (2, 2), stride=stride, dilation=2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        cross = self.conv_3_h(self.conv_3_w(x)) if self.serial else self.conv_3_h(x) + self.conv_3_w(x)
        return self.conv_3_3(x) + cross + self.conv_2_2(x)


class MediumKernels(nn.Module):
    """Depthwise 7x7, 5x3 and 3x5 beside two serial pairs, 1x7-7x1 and 1x5-5x1, summed; support 7x7.

    The serial pairs carry no bias.
    """

    def __init__(self, channels: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv_7_7 = depthwise(channels, (7, 7), stride=stride, bias=bias)
        self.conv_5_3 = depthwise(channels, (5, 3), stride=stride, bias=bias)
        self.conv_3_5 = depthwise(channels, (3, 5), stride=stride, bias=bias)
        self.conv_7_w = depthwise(channels, (1, 7), stride=(1, stride), bias=False)
        self.conv_7_h = depthwise(channels, (7, 1), stride=(stride, 1), bias=False)
        self.conv_5_w = depthwise(channels, (1, 5), stride=(1, stride), bias=False)
        self.conv_5_h = depthwise(channels, (5, 1), stride=(stride, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parallel = self.conv_7_7(x) + self.conv_5_3(x) + self.conv_3_5(x)
        return parallel + self.conv_7_h(self.conv_7_w(x)) + self.conv_5_h(self.conv_5_w(x))


class ChunkConv(nn.Module):
    """Split in four, transform, concatenate: identity, 3x3, 7x7, and a serial 1x11-11x1 pair.

    Both convolutions of the large pair are biased, so the 11x1 zero-pads a plane that is not zero beyond the
    border: the pair equals one 11x11 convolution only up to a term that lives near the border.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"ChunkConv splits channels in four equal parts; {channels} is not a multiple of 4")
        part = channels // 4
        self.conv_s = SmallKernels(part)
        self.conv_m = MediumKernels(part)
        self.conv_l = nn.Sequential(depthwise(part, (1, 11)), depthwise(part, (11, 1)))

    def forward(self, x: Tensor) -> Tensor:
        identity, small, medium, large = torch.chunk(x, 4, dim=1)
        return torch.cat((identity, self.conv_s(small), self.conv_m(medium), self.conv_l(large)), dim=1)


class CopyConv(nn.Module):
    """Clone, transform at stride 2, concatenate: the 3x3 group's outputs first, then the 7x7 group's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_s = SmallKernels(channels, stride=2)
        self.conv_m = MediumKernels(channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv_s(x), self.conv_m(x)), dim=1)


def single_branch_mixer(channels: int) -> nn.Conv2d:
    """The E variants' token mixer: one biased 11x11 depthwise convolution."""
    return depthwise(channels, (11, 11))


def single_branch_downsampler(channels: int) -> nn.Conv2d:
    """The E variants' downsampling mixer: one biased 7x7 convolution of stride 2, `groups=C`, 2C outputs.

    Output channels `2c` and `2c + 1` read input channel `c`.
    """
    return depthwise(channels, (7, 7), stride=2, multiplier=2)


class MetaNeXtBlock(nn.Module):
    """`x + channel_mixer(norm(token_mixer(x)))`; shape `(N, C, H, W)` is kept."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: float = 2,
        act_layer: ActivationLayer = nn.GELU,
        token_mixer: MixerLayer = ChunkConv,
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.channel_mixer = pointwise_mlp(channels, int(mlp_ratio * channels), act_layer)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.channel_mixer(self.norm(self.token_mixer(x)))


class Downsample(nn.Module):
    """`t + channel_mixer(t)` with `t = norm(token_mixer(x))`: `(N, C, H, W)` to `(N, 2C, H/2, W/2)`.

    The shortcut bypasses the channel mixer alone, which leaves the batch norm next to the token mixer.
    """

    def __init__(
        self,
        in_channels: int,
        mlp_ratio: float = 2,
        act_layer: ActivationLayer = nn.GELU,
        token_mixer: MixerLayer = CopyConv,
    ) -> None:
        super().__init__()
        out_channels = 2 * in_channels
        self.token_mixer = token_mixer(in_channels)
        self.norm = nn.BatchNorm2d(out_channels)
        self.channel_mixer = pointwise_mlp(out_channels, int(mlp_ratio * out_channels), act_layer)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm(self.token_mixer(x))
        return mixed + self.channel_mixer(mixed)
