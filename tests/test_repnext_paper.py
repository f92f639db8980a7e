"""The paper's table of token mixers and its downsampling ablation, one module each."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import fx, nn

import repnext
from repnext import ablation, paper

# The paper's table --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mixer",
    [paper.ChunkConv(8), paper.MixConv(10), paper.MHSA(8), paper.RepBlock(8)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_rows_of_the_table_keep_shape_and_trace(mixer: nn.Module, size: tuple[int, int]) -> None:
    channels = 10 if isinstance(mixer, paper.MixConv) else 8
    x = torch.randn(2, channels, *size)
    mixer.eval()
    assert mixer(x).shape == x.shape
    torch.testing.assert_close(fx.symbolic_trace(mixer)(x), mixer(x))


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_copy_conv_interleaves_its_branches(size: tuple[int, int]) -> None:
    mixer, x = paper.CopyConv(4), torch.randn(2, 4, *size)
    output = fx.symbolic_trace(mixer)(x)
    assert torch.equal(output[:, 0::2], mixer.conv_s(x))
    assert torch.equal(output[:, 1::2], mixer.conv_l(x))


def test_chunk_conv_passes_its_first_quarter_through() -> None:
    x = torch.randn(1, 8, 6, 6)
    output = paper.ChunkConv(8)(x)
    assert torch.equal(output[:, :2], x[:, :2])
    assert not torch.equal(output[:, 2:], x[:, 2:])


def test_mix_conv_takes_uneven_parts() -> None:
    assert paper.MixConv(10).parts == [4, 2, 2, 2]
    with pytest.raises(ValueError, match="cannot be split"):
        paper.MixConv(3)


def test_attention_is_per_head() -> None:
    mixer = paper.MHSA(8, heads=2).eval()
    for projection in (mixer.qkv, mixer.proj):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
    nn.init.eye_(mixer.qkv.weight.data[16:, :, 0, 0])  # values are the input, queries and keys are zero
    nn.init.eye_(mixer.proj.weight.data[:, :, 0, 0])
    x = torch.randn(1, 8, 3, 5)
    torch.testing.assert_close(mixer(x), x.mean((2, 3), keepdim=True).expand_as(x))
    with pytest.raises(ValueError, match="equal heads"):
        paper.MHSA(6, heads=4)


def test_rep_block_strides_without_identity() -> None:
    block = paper.RepBlock(4, stride=2)
    assert block.norm_identity is None
    assert block(torch.randn(2, 4, 7, 8)).shape == (2, 4, 4, 4)


def test_the_papers_mixers_build_a_network() -> None:
    model = repnext.RepNext(
        embed_dim=(8, 16),
        depth=(1, 1),
        num_classes=5,
        token_mixer=paper.ChunkConv,
        downsample_mixer=paper.CopyConv,
    ).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


# The downsampling ablation ------------------------------------------------------------------------------


def test_ablation_parameter_counts() -> None:
    models = timm.create_model("convnext_femto"), ablation.modified_a(), ablation.modified_b()
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert counts == [5_217_784, 5_252_728, 5_252_728]


@pytest.mark.parametrize("normalize_shortcut", [False, True])
def test_ablation_shortcuts(normalize_shortcut: bool) -> None:
    layer, x = ablation.ModifiedDownsample(4, normalize_shortcut), torch.randn(2, 4, 7, 8)
    nn.init.zeros_(layer.pwconv2.weight)
    nn.init.zeros_(layer.pwconv2.bias)
    mixed = layer.dwconv(x)
    assert mixed.shape == (2, 8, 4, 4)
    assert torch.equal(layer(x), layer.norm(mixed) if normalize_shortcut else mixed)


def test_ablation_runs() -> None:
    model = ablation.modified_b(num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_ablation_of_a_wrapped_network() -> None:
    with pytest.raises(ValueError, match="features_only"):
        ablation.modified_a(features_only=True)
