"""Distribute, transform, aggregate: one module per row of the paper's table of token mixers.

| token mixer | distribution | transforms     | aggregation   |
|-------------|--------------|----------------|---------------|
| ChunkConv   | split        | conv, identity | concatenation |
| CopyConv    | clone        | conv           | concatenation |
| MixConv     | split        | conv           | concatenation |
| MHSA        | split        | attention      | concatenation |
| RepBlock    | clone        | conv           | sum           |

ChunkConv and CopyConv are the simplified forms of the README: one convolution per branch, where
`repnext.blocks` has several.  All of them accept `RepNext(token_mixer=..., downsample_mixer=...)` where the
shapes agree.  All but MHSA are affine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from repnext.layers import depthwise


class ChunkConv(nn.Module):
    """Split in four: identity, depthwise 3x3, 7x7, 11x11; concatenated.  `(N, C, H, W)` is kept."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"ChunkConv splits channels in four equal parts; {channels} is not a multiple of 4")
        part = channels // 4
        self.conv_i = nn.Identity()
        self.conv_s = depthwise(part, (3, 3), bias=bias)
        self.conv_m = depthwise(part, (7, 7), bias=bias)
        self.conv_l = depthwise(part, (11, 11), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        identity, small, medium, large = torch.chunk(x, 4, dim=1)
        branches = (self.conv_i(identity), self.conv_s(small), self.conv_m(medium), self.conv_l(large))
        return torch.cat(branches, dim=1)


class CopyConv(nn.Module):
    """Clone: depthwise 3x3 and 7x7 of stride 2, interleaved.  `(N, C, H, W)` to `(N, 2C, H/2, W/2)`.

    Output channels `2c` and `2c + 1` are the 3x3 and the 7x7 of input channel `c`, the order of one
    convolution with `groups=C` and 2C outputs.  Odd sizes round up.
    """

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.conv_s = depthwise(channels, (3, 3), stride=2, bias=bias)
        self.conv_l = depthwise(channels, (7, 7), stride=2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.conv_s(x), self.conv_l(x)
        batch, channels, height, width = small.shape
        return torch.stack((small, large), dim=2).reshape(batch, 2 * channels, height, width)


class MixConv(nn.Module):
    """Split into one part per kernel size, a depthwise convolution each, concatenated (arXiv 1907.09595).

    Channels that do not divide evenly go to the first part.  `(N, C, H, W)` is kept.
    """

    def __init__(self, channels: int, kernel_sizes: Sequence[int] = (3, 5, 7, 9), bias: bool = True) -> None:
        super().__init__()
        if channels < len(kernel_sizes):
            raise ValueError(f"{channels} channels cannot be split into {len(kernel_sizes)} parts")
        part = channels // len(kernel_sizes)
        self.parts = [channels - part * (len(kernel_sizes) - 1)] + [part] * (len(kernel_sizes) - 1)
        self.convs = nn.ModuleList(
            depthwise(width, (size, size), bias=bias) for width, size in zip(self.parts, kernel_sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.split(x, self.parts, dim=1)
        return torch.cat([conv(chunks[index]) for index, conv in enumerate(self.convs)], dim=1)


class MHSA(nn.Module):
    """Multi-head self-attention over pixels: split into heads, attend, concatenate.  `(N, C, H, W)` is kept.

    The one row that is not affine; its heads are still branches that a compiler may batch.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} equal heads")
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.qkv(x).flatten(2).transpose(1, 2)  # (N, H*W, 3C)
        parts = torch.chunk(tokens, 3 * self.heads, dim=2)
        attended = [
            functional.scaled_dot_product_attention(parts[head], parts[self.heads + head], parts[2 * self.heads + head])
            for head in range(self.heads)
        ]
        mixed = torch.cat(attended, dim=2).transpose(1, 2).reshape(batch, channels, height, width)
        return self.proj(mixed)


class RepBlock(nn.Module):
    """Clone: dense 3x3, dense 1x1 and identity, a batch norm each, summed (RepVGG, arXiv 2101.03697).

    The identity branch exists at stride 1.  `(N, C, H, W)` to `(N, C, H/stride, W/stride)`, rounded up.  No
    activation: this is the linear part.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_3_3 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.norm_3_3 = nn.BatchNorm2d(channels)
        self.conv_1_1 = nn.Conv2d(channels, channels, 1, stride, bias=False)
        self.norm_1_1 = nn.BatchNorm2d(channels)
        self.norm_identity = nn.BatchNorm2d(channels) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        total = self.norm_3_3(self.conv_3_3(x)) + self.norm_1_1(self.conv_1_1(x))
        return total if self.norm_identity is None else total + self.norm_identity(x)
