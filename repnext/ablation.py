"""The downsampling ablation: ConvNeXt-femto with its three downsampling layers replaced.

ConvNeXt downsamples by layer norm and a dense 2x2 convolution.  The modified layers mix tokens with one 7x7
depthwise convolution of stride 2 that doubles the channels, then mix channels with an MLP of ratio 1:

    A: t = dwconv(x);        y = t + mlp(norm(t))
    B: t = norm(dwconv(x));  y = t + mlp(t)

B's shortcut bypasses the channel mixer alone, as RepNeXt's does, so a batch norm in that place would fold.
Parameters (1000 classes): 5,217,784 for timm's `convnext_femto`, 5,252,728 for either modification.
"""

from __future__ import annotations

from typing import Any, cast

import timm
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from repnext.layers import depthwise


class ModifiedDownsample(nn.Module):
    """`(N, C, H, W)` to `(N, 2C, H/2, W/2)`, rounded up.

    `normalize_shortcut` chooses between A (False) and B (True).
    """

    def __init__(self, channels: int, normalize_shortcut: bool) -> None:
        super().__init__()
        out_channels = 2 * channels
        self.normalize_shortcut = normalize_shortcut
        self.dwconv = depthwise(channels, (7, 7), stride=2, multiplier=2)
        self.norm = LayerNorm2d(out_channels, eps=1e-6)
        self.pwconv1 = nn.Linear(out_channels, out_channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.dwconv(x)
        normalized = self.norm(mixed)
        pixels = normalized.permute(0, 2, 3, 1)  # (N, H, W, 2C)
        update = self.pwconv2(self.act(self.pwconv1(pixels))).permute(0, 3, 1, 2)
        return (normalized if self.normalize_shortcut else mixed) + update


def modified_a(**kwargs: Any) -> nn.Module:
    """ConvNeXt-femto with shortcuts around norm and channel mixer.  `kwargs` are timm's."""
    return _convnext_femto(normalize_shortcut=False, **kwargs)


def modified_b(**kwargs: Any) -> nn.Module:
    """ConvNeXt-femto with shortcuts around the channel mixer alone.  `kwargs` are timm's."""
    return _convnext_femto(normalize_shortcut=True, **kwargs)


def _convnext_femto(normalize_shortcut: bool, **kwargs: Any) -> nn.Module:
    model = timm.create_model("convnext_femto", pretrained=False, **kwargs)
    if not isinstance(model, ConvNeXt):
        raise ValueError("features_only wraps the network before its layers can be replaced; leave it out")
    widths = [cast(int, info["num_chs"]) for info in model.feature_info]
    for stage, channels in zip(model.stages[1:], widths):
        stage.downsample = ModifiedDownsample(channels, normalize_shortcut)
    return model
