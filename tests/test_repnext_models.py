"""The family itself: published counts and names, the E forms, tracing, what happens at borders."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import timm
import torch
from torch import fx, nn

from repnext import paper
from repnext.blocks import CopyConv, MetaNeXtBlock, single_branch_downsampler

PUBLISHED = ("repnext_m0", "repnext_m1", "repnext_m2", "repnext_m3", "repnext_m4", "repnext_m5")
SINGLE_BRANCH = ("repnext_m0e", "repnext_m1e", "repnext_m2e")
ALL = (*PUBLISHED, *SINGLE_BRANCH, "repnext_nano")


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    """The model's structure without its memory."""
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def tiny(**kwargs: Any) -> nn.Module:
    """A full architecture small enough to run in milliseconds, with hostile batch-norm statistics."""
    torch.manual_seed(0)
    model = timm.create_model("repnext_m0", embed_dim=(8, 16, 32, 64), depth=(1, 1, 1, 1), **kwargs)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


# Counts and names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("repnext_m0", 1000, 2_716_480),
        ("repnext_m1", 1000, 5_323_316),
        ("repnext_m2", 1000, 7_049_082),
        ("repnext_m3", 1000, 8_466_560),
        ("repnext_m4", 1000, 14_080_480),
        ("repnext_m5", 1000, 22_708_860),
        ("repnext_m0e", 1000, 2_876_420),
        ("repnext_m1e", 1000, 5_655_944),
        ("repnext_m2e", 1000, 7_437_148),
        ("repnext_m0", 100, 2_138_680),
        ("repnext_m0e", 100, 2_298_620),
        ("repnext_nano", 10, 306_976),
    ],
)
def test_parameter_count(name: str, classes: int, count: int) -> None:
    model = on_meta(name, num_classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("repnext_m0", "f533a50e271b0d61"),
        ("repnext_m1", "d9743128d82ed732"),
        ("repnext_m2", "59be441c32b0d75a"),
        ("repnext_m3", "8f231e4239101ac3"),
        ("repnext_m4", "9f3b09d37e8e3441"),
        ("repnext_m5", "aa749536e4334da5"),
    ],
)
def test_names_and_shapes_are_the_published_ones(name: str, digest: str) -> None:
    """The digests are of the published code's state dicts: one `name 1x2x3` line per tensor, in order."""
    tensors = on_meta(name).state_dict().items()
    lines = "\n".join(f"{key} {'x'.join(map(str, value.shape))}" for key, value in tensors)
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == digest


def conv(path: str, *, bias: bool) -> list[str]:
    return [f"{path}.weight", f"{path}.bias"] if bias else [f"{path}.weight"]


def norm(path: str) -> list[str]:
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{path}.{leaf}" for leaf in leaves]


def conv_norm(path: str) -> list[str]:
    return conv(f"{path}.conv", bias=False) + norm(f"{path}.norm")


def mixers(path: str, *, stride: int) -> list[str]:
    small, medium = f"{path}.conv_s", f"{path}.conv_m"
    names = conv(f"{small}.conv_3_3", bias=True)
    names += conv(f"{small}.conv_3_w", bias=stride == 1) + conv(f"{small}.conv_3_h", bias=stride == 1)
    names += conv(f"{small}.conv_2_2", bias=True)
    for branch in ("conv_7_7", "conv_5_3", "conv_3_5"):
        names += conv(f"{medium}.{branch}", bias=True)
    for branch in ("conv_7_w", "conv_7_h", "conv_5_w", "conv_5_h"):
        names += conv(f"{medium}.{branch}", bias=False)
    return names


def after_the_mixer(path: str) -> list[str]:
    mlp = f"{path}.channel_mixer"
    return norm(f"{path}.norm") + conv_norm(f"{mlp}.0") + conv_norm(f"{mlp}.2")


def test_m0_names_spelled_out() -> None:
    names = conv_norm("stem.stem.0") + conv_norm("stem.stem.2")
    for stage, depth in enumerate((2, 2, 9, 1)):
        if stage > 0:
            path = f"stages.{stage}.downsample"
            names += mixers(f"{path}.token_mixer", stride=2) + after_the_mixer(path)
        for block in range(depth):
            path = f"stages.{stage}.blocks.{block}"
            names += mixers(f"{path}.token_mixer", stride=1)
            names += conv(f"{path}.token_mixer.conv_l.0", bias=True)
            names += conv(f"{path}.token_mixer.conv_l.1", bias=True)
            names += after_the_mixer(path)
    for head in ("head.head", "head.head_dist"):
        names += norm(f"{head}.norm") + conv(f"{head}.linear", bias=True)
    assert list(on_meta("repnext_m0").state_dict()) == names


@pytest.mark.parametrize("name", SINGLE_BRANCH)
def test_single_branch_mixers(name: str) -> None:
    stage = on_meta(name).stages[1]
    mixer, downsampler = stage.blocks[0].token_mixer, stage.downsample.token_mixer
    channels = stage.blocks[0].norm.num_features
    assert isinstance(mixer, nn.Conv2d)
    assert isinstance(downsampler, nn.Conv2d)
    assert (mixer.kernel_size, mixer.stride, mixer.padding) == ((11, 11), (1, 1), (5, 5))
    assert (mixer.groups, mixer.out_channels, mixer.bias is not None) == (channels, channels, True)
    assert (downsampler.kernel_size, downsampler.stride, downsampler.padding) == ((7, 7), (2, 2), (3, 3))
    assert (downsampler.groups, downsampler.out_channels) == (channels // 2, channels)
    assert downsampler.bias is not None


@pytest.mark.parametrize("name", ALL)
def test_nothing_fuses_itself(name: str) -> None:
    assert [path for path, module in on_meta(name).named_modules() if hasattr(module, "fuse")] == []


def test_initialisation_of_the_heads() -> None:
    head = timm.create_model("repnext_m0").head.head
    assert head.linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(head.linear.bias, torch.zeros(1000))  # type: ignore[arg-type]
    assert torch.equal(head.norm.weight, torch.ones(320))  # type: ignore[arg-type]


# Running ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repnext_m0", "repnext_m0e", "repnext_nano"])
@pytest.mark.parametrize("size", [(64, 64), (63, 97)])
def test_traces_in_eval_mode(name: str, size: tuple[int, int]) -> None:
    model = timm.create_model(name).eval()
    traced = fx.symbolic_trace(model)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


def test_every_variant_traces() -> None:
    for name in ALL:
        fx.symbolic_trace(on_meta(name).eval())


def test_the_large_branch_differs_at_the_border_alone() -> None:
    """Its first bias, seen through the second convolution's zero padding, is what a fold has to get right."""
    large = MetaNeXtBlock(8).token_mixer.conv_l
    for parameter in large.parameters():
        nn.init.ones_(parameter)
    rows = large(torch.zeros(1, 2, 20, 20))[0, 0, :, 0]
    assert rows.tolist() == [float(taps + 1) for taps in (6, 7, 8, 9, 10, *[11] * 10, 10, 9, 8, 7, 6)]


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 3)])
def test_downsampling_rounds_up(size: tuple[int, int]) -> None:
    expected = (2, 8, -(-size[0] // 2), -(-size[1] // 2))
    x = torch.randn(2, 4, *size)
    for mixer in (CopyConv(4), single_branch_downsampler(4), paper.CopyConv(4)):
        assert mixer(x).shape == expected


def test_gradient_checkpointing_changes_nothing() -> None:
    x = torch.randn(2, 3, 64, 64)
    model = timm.create_model("repnext_nano").train()
    expected = model(x)
    model.set_grad_checkpointing()
    actual = model(x)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
