"""RepNeXt: ChunkConv and CopyConv, in the simplified form of one convolution per branch and in full."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.blocks.common import conv_bn
from tests.blocks.entry import Entry, Need, only_conv

PAPER = "2406.16004"


class SimpleChunkConv(nn.Module):
    """cat of identity, dw3x3, dw7x7, dw11x11 on a quarter of the channels each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.conv_s = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.conv_m = nn.Conv2d(part, part, 7, padding=3, groups=part)
        self.conv_l = nn.Conv2d(part, part, 11, padding=5, groups=part)

    def forward(self, x: Tensor) -> Tensor:
        i, s, m, l = torch.chunk(x, chunks=4, dim=1)  # noqa: E741
        return torch.cat((i, self.conv_s(s), self.conv_m(m), self.conv_l(l)), dim=1)


class SimpleCopyConv(nn.Module):
    """dw3x3 s2 and dw7x7 s2 of all channels, interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_s = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
        self.conv_l = nn.Conv2d(channels, channels, 7, 2, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        return torch.stack((self.conv_s(x), self.conv_l(x)), dim=2).reshape(B, C * 2, H // 2, W // 2)


class SmallMixer(nn.Module):
    """dw3x3 + dw3x1 + dw1x3 + dilated dw2x2; with stride 2 the strips in series."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        strip = stride == 1
        self.stride = stride
        self.conv_3_3 = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
        self.conv_3_w = nn.Conv2d(channels, channels, (1, 3), (1, stride), (0, 1), groups=channels, bias=strip)
        self.conv_3_h = nn.Conv2d(channels, channels, (3, 1), (stride, 1), (1, 0), groups=channels, bias=strip)
        self.conv_2_2 = nn.Conv2d(channels, channels, 2, stride, 1, dilation=2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return self.conv_3_3(x) + self.conv_3_h(x) + self.conv_3_w(x) + self.conv_2_2(x)
        return self.conv_3_3(x) + self.conv_3_h(self.conv_3_w(x)) + self.conv_2_2(x)


class MediumMixer(nn.Module):
    """dw7x7 + dw5x3 + dw3x5 + (1x7 then 7x1) + (1x5 then 5x1), the strips without bias."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        C, s = channels, stride
        self.conv_7_7 = nn.Conv2d(C, C, 7, s, 3, groups=C)
        self.conv_5_3 = nn.Conv2d(C, C, (5, 3), s, (2, 1), groups=C)
        self.conv_3_5 = nn.Conv2d(C, C, (3, 5), s, (1, 2), groups=C)
        self.conv_7_w = nn.Conv2d(C, C, (1, 7), (1, s), (0, 3), groups=C, bias=False)
        self.conv_7_h = nn.Conv2d(C, C, (7, 1), (s, 1), (3, 0), groups=C, bias=False)
        self.conv_5_w = nn.Conv2d(C, C, (1, 5), (1, s), (0, 2), groups=C, bias=False)
        self.conv_5_h = nn.Conv2d(C, C, (5, 1), (s, 1), (2, 0), groups=C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        square = self.conv_7_7(x) + self.conv_5_3(x) + self.conv_3_5(x)
        return square + self.conv_7_h(self.conv_7_w(x)) + self.conv_5_h(self.conv_5_w(x))


class ChunkConv(nn.Module):
    """cat of identity, small, medium and a biased 1x11 then 11x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.conv_s = SmallMixer(part)
        self.conv_m = MediumMixer(part)
        self.conv_l = nn.Sequential(
            nn.Conv2d(part, part, (1, 11), padding=(0, 5), groups=part),
            nn.Conv2d(part, part, (11, 1), padding=(5, 0), groups=part),
        )

    def forward(self, x: Tensor) -> Tensor:
        i, s, m, l = torch.chunk(x, 4, dim=1)  # noqa: E741
        return torch.cat((i, self.conv_s(s), self.conv_m(m), self.conv_l(l)), dim=1)


class CopyConv(nn.Module):
    """cat of small and medium with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_s = SmallMixer(channels, 2)
        self.conv_m = MediumMixer(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv_s(x), self.conv_m(x)), dim=1)


def channel_mixer(channels: int) -> nn.Sequential:
    """1x1, GELU, 1x1, with batch norms."""
    return nn.Sequential(conv_bn(channels, 2 * channels, 1), nn.GELU(), conv_bn(2 * channels, channels, 1))


class Block(nn.Module):
    """x + mixer(bn(chunk(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token_mixer = ChunkConv(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.channel_mixer = channel_mixer(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.channel_mixer(self.norm(self.token_mixer(x)))


class Downsample(nn.Module):
    """y + mixer(y), y = bn(copy(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token_mixer = CopyConv(channels)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.channel_mixer = channel_mixer(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.token_mixer(x))
        return x + self.channel_mixer(x)


class DownsampleAndBlock(nn.Module):
    """A downsampling, a block on its residual stream, and a 1x1 that ends the stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample = Downsample(channels)
        self.block = Block(2 * channels)
        self.head = conv_bn(2 * channels, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.downsample(x)))


MIXER = "up and down around a GELU"
ENTRIES = (
    Entry(
        "repnext_simple_chunk",
        PAPER,
        lambda: SimpleChunkConv(16),
        16,
        only_conv("every part is depthwise and fits into an 11x11"),
    ),
    Entry(
        "repnext_simple_copy",
        PAPER,
        lambda: SimpleCopyConv(8),
        8,
        only_conv("interleaved copies are a grouped convolution with two outputs per channel"),
        sizes=((14, 14), (8, 12), (16, 6), (4, 4), (2, 2)),
    ),
    Entry(
        "repnext_block",
        PAPER,
        lambda: Block(16),
        16,
        {
            "convolutions": Need(3, f"one 11x11 depthwise; {MIXER}"),
            "border_terms": Need(1, "the 11x1 zero-pads the 1x11's bias"),
            "adds": Need(1, "residual around a GELU"),
        },
    ),
    Entry(
        "repnext_downsample",
        PAPER,
        lambda: nn.Sequential(Downsample(8), conv_bn(16, 12, 1)),
        8,
        {
            "convolutions": Need(4, f"one grouped 7x7; {MIXER}; the 1x1 that takes the channel order"),
            "adds": Need(1, "residual around a GELU"),
        },
    ),
    Entry(
        "repnext_downsample_and_block",
        PAPER,
        lambda: DownsampleAndBlock(8),
        8,
        {
            "convolutions": Need(7, f"grouped 7x7, depthwise 11x11, head; twice {MIXER}"),
            "border_terms": Need(1, "the 11x1 zero-pads the 1x11's bias"),
            "adds": Need(2, "two residuals, each around a GELU"),
        },
    ),
)
