"""Pieces that many papers share: convolution with batch norm, and the border of constant value."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: int | tuple[int, int] | None = None,
) -> nn.Sequential:
    """Bias-free convolution then batch norm; pads so that stride 1 keeps the size."""
    if padding is None:
        taps = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (dilation * (taps[0] - 1) // 2, dilation * (taps[1] - 1) // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def depthwise_bn(channels: int, kernel: int | tuple[int, int], **options: int) -> nn.Sequential:
    """`conv_bn` with one group per channel."""
    return conv_bn(channels, channels, kernel, groups=channels, **options)


def bordered(x: Tensor, value: Tensor, width: int) -> Tensor:
    """Extend the image by `width` pixels of `value` (C,): zero-pad, then write the four sides."""
    value = value.view(1, -1, 1, 1)
    x = F.pad(x, (width, width, width, width))
    x[:, :, :width, :] = value
    x[:, :, -width:, :] = value
    x[:, :, :, :width] = value
    x[:, :, :, -width:] = value
    return x
