"""What timm's users expect of the family: backbones, heads, pooling, checkpoints, packaged weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

import repnext
from repnext.variants import checkpoint_filter_fn
from tests.test_repnext_models import ALL, PUBLISHED, SINGLE_BRANCH, on_meta, tiny

NANO_SHIPPED_ACCURACY = 0.90  # a little below the packaged log


# timm's conventions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"), [("repnext_m1", (48, 96, 192, 384)), ("repnext_nano", (16, 32, 64, 128))]
)
def test_features_only(name: str, channels: tuple[int, ...]) -> None:
    backbone = timm.create_model(name, features_only=True).eval()
    assert tuple(backbone.feature_info.channels()) == channels
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, width, 64 // stride, 96 // stride) for width, stride in zip(channels, (4, 8, 16, 32))
    ]


def test_features_only_of_some_stages() -> None:
    backbone = timm.create_model("repnext_nano", features_only=True, out_indices=(1, 3))
    assert backbone.feature_info.channels() == [32, 128]
    assert len(backbone(torch.randn(2, 3, 64, 64))) == 2


def test_feature_getter_and_list_agree() -> None:
    x = torch.randn(1, 3, 64, 64)
    plain = timm.create_model("repnext_nano", pretrained=True, features_only=True).eval()
    getter = timm.create_model("repnext_nano", pretrained=True, features_only=True, feature_cls="getter").eval()
    for one, other in zip(plain(x), getter(x), strict=True):
        assert torch.equal(one, other)


def test_pruning_stages_keeps_the_maps() -> None:
    x = torch.randn(1, 3, 64, 64)
    model = tiny()
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    model.prune_intermediate_layers([1])
    assert len(model.stages) == 2  # type: ignore[arg-type]
    assert model.num_features == 16
    assert torch.equal(model(x), expected)


def test_stopping_early() -> None:
    last, maps = tiny().forward_intermediates(torch.randn(1, 3, 64, 64), indices=[0, 1], stop_early=True)
    assert torch.equal(last, maps[-1])
    assert [m.shape[1] for m in maps] == [8, 16]


def test_unavailable_output_format() -> None:
    with pytest.raises(ValueError, match="NCHW"):
        tiny().forward_intermediates(torch.randn(1, 3, 64, 64), output_fmt="NLC")


def test_no_classes_leaves_pooled_features() -> None:
    model, x = tiny(num_classes=0), torch.randn(2, 3, 64, 64)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(x), model.forward_features(x).mean((2, 3)))
    assert not [name for name in model.state_dict() if name.startswith("head")]


@pytest.mark.parametrize("pooling", ["avg", "max", ""])
def test_pooling(pooling: str) -> None:
    model, x = tiny(num_classes=0, global_pool=pooling), torch.randn(2, 3, 64, 96)
    maps = model.forward_features(x)
    expected = {"avg": maps.mean((2, 3)), "max": maps.amax((2, 3)), "": maps}[pooling]
    assert torch.equal(model(x), expected)


def test_pooling_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="num_classes=0"):
        tiny(global_pool="")
    with pytest.raises(ValueError, match="'median' is unknown"):
        tiny(global_pool="median")


def test_pre_logits_are_the_input_of_the_heads() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (2, 64)
    assert torch.equal(model.head(features), model(x))


def test_dropout_before_the_heads() -> None:
    model = tiny(drop_rate=0.5)
    assert model.head_drop.p == 0.5
    maps = model.forward_features(torch.randn(2, 3, 64, 64))
    kept = (model.train().forward_head(maps, pre_logits=True) != 0).float().mean().item()
    assert 0.3 < kept < 0.7


def test_distillation_returns_both_heads_while_training() -> None:
    x = torch.randn(4, 3, 64, 64)
    model = tiny(distillation=True)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    labels, teacher = model.head.head(features), model.head.head_dist(features)
    assert torch.equal(model(x), (labels + teacher) / 2)
    assert isinstance(model.train()(x), tuple)
    assert [output.shape for output in model(x)] == [(4, 1000), (4, 1000)]
    model.set_distilled_training(False)
    assert isinstance(model(x), Tensor)


def test_without_distillation_training_returns_the_mean() -> None:
    assert isinstance(tiny().train()(torch.randn(4, 3, 64, 64)), Tensor)


def test_reset_classifier() -> None:
    model, x = tiny().double(), torch.randn(2, 3, 64, 64).double()
    model.reset_classifier(7, "max", distillation=True)
    assert model(x).shape == (2, 7)
    assert model(x).dtype == torch.float64
    assert not model.head.training
    assert isinstance(model.train()(x), tuple)
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)
    assert model.global_pool == "max"


def test_parameter_groups_follow_the_depth() -> None:
    model = tiny()
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert len(groups) > len(model.stages)  # type: ignore[arg-type]


@pytest.mark.parametrize("widths", [(40, 80, 120), (40, 80)])
def test_widths_that_cannot_be(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="embed_dim"):
        repnext.RepNext(embed_dim=widths, depth=(1, 1, 1))


def test_channels_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="not a multiple of 4"):
        repnext.RepNext(embed_dim=(10, 20), depth=(1, 1))


# Checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_formats_load(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    """The published files hold optimiser state and an argparse namespace beside the tensors."""
    source = tiny()
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    checkpoint = tensors
    if wrapper:
        checkpoint = {wrapper: tensors, "epoch": 299, "args": argparse.Namespace(model="repnext_m0")}
    file = tmp_path / "repnext_m0_released.pth"
    torch.save(checkpoint, file)
    loaded = timm.create_model(
        "repnext_m0",
        pretrained=True,
        pretrained_cfg_overlay={"url": file.as_uri()},
        cache_dir=tmp_path / "cache",
        embed_dim=(8, 16, 32, 64),
        depth=(1, 1, 1, 1),
    )
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_filter_drops_the_heads_of_a_headless_model() -> None:
    tensors = checkpoint_filter_fn({"model": tiny().state_dict()}, tiny(num_classes=0))  # type: ignore[arg-type]
    tiny(num_classes=0).load_state_dict(tensors, strict=True)


def test_every_released_checkpoint_has_a_tag() -> None:
    tags = set(timm.list_pretrained("repnext_*"))
    assert {f"{name}.dist_300e_in1k" for name in PUBLISHED} < tags
    assert timm.get_pretrained_cfg("repnext_m1").url.endswith("/repnext_m1_distill_300e.pth")
    assert timm.get_pretrained_cfg("repnext_m2.star_300e_in1k").crop_pct == 0.9
    assert not any(tag.startswith(SINGLE_BRANCH) for tag in tags)


@pytest.mark.parametrize("name", ALL)
def test_default_cfg_names_real_modules(name: str) -> None:
    model = on_meta(name)
    cfg = model.default_cfg
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)  # type: ignore[arg-type]
    assert all(isinstance(model.get_submodule(path), nn.Linear) for path in cfg["classifier"])


# The packaged model -------------------------------------------------------------------------------------


def test_nano_classifies_real_images() -> None:
    model = timm.create_model("repnext_nano", pretrained=True).eval()
    images, labels = repnext.test_images()
    assert images.shape == (500, 3, 64, 64)
    assert labels.bincount().tolist() == [50] * len(repnext.FASHION_MNIST_CLASSES)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    assert accuracy >= NANO_SHIPPED_ACCURACY


def test_nano_weights_adapt_to_grey_and_to_other_classes() -> None:
    images, labels = repnext.test_images()
    grey = timm.create_model("repnext_nano", pretrained=True, in_chans=1).eval()
    with torch.no_grad():
        accuracy = (grey(images[:, :1]).argmax(1) == labels).float().mean().item()
    assert accuracy >= NANO_SHIPPED_ACCURACY
    other = timm.create_model("repnext_nano", pretrained=True, num_classes=4).eval()
    assert other(images[:2]).shape == (2, 4)


def test_timm_transform_agrees_with_shipped_normalisation() -> None:
    from PIL import Image

    from repnext.datasets import shipped_test_set

    model = on_meta("repnext_nano")
    transform = create_transform(**resolve_model_data_config(model))
    raw = shipped_test_set().images[7, 0]
    by_timm = transform(Image.fromarray(raw.numpy()).convert("RGB"))
    ours = repnext.test_images()[0][7]
    assert (by_timm - ours).abs().max().item() < 1.1 / 255 / 0.3530  # timm rounds to bytes after resizing


NANO_SHIPPED_ACCURACY = 0.90
