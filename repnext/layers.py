"""Layers the whole family is made of: convolution + batch norm, batch norm + linear, depthwise convolutions.

Owns the state-dict leaf names `conv`, `norm` and `linear` of the published checkpoints.  These are plain
training-time modules: nothing here folds a batch norm into its neighbour.
"""

from __future__ import annotations

from collections.abc import Callable

from timm.layers import trunc_normal_
from torch import nn

ActivationLayer = Callable[[], nn.Module]
Size = tuple[int, int]


def same_padding(kernel_size: Size, dilation: int = 1) -> Size:
    """Padding that centres a kernel: `dilation * (kernel - 1) // 2` per axis."""
    height, width = kernel_size
    return dilation * (height - 1) // 2, dilation * (width - 1) // 2


def depthwise(
    channels: int,
    kernel_size: Size,
    *,
    stride: int | Size = 1,
    dilation: int = 1,
    bias: bool = True,
    multiplier: int = 1,
) -> nn.Conv2d:
    """One centred depthwise convolution.

    Shapes: `(N, channels, H, W)` to `(N, multiplier * channels, H / stride, W / stride)`, rounded up.
    Output channels `multiplier * c` to `multiplier * (c + 1) - 1` read input channel `c`.
    """
    return nn.Conv2d(
        channels,
        multiplier * channels,
        kernel_size,
        stride=stride,
        padding=same_padding(kernel_size, dilation),
        dilation=dilation,
        groups=channels,
        bias=bias,
    )


class ConvNorm(nn.Sequential):
    """Unbiased dense convolution, then batch norm: `(N, in, H, W)` to `(N, out, H / stride, W / stride)`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)


class NormLinear(nn.Sequential):
    """Batch norm over features, then a linear layer: `(N, in)` to `(N, out)`.

    The weight starts as a normal distribution of standard deviation 0.02 cut at two absolute units, the bias
    at zero.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.linear = nn.Linear(in_features, out_features)
        trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)


def pointwise_mlp(channels: int, hidden_channels: int, act_layer: ActivationLayer = nn.GELU) -> nn.Sequential:
    """The channel mixer: 1x1 expansion, activation, 1x1 projection.  Shape `(N, channels, H, W)` is kept."""
    return nn.Sequential(
        ConvNorm(channels, hidden_channels),
        act_layer(),
        ConvNorm(hidden_channels, channels),
    )
