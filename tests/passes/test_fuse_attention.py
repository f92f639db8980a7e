"""fuse_attention alone: attention that is written out is one scaled_dot_product_attention."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from passes.fuse_attention import FuseAttention
from repfx.decline import Reason
from tests import hostile
from tests.attention import WIDTH, calls, fused_tokens, refused
from tests.compiling import Net, assert_declined, declines, only

ALONE = only(FuseAttention())


def test_bias_of_the_stacked_form_is_one_call_too() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = s.a(torch.tanh(x)).reshape(B, N, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * s.scale + s.b
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, 6)

    for shape in ((2, 5, 5), (1, 2, 5, 5), (5, 5), (1, 5)):
        model = Net(run, a=nn.Linear(WIDTH, 18), b=nn.Parameter(torch.randn(shape)))
        model.scale = 0.4  # type: ignore[assignment]
        fused = fused_tokens(model, tokens=(5,), **ALONE)
        (call,) = calls(fused)
        assert call.kwargs["scale"] == 0.4, shape


def stacked(dropout: bool = False, dim: int = -1) -> Callable[[Net, Tensor], Any]:
    def run(s: Net, x: Tensor) -> Any:
        B, N, C = x.shape
        q, k, v = s.a(torch.tanh(x)).reshape(B, N, 3, 2, C // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 0.4).softmax(dim=dim)
        if dropout:
            weights = s.drop(weights)
        return s.o((weights @ v).transpose(1, 2).reshape(B, N, C))

    return run


def vision(**options: Any) -> Net:
    return Net(stacked(**options), a=nn.Linear(WIDTH, 18), o=nn.Linear(WIDTH, WIDTH), drop=nn.Dropout(0.5))


def test_stacked_heads() -> None:
    fused = fused_tokens(vision(), **ALONE)
    assert len(calls(fused)) == 1
    (merge,) = repfx.report(fused).merges
    assert merge.rule == "fuse_attention"
    assert merge.after == "scaled_dot_product_attention"
    assert "2 matmul" in merge.before


def test_stacked_heads_with_all_passes_scale_in_the_projection() -> None:
    fused = fused_tokens(vision(dropout=True))
    (call,) = calls(fused)
    assert call.kwargs["scale"] == 1.0
    assert not any("mul" in node.name for node in fused.graph.nodes)


def test_one_head_without_a_head_axis() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        return (torch.einsum("bid,bjd->bij", s.q(x), s.k(x)) * 0.5).softmax(-1) @ s.v(x)

    model = Net(run, q=nn.Linear(WIDTH, 5), k=nn.Linear(WIDTH, 5), v=nn.Linear(WIDTH, 5))
    assert len(calls(fused_tokens(model, **ALONE))) == 1


def test_keys_that_come_transposed() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = s.a(torch.tanh(x)).chunk(3, -1)
        turned = k.transpose(1, 2).contiguous()
        return (q @ turned).softmax(-1) @ v + turned.sum(1, keepdim=True).transpose(1, 2)

    assert len(calls(fused_tokens(Net(run, a=nn.Linear(WIDTH, 9)), **ALONE))) == 1


def test_timm_attention_that_is_written_out() -> None:
    from timm.layers import set_fused_attn
    from timm.models.vision_transformer import Attention

    set_fused_attn(False)
    try:
        model = Net(lambda s, x: s.a(torch.tanh(x)), a=Attention(WIDTH, 2))
    finally:
        set_fused_attn(True)
    (call,) = calls(fused_tokens(model))
    assert call.kwargs["scale"] == 1.0


def test_softmax_over_another_axis() -> None:
    refused(FuseAttention(), vision(dim=-2), Reason.NOT_EXACT, "softmax", "softmax of its scores over axis -2")


def test_softmax_in_another_type() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = s.a(torch.tanh(x)).chunk(3, -1)
        return F.softmax(q @ k.transpose(1, 2), dim=-1, dtype=torch.float64) @ v

    refused(FuseAttention(), Net(run, a=nn.Linear(WIDTH, 9)), Reason.NOT_EXACT, "softmax", "in torch.float64")


def test_scores_or_weights_that_are_returned() -> None:
    def run(s: Net, x: Tensor, which: int) -> tuple[Tensor, Tensor]:
        q, k, v = s.a(torch.tanh(x)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) * 0.5
        weights = scores.softmax(-1)
        return weights @ v, (scores, weights)[which]

    for which, name in enumerate(("mul", "softmax")):
        model = Net(lambda s, x, which=which: run(s, x, which), a=nn.Linear(WIDTH, 9))
        refused(FuseAttention(), model, Reason.OUTSIDE_USE, name, "is read inside the attention and by the output")


def test_masks() -> None:
    def model(mask: Callable[[Net, Tensor, Tensor], Tensor]) -> Net:
        def run(s: Net, x: Tensor) -> Tensor:
            q, k, v = s.a(torch.tanh(x)).chunk(3, -1)
            return mask(s, q @ k.transpose(1, 2), x).softmax(-1) @ v

        return Net(run, a=nn.Linear(WIDTH, 9), b=torch.ones(5, 5).tril() > 0, c=nn.Parameter(torch.randn(1, 5, 5)))

    given: dict[str, tuple[Callable[[Net, Tensor, Tensor], Tensor], str]] = {
        "from the input": (lambda s, y, x: y + x.sum(-1)[:, None], "that is computed from the input"),
        "filled": (lambda s, y, x: y.masked_fill(s.b, -1e9), "changes its scores by masked_fill"),  # type: ignore[arg-type]
        "of the input's size": (
            lambda s, y, x: y + x.new_ones(x.shape[1], x.shape[1]).triu(1),
            "that is computed from the input",
        ),
        "boolean": (lambda s, y, x: y + s.b, "a constant of torch.bool"),
        "scaled after": (lambda s, y, x: (y + s.c) * 0.5, "scales its scores after adding a bias"),
        "twice": (lambda s, y, x: y + s.c + s.c, "adds two biases"),
        "clamped": (lambda s, y, x: y.clamp(-1, 1), "changes its scores by clamp"),
    }  # fmt: skip
    for name, (mask, fact) in given.items():
        place = "matmul_1" if name == "boolean" else "softmax"
        refused(FuseAttention(), model(mask), Reason.NOT_EXACT, place, fact)


def test_a_bias_that_could_widen_one_query() -> None:
    """One query of five tokens, and a bias of five by five: the sum has five rows, which the call refuses."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return (s.q(y[:, :1]) @ s.k(y).transpose(1, 2) + s.b).softmax(-1) @ s.v(y)

    parts = {"q": nn.Linear(WIDTH, 3), "k": nn.Linear(WIDTH, 3), "v": nn.Linear(WIDTH, 3)}
    model = Net(run, **parts, b=nn.Parameter(torch.randn(5, 5)))
    refused(FuseAttention(), model, Reason.NOT_EXACT, "matmul_1", "different tokens; it may widen them")


def test_a_bias_for_more_heads_than_there_are() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = (y[:, None] for y in s.a(torch.tanh(x)).split([3, 3, 3], -1))
        return (q @ k.transpose(-2, -1) + s.b).softmax(-1) @ v

    model = Net(run, a=nn.Linear(WIDTH, 9), b=nn.Parameter(torch.randn(2, 5, 5)))
    refused(FuseAttention(), model, Reason.NOT_EXACT, "matmul_1", "may widen the scores to more heads")


def test_values_wider_than_keys_have_no_fused_kernel() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = s.a(torch.tanh(x)).split([2, 2, 5], -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v

    refused(
        FuseAttention(),
        Net(run, a=nn.Linear(WIDTH, 9)),
        Reason.COST,
        "matmul_1",
        "has 2 channels per key and 5 per value",
    )


def test_dropout_in_training_mode() -> None:
    model = hostile.prepared(vision(dropout=True), 0)
    model.drop.train()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fused = repfx.reparameterize(model, (x,), verify=False, **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "drop", "drops attention weights at random", "fuse_attention")
    assert not calls(fused)


def test_shapes_that_structure_does_not_tell() -> None:
    model = hostile.prepared(vision(), 0)
    fused = repfx.reparameterize(model, verify=False, **ALONE)
    assert_declined(fused, Reason.UNKNOWN_FACT, "matmul_1", "is not known", "fuse_attention")
    (decline,) = [d for d in declines(fused) if d.rule == "fuse_attention"]
    assert decline.remedy == "pass example_inputs"


def test_a_softmax_that_is_no_attention_is_left_alone() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.a(x).softmax(-1) @ torch.tanh(x)

    original = hostile.prepared(Net(run, a=nn.Linear(WIDTH, 5)), 0)
    fused = repfx.reparameterize(original, (torch.randn(2, 5, WIDTH, dtype=torch.float64),), **ALONE)
    assert not declines(fused)
    assert not calls(fused)


SCORES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "twice": lambda s, y: y * s.t * 0.5,
    "twice by a parameter": lambda s, y: y * s.t / s.t,
    "then a bias per head": lambda s, y: y * s.t + s.b,
    "twice, then a bias per head": lambda s, y: y * 0.5 * s.t + s.b,
}


@pytest.mark.parametrize("name", SCORES)
def test_default_passes_take_the_factor_before_a_chain_hides_it(name: str) -> None:
    """The heads' scores are as many channels: a factor and a bias would be one scale and shift of them."""

    def run(s: Net, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = s.a(torch.tanh(x)).reshape(b, n, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return SCORES[name](s, q @ k.transpose(-2, -1)).softmax(-1) @ v

    t, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2, 1, 1))
    fused = fused_tokens(Net(run, a=nn.Linear(WIDTH, 18), t=t, b=b))
    assert len(calls(fused)) == 1
    assert not any(node.target in (operator.mul, operator.truediv) for node in fused.graph.nodes)


def test_a_bias_of_tokens_that_a_chunk_divides() -> None:
    """Of five tokens the last third is one: the sum with a bias of two by two has two rows, which the call refuses."""

    def run(s: Net, x: Tensor) -> Tensor:
        first, _, last = s.a(torch.tanh(x)).chunk(3, 1)
        return (last @ first.transpose(1, 2) + s.b).softmax(-1) @ first

    model = Net(run, a=nn.Linear(WIDTH, 4), b=nn.Parameter(torch.randn(2, 2)))
    refused(FuseAttention(), model, Reason.NOT_EXACT, "matmul_1", "different tokens; it may widen them")


def test_a_bias_where_channels_come_first() -> None:
    """Along which axis a chunk divides channels is told by the projection that makes them."""

    def run(s: Net, x: Tensor) -> Tensor:
        parts = s.a(x.transpose(1, 2)[..., None]).chunk(3, 1)
        q, k, v = (part.flatten(2).transpose(1, 2) for part in parts)
        return (q @ k.transpose(1, 2) + s.b).softmax(-1) @ v

    model = Net(run, a=nn.Conv2d(WIDTH, 9, 1), b=nn.Parameter(torch.randn(5, 5)))
    assert len(calls(fused_tokens(model, tokens=(5,), **ALONE))) == 1


def test_dots_among_the_letters_of_an_einsum() -> None:
    """einsum("bi...d,bj...d->bi...j") is no product of the last two axes: the dots stand between them."""

    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(x.shape[0], 2, -1, 3) for f in (s.q, s.k, s.v))
        weights = torch.einsum("bi...d,bj...d->bi...j", q, k).softmax(-1)
        return torch.einsum("bi...j,bj...d->bi...d", weights, v)

    model = Net(run, q=nn.Linear(WIDTH, 6), k=nn.Linear(WIDTH, 6), v=nn.Linear(WIDTH, 6))
    assert not calls(fused_tokens(model, tokens=(4, 2), **ALONE))


def test_dots_behind_common_letters_of_an_einsum() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = (f(torch.tanh(x)) for f in (s.q, s.k, s.v))
        return torch.einsum("b...nm,b...md->b...nd", torch.einsum("b...nd,b...md->b...nm", q, k).softmax(-1), v)

    model = Net(run, q=nn.Linear(WIDTH, 6), k=nn.Linear(WIDTH, 6), v=nn.Linear(WIDTH, 6))
    assert len(calls(fused_tokens(model, **ALONE))) == 1
