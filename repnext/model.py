"""The network: stem, stages, classifier, and the conventions timm expects of a backbone.

Reads top to bottom as it runs: `(N, in_chans, H, W)` -> stem (stride 4) -> stages (strides 4, 8, 16, 32)
-> pooling -> two averaged heads.  Owns the module paths of the published checkpoints (`stem.stem.0.conv`,
`stages.1.downsample.token_mixer`, `head.head.norm`, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from repnext.blocks import ChunkConv, CopyConv, Downsample, MetaNeXtBlock, MixerLayer
from repnext.layers import ActivationLayer, ConvNorm, NormLinear

POOLINGS = ("avg", "max", "")


class RepNextStem(nn.Module):
    """Two 3x3 convolutions of stride 2: `(N, in, H, W)` to `(N, out, H/4, W/4)`, rounded up twice."""

    def __init__(self, in_channels: int, out_channels: int, act_layer: ActivationLayer = nn.GELU) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(in_channels, out_channels // 2, kernel_size=3, stride=2),
            act_layer(),
            ConvNorm(out_channels // 2, out_channels, kernel_size=3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class RepNextStage(nn.Module):
    """An optional downsampling layer, then `depth` blocks at one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class RepNextClassifier(nn.Module):
    """Two linear heads, one for the labels and one for a teacher: `(N, features)` to `(N, classes)`.

    The answer is the mean of both.  While training with `distillation=True` it is the pair
    `(head, head_dist)`, so that each can have its own loss.
    """

    def __init__(self, features: int, num_classes: int, distillation: bool = False) -> None:
        super().__init__()
        self.distillation = distillation
        self.head = NormLinear(features, num_classes)
        self.head_dist = NormLinear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        labels, teacher = self.head(x), self.head_dist(x)
        if self.training and self.distillation:
            return labels, teacher
        return (labels + teacher) / 2


class RepNext(nn.Module):
    """RepNeXt (arXiv 2406.16004) as an ordinary multi-branch network.

    Args:
        in_chans: channels of the input image.
        embed_dim: channels of each stage; every entry is twice the one before.
        depth: blocks of each stage, beside the downsampling layer.
        mlp_ratio: hidden channels of the channel mixers over their channels.
        global_pool: "avg", "max", or "" for an unpooled map (then `num_classes` must be 0).
        num_classes: outputs of both heads; 0 leaves the head out.
        act_layer: activation of stem and channel mixers.
        distillation: while training, return both heads instead of their mean.
        drop_rate: dropout before the heads.
        token_mixer: channels to a stride-1 mixer that keeps the shape.
        downsample_mixer: channels to a stride-2 mixer that doubles the channels.
    """

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: Sequence[int] = (48, 96, 192, 384),
        depth: Sequence[int] = (3, 3, 15, 2),
        mlp_ratio: float = 2,
        global_pool: str = "avg",
        num_classes: int = 1000,
        act_layer: ActivationLayer = nn.GELU,
        distillation: bool = False,
        drop_rate: float = 0.0,
        token_mixer: MixerLayer = ChunkConv,
        downsample_mixer: MixerLayer = CopyConv,
    ) -> None:
        super().__init__()
        _check_widths(embed_dim, depth)
        self.in_chans = in_chans
        self.embed_dim = tuple(embed_dim)
        self.num_features = self.head_hidden_size = embed_dim[-1]
        self.grad_checkpointing = False

        self.stem = RepNextStem(in_chans, embed_dim[0], act_layer)
        self.feature_info: list[dict[str, Any]] = []
        stages = []
        for index, (channels, blocks) in enumerate(zip(embed_dim, depth)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = Downsample(channels // 2, mlp_ratio, act_layer, downsample_mixer)
            stages.append(
                RepNextStage(
                    downsample,
                    [MetaNeXtBlock(channels, mlp_ratio, act_layer, token_mixer) for _ in range(blocks)],
                )
            )
            self.feature_info.append({"num_chs": channels, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.stages = nn.Sequential(*stages)
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool = global_pool
        self.reset_classifier(num_classes, global_pool, distillation)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, distillation: bool = False) -> None:
        """Replace the head by a fresh one of `num_classes` outputs (0: none), on the model's own device."""
        pooling = self.global_pool if global_pool is None else global_pool
        if pooling not in POOLINGS:
            raise ValueError(f"global_pool={pooling!r} is unknown; choose one of {POOLINGS}")
        if pooling == "" and num_classes > 0:
            raise ValueError("the heads read pooled features; with global_pool='' pass num_classes=0")
        self.num_classes = num_classes
        self.global_pool = pooling
        head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = RepNextClassifier(self.num_features, num_classes, distillation)
        reference = next(self.stem.parameters())
        self.head = head.to(device=reference.device, dtype=reference.dtype).train(self.training)

    def get_classifier(self) -> nn.Module:
        """The pair of heads, or an identity when there is none."""
        return self.head

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether training returns both heads.  Without a head this changes nothing."""
        if isinstance(self.head, RepNextClassifier):
            self.head.distillation = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory while training: recompute each stage in the backward pass."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def forward_features(self, x: Tensor) -> Tensor:
        """`(N, in_chans, H, W)` to the last stage's `(N, num_features, H/32, W/32)`."""
        x = self.stem(x)
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.stages, x)
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """`(N, num_features, h, w)` to `(N, num_classes)`, or to the head's input when `pre_logits`."""
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        elif self.global_pool == "max":
            x = x.amax((2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of chosen stages, as timm's feature getters ask for them.

        `indices` are stages (an int: that many from the end, None: all).  There is no final norm, so `norm`
        changes nothing.  Returns the maps, and before them the last one computed unless
        `intermediates_only`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is not available; RepNext maps are NCHW")
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            if stop_early and index > last:
                break
            x = stage(x)
            if index in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last wanted one, and with them (or on request) the head."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take


def _check_widths(embed_dim: Sequence[int], depth: Sequence[int]) -> None:
    if not embed_dim or len(embed_dim) != len(depth):
        raise ValueError(f"embed_dim {tuple(embed_dim)} and depth {tuple(depth)} must name the same stages")
    if any(after != 2 * before for before, after in pairwise(embed_dim)):
        raise ValueError(f"each downsampling doubles the channels; embed_dim {tuple(embed_dim)} does not")
