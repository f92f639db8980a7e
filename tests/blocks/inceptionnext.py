"""InceptionNeXt: unequal channel split into identity, 3x3, 1xk and kx1 depthwise, concatenated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.entry import Entry, Need, only_conv

PAPER = "2303.16900"


class InceptionDWConv2d(nn.Module):
    """cat(x_id, dw3x3(x_hw), dw1x11(x_w), dw11x1(x_h))."""

    def __init__(self, channels: int, band: int = 11) -> None:
        super().__init__()
        part = channels // 8
        self.dwconv_hw = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.dwconv_w = nn.Conv2d(part, part, (1, band), padding=(0, band // 2), groups=part)
        self.dwconv_h = nn.Conv2d(part, part, (band, 1), padding=(band // 2, 0), groups=part)
        self.split = (channels - 3 * part, part, part, part)

    def forward(self, x: Tensor) -> Tensor:
        x_id, x_hw, x_w, x_h = torch.split(x, self.split, dim=1)  # type: ignore[arg-type]
        return torch.cat((x_id, self.dwconv_hw(x_hw), self.dwconv_w(x_w), self.dwconv_h(x_h)), dim=1)


class MetaNeXtBlock(nn.Module):
    """x + gamma fc2(gelu(fc1(bn(mixer(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token_mixer = InceptionDWConv2d(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.fc1 = nn.Conv2d(channels, 2 * channels, 1)
        self.fc2 = nn.Conv2d(2 * channels, channels, 1)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(self.norm(self.token_mixer(x)))))
        return y.mul(self.gamma.reshape(1, -1, 1, 1)) + x


ENTRIES = (
    Entry(
        "inceptionnext_mixer",
        PAPER,
        lambda: InceptionDWConv2d(16),
        16,
        only_conv("every part is depthwise and fits into an 11x11"),
    ),
    Entry(
        "inceptionnext",
        PAPER,
        lambda: MetaNeXtBlock(16),
        16,
        {
            "convolutions": Need(3, "mixer; fc1 and fc2 around a GELU"),
            "adds": Need(1, "residual around a GELU"),
        },
    ),
)
