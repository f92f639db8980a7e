"""The named models: timm registry entries, widths and depths, and where the weights are.

Importing this module makes `timm.create_model("repnext_m1")` work.  Released ImageNet checkpoints are reached
by tag, e.g. `repnext_m1.dist_300e_in1k`; `repnext_nano.fashion_mnist` ships inside this package.

The E variants' weights are not published.  Their mixers are single convolutions, so their state-dict names
are `...token_mixer.weight` and `...token_mixer.bias`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from repnext.blocks import single_branch_downsampler, single_branch_mixer
from repnext.datasets import FASHION_MNIST_MEAN, FASHION_MNIST_STD, NANO_SIZE
from repnext.model import RepNext

RELEASE = "https://github.com/suous/RepNeXt/releases/download/v1.0"
NANO_WEIGHTS = Path(__file__).parent / "weights" / "repnext_nano.safetensors"

WRAPPERS = ("model", "state_dict")  # where training scripts put the tensors
SINGLE_BRANCH = {"token_mixer": single_branch_mixer, "downsample_mixer": single_branch_downsampler}


def _cfg(checkpoint: str = "", **overrides: Any) -> dict[str, Any]:
    return {
        "url": f"{RELEASE}/{checkpoint}" if checkpoint else "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.stem.0.conv",
        "classifier": ("head.head.linear", "head.head_dist.linear"),
        "license": "apache-2.0",
        "paper_ids": "arXiv:2406.16004",
        **overrides,
    }


default_cfgs = generate_default_cfgs(
    {
        "repnext_m0.dist_300e_in1k": _cfg("repnext_m0_distill_300e.pth"),
        "repnext_m0.star_300e_in1k": _cfg("repnext_m0_sz224_4xbs512_ep300.pth.tar", crop_pct=0.9),
        "repnext_m0.star_dist_300e_in1k": _cfg("repnext_m0_sz224_4xbs256_ep300_distill.pth.tar", crop_pct=0.9),
        "repnext_m1.dist_300e_in1k": _cfg("repnext_m1_distill_300e.pth"),
        "repnext_m1.star_300e_in1k": _cfg("repnext_m1_sz224_4xbs512_ep300.pth.tar", crop_pct=0.9),
        "repnext_m1.star_dist_300e_in1k": _cfg("repnext_m1_sz224_4xbs256_ep300_distill.pth.tar", crop_pct=0.9),
        "repnext_m2.dist_300e_in1k": _cfg("repnext_m2_distill_300e.pth"),
        "repnext_m2.star_300e_in1k": _cfg("repnext_m2_sz224_4xbs512_ep300.pth.tar", crop_pct=0.9),
        "repnext_m2.star_dist_300e_in1k": _cfg("repnext_m2_sz224_4xbs256_ep300_distill.pth.tar", crop_pct=0.9),
        "repnext_m3.dist_300e_in1k": _cfg("repnext_m3_distill_300e.pth"),
        "repnext_m4.dist_300e_in1k": _cfg("repnext_m4_distill_300e.pth"),
        "repnext_m5.dist_300e_in1k": _cfg("repnext_m5_distill_300e.pth"),
        "repnext_m0e.untrained": _cfg(),
        "repnext_m1e.untrained": _cfg(),
        "repnext_m2e.untrained": _cfg(),
        "repnext_nano.fashion_mnist": _cfg(
            file=str(NANO_WEIGHTS),
            num_classes=10,
            input_size=(3, NANO_SIZE, NANO_SIZE),
            pool_size=(NANO_SIZE // 32, NANO_SIZE // 32),
            crop_pct=1.0,
            interpolation="bilinear",
            mean=(FASHION_MNIST_MEAN,) * 3,
            std=(FASHION_MNIST_STD,) * 3,
        ),
    }
)


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: RepNext) -> dict[str, Tensor]:
    """The tensors of a checkpoint, under the model's own names.

    Takes the state dict out of the wrappers training scripts use (`{"model": ...}`, `{"state_dict": ...}`),
    drops the `module.` prefix of data-parallel training, and leaves the heads out for a model without one.
    """
    for wrapper in WRAPPERS:
        inner = checkpoint.get(wrapper)
        if isinstance(inner, Mapping):
            checkpoint = inner
            break
    tensors = {name.removeprefix("module."): value for name, value in checkpoint.items()}
    if model.num_classes == 0:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    return tensors


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **architecture: Any) -> RepNext:
    features = {"flatten_sequential": True, "out_indices": kwargs.pop("out_indices", (0, 1, 2, 3))}
    # The published files also hold the training script's arguments, which weights-only loading has to know.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return build_model_with_cfg(
            RepNext,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=features,
            **{**architecture, **kwargs},
        )


@register_model
def repnext_m0(pretrained: bool = False, **kwargs: Any) -> RepNext:
    return _create("repnext_m0", pretrained, kwargs, embed_dim=(40, 80, 160, 320), depth=(2, 2, 9, 1))


@register_model
def repnext_m1(pretrained: bool = False, **kwargs: Any) -> RepNext:
    return _create("repnext_m1", pretrained, kwargs, embed_dim=(48, 96, 192, 384), depth=(3, 3, 15, 2))


@register_model
def repnext_m2(pretrained: bool = False, **kwargs: Any) -> RepNext:
    return _create("repnext_m2", pretrained, kwargs, embed_dim=(56, 112, 224, 448), depth=(3, 3, 15, 2))


@register_model
def repnext_m3(pretrained: bool = False, **kwargs: Any) -> RepNext:
    return _create("repnext_m3", pretrained, kwargs, embed_dim=(64, 128, 256, 512), depth=(3, 3, 13, 2))


@register_model
def repnext_m4(pretrained: bool = False, **kwargs: Any) -> RepNext:
    return _create("repnext_m4", pretrained, kwargs, embed_dim=(64, 128, 256, 512), depth=(5, 5, 25, 4))


@register_model
def repnext_m5(pretrained: bool = False, **kwargs: Any) -> RepNext:
    return _create("repnext_m5", pretrained, kwargs, embed_dim=(80, 160, 320, 640), depth=(7, 7, 35, 2))


@register_model
def repnext_m0e(pretrained: bool = False, **kwargs: Any) -> RepNext:
    widths = {"embed_dim": (40, 80, 160, 320), "depth": (2, 2, 9, 1)}
    return _create("repnext_m0e", pretrained, kwargs, **widths, **SINGLE_BRANCH)


@register_model
def repnext_m1e(pretrained: bool = False, **kwargs: Any) -> RepNext:
    widths = {"embed_dim": (48, 96, 192, 384), "depth": (3, 3, 15, 2)}
    return _create("repnext_m1e", pretrained, kwargs, **widths, **SINGLE_BRANCH)


@register_model
def repnext_m2e(pretrained: bool = False, **kwargs: Any) -> RepNext:
    widths = {"embed_dim": (56, 112, 224, 448), "depth": (3, 3, 15, 2)}
    return _create("repnext_m2e", pretrained, kwargs, **widths, **SINGLE_BRANCH)


@register_model
def repnext_nano(pretrained: bool = False, **kwargs: Any) -> RepNext:
    return _create("repnext_nano", pretrained, kwargs, embed_dim=(16, 32, 64, 128), depth=(1, 2, 6, 1))
