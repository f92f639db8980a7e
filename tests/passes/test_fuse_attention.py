"""fuse_attention alone: attention that is written out is one scaled_dot_product_attention."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repfx
from passes import DEFAULT_PASSES
from passes.fuse_attention import FuseAttention
from repfx.decline import Reason
from repfx.verification import count_operations
from tests import hostile
from tests.compiling import Net, assert_declined, declines, only

ALONE = only(FuseAttention())
TOKENS = (5, 1, 9)
WIDTH, HEADS, SIZE = 6, 3, 4


def calls(fused: nn.Module) -> list[fx.Node]:
    assert isinstance(fused, fx.GraphModule)
    return [node for node in fused.graph.nodes if node.target is F.scaled_dot_product_attention]


def linears(fused: nn.Module) -> int:
    return sum(isinstance(module, nn.Linear) for module in fused.modules())


def fused_tokens(
    model: nn.Module, tokens: tuple[int, ...] = TOKENS, width: int = WIDTH, example: bool = True, **options: Any
) -> nn.Module:
    """Compiled with hostile weights; equal at all numbers of tokens and images, with and without the gate."""
    original = hostile.prepared(model, 0)
    inputs = [torch.randn(2, n, width, dtype=torch.float64) * 2 for n in tokens]
    inputs.append(torch.randn(1, tokens[0], width, dtype=torch.float64).round())
    for verify in (True, False):
        fused = repfx.reparameterize(original, (inputs[0],) if example else None, verify=verify, **options)
        for x in inputs:
            hostile.assert_same(original, fused, x)
    checked = repfx.reparameterize(original, (inputs[0],) if example else None, **options)
    assert not declines(checked, Reason.VERIFICATION)
    assert all(merge.error is not None and merge.error < 1e-12 for merge in repfx.report(checked).merges)
    assert len(calls(checked)) == len(calls(fused)), "the gate stopped a rewrite or made none of its probes"
    return fused


def heads_of(
    widths: tuple[int, ...] = (SIZE,) * HEADS, values: tuple[int, ...] = (), bias: bool = True
) -> dict[str, Any]:
    """One linear per head for queries, keys (without bias) and values."""
    wide = values or widths
    return {
        "q": nn.ModuleList(nn.Linear(WIDTH, d) for d in widths),
        "k": nn.ModuleList(nn.Linear(WIDTH, d, bias=False) for d in widths),
        "v": nn.ModuleList(nn.Linear(WIDTH, d) for d in wide),
    }


Scores = Callable[[Net, int, Tensor, Tensor], Tensor]


def plain(s: Net, i: int, q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) * SIZE**-0.5


def per_head(scores: Scores = plain, count: int = HEADS) -> Callable[[Net, Tensor], Tensor]:
    def run(s: Net, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        outs = [scores(s, i, s.q[i](x), s.k[i](x)).softmax(-1) @ s.v[i](x) for i in range(count)]
        return torch.cat(outs, -1)

    return run


SPELLINGS: dict[str, Scores] = {
    "after the product": plain,
    "divided": lambda s, i, q, k: torch.matmul(q, k.transpose(1, 2)) / math.sqrt(SIZE),
    "on the queries": lambda s, i, q, k: (q * 0.3) @ k.mT,
    "on the keys": lambda s, i, q, k: q @ (0.3 * k).permute(0, 2, 1),
    "none": lambda s, i, q, k: q.bmm(k.swapaxes(-1, -2)),
    "einsum": lambda s, i, q, k: torch.einsum("bqd,bkd->bqk", q, k).mul(0.7),
    "einsum, dots": lambda s, i, q, k: torch.einsum("...qd,...kd->...qk", q, k) * -0.7,
    "one per head": lambda s, i, q, k: q @ k.transpose(-2, -1) * (0.2 + i),
    "twice": lambda s, i, q, k: (q * 0.5) @ k.transpose(-2, -1) * 1.5 / 2,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_linear_per_head(name: str) -> None:
    fused = fused_tokens(Net(per_head(SPELLINGS[name]), **heads_of()), **ALONE)
    assert len(calls(fused)) == 1
    assert linears(fused) == 1
    found = count_operations(fused, (torch.randn(2, 5, WIDTH, dtype=torch.float64),))
    assert (found.linears, found.muls, found.concats, found.others) == (1, 0, 0, 2)  # tanh and the call


def test_without_example_inputs() -> None:
    """Heads that are made by their own linears need no shapes."""
    fused = fused_tokens(Net(per_head(lambda s, i, q, k: q @ k.mT / 2), **heads_of()), example=False, **ALONE)
    assert len(calls(fused)) == 1


def chunked(s: Net, x: Tensor) -> Tensor:
    """One projection each for all queries, keys and values, divided over heads."""
    x = torch.tanh(x)
    q, k, v = s.q(x).chunk(HEADS, -1), s.k(x).split(SIZE, 2), s.v(x)
    outs = []
    for i in range(HEADS):
        scores = torch.matmul(q[i], k[i].transpose(1, 2)) * s.t
        outs.append(F.softmax(scores, dim=-1) @ v[:, :, i * SIZE : (i + 1) * SIZE])
    return s.o(torch.cat(outs, dim=2))


def test_projections_divided_over_heads() -> None:
    """The scale is a learned number here: it goes into the queries' rows."""
    model = Net(
        chunked, q=nn.Linear(WIDTH, 12), k=nn.Linear(WIDTH, 12, bias=False), v=nn.Linear(WIDTH, 12),
        o=nn.Linear(12, WIDTH), t=nn.Parameter(torch.ones(1)),
    )  # fmt: skip
    fused = fused_tokens(model, **ALONE)
    assert len(calls(fused)) == 1
    assert linears(fused) == 2
    assert calls(fused)[0].kwargs["scale"] == 1.0


def test_heads_over_a_value_that_no_linear_makes() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        parts = x.split([2, 2, 2], -1)  # in a chunk, the example alone would say that there are six channels
        return torch.cat([(p @ p.transpose(-2, -1) * 0.7).softmax(-1) @ p for p in (parts[0], parts[1], parts[2])], -1)

    fused = fused_tokens(Net(run), **ALONE)
    (call,) = calls(fused)
    assert call.kwargs["scale"] == 0.7
    assert linears(fused) == 0


def _thirds(s: Net, x: Tensor) -> Tensor:
    parts = torch.tanh(x).chunk(3, -1)
    return torch.cat([(p @ p.mT * 0.7).softmax(-1) @ p for p in (parts[0], parts[1], parts[2])], -1)


def _whole(s: Net, x: Tensor) -> Tensor:
    x = torch.tanh(x)
    return torch.cat([(x @ x.mT * 0.7).softmax(-1) @ x for _ in range(2)], -1)


@pytest.mark.parametrize(
    ("run", "reason", "place", "fact"),
    [
        (_thirds, Reason.UNKNOWN_FACT, "tanh", "selects along an axis of which only the example says"),
        (_whole, Reason.UNKNOWN_FACT, "tanh", "is attended to; structure does not give its number of channels"),
    ],
    ids=["thirds", "whole"],
)
def test_widths_that_only_the_example_tells_are_not_relied_on(
    run: Callable[[Net, Tensor], Tensor], reason: Reason, place: str, fact: str
) -> None:
    """Seven channels make thirds of 3, 3 and 1: no heads of one size."""
    original = hostile.prepared(Net(run), 0)
    for options in (ALONE, {}):
        fused = repfx.reparameterize(original, (torch.randn(2, 5, WIDTH, dtype=torch.float64),), **options)
        assert_declined(fused, reason, place, fact)
        for width in (6, 7, 9, 3):
            hostile.assert_same(original, fused, torch.randn(2, 5, width, dtype=torch.float64))


def test_projections_that_are_read_elsewhere_stay() -> None:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = s.a(torch.tanh(x)).chunk(3, -1)
        outs = []
        for i in range(2):
            p = slice(2 * i, 2 * i + 2)
            outs.append((q[:, :, p] @ k[:, :, p].transpose(-2, -1) * 0.5).softmax(-1) @ v[:, :, p])
        return torch.cat(outs, -1), torch.relu(q)

    fused = fused_tokens(Net(run, a=nn.Linear(WIDTH, 12)), **ALONE)
    assert len(calls(fused)) == 1
    assert linears(fused) == 1


def test_values_of_another_size_than_keys() -> None:
    fused = fused_tokens(Net(per_head(), **heads_of(values=(7, 7, 7))), **ALONE)
    assert len(calls(fused)) == 1


def test_macs_objective_stacks_what_adds_no_bias() -> None:
    """Keys have no bias: one linear for all would need one, three do not."""
    fused = fused_tokens(Net(per_head(), **heads_of()), objective="macs", **ALONE)
    assert len(calls(fused)) == 1
    assert linears(fused) == 3


def test_values_of_different_origin() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y, z = torch.tanh(x), torch.relu(x)
        return torch.cat([plain(s, i, s.q[i](y), s.k[i](z)).softmax(-1) @ s.v[i](z) for i in range(HEADS)], -1)

    fused = fused_tokens(Net(run, **heads_of()), **ALONE)
    assert len(calls(fused)) == 1
    assert linears(fused) == 2


# --- constants added to the scores ----------------------------------------------------------------


BIASES: dict[str, tuple[Callable[[Net, int], Any], dict[str, Any]]] = {
    "rows of one parameter": (lambda s, i: s.b[i], {"b": nn.Parameter(torch.randn(HEADS, 5, 5))}),
    "rows in another order": (lambda s, i: s.b[HEADS - 1 - i], {"b": nn.Parameter(torch.randn(HEADS, 5, 5))}),
    "rows of more": (lambda s, i: s.b[i], {"b": nn.Parameter(torch.randn(HEADS + 1, 5, 5))}),
    "one for all": (lambda s, i: s.b, {"b": nn.Parameter(torch.randn(5, 5))}),
    "a causal mask": (lambda s, i: s.b, {"b": torch.full((1, 5, 5), -math.inf).triu(1)}),
    "per key": (lambda s, i: s.b[i], {"b": nn.Parameter(torch.randn(HEADS, 1, 5))}),
    "relative positions": (
        lambda s, i: s.b[i][s.r],
        {"b": nn.Parameter(torch.randn(HEADS, 9)), "r": torch.arange(5)[:, None] - torch.arange(5) + 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BIASES)
def test_constant_bias(name: str) -> None:
    read, parts = BIASES[name]
    model = Net(per_head(lambda s, i, q, k: plain(s, i, q, k) + read(s, i)), **heads_of(), **parts)
    fused = fused_tokens(model, tokens=(5,), **ALONE)
    assert len(calls(fused)) == 1
    learned = [p for n, p in fused.named_parameters() if n == "b"]
    assert bool(learned) == isinstance(parts["b"], nn.Parameter), "the bias is read where it was, to be trained on"


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


# --- heads that are stacked already ---------------------------------------------------------------


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


def test_heads_that_are_calls_are_stacked() -> None:
    for options in ({}, {"is_causal": True}, {"scale": 0.3}):
        calls_own = lambda q, k, v, o=options: F.scaled_dot_product_attention(q, k, v, **o)  # noqa: E731
        model = Net(
            lambda s, x, call=calls_own: torch.cat([call(s.q[i](x), s.k[i](x), s.v[i](x)) for i in range(HEADS)], -1),
            **heads_of(),
        )
        (call,) = calls(fused_tokens(model, **ALONE))
        assert call.kwargs.get("is_causal", False) == ("is_causal" in options)


def test_calls_that_differ_stay() -> None:
    model = Net(
        lambda s, x: torch.cat(
            [F.scaled_dot_product_attention(s.q[i](x), s.k[i](x), s.v[i](x), is_causal=i > 0) for i in range(HEADS)], -1
        ),
        **heads_of(),
    )
    refused(model, Reason.NOT_EXACT, "cat", "heads with and heads without a causal mask", left=3)
    model = Net(
        lambda s, x: torch.cat(
            [F.scaled_dot_product_attention(s.q[i](x), s.k[i](x), s.v[i](x), dropout_p=0.1) for i in range(HEADS)], -1
        ),
        **heads_of(),
    )
    fused = repfx.reparameterize(hostile.prepared(model, 0), (torch.randn(2, 5, WIDTH).double(),), **ALONE)
    assert_declined(
        fused, Reason.NOT_EXACT, "scaled_dot_product_attention", "drops attention weights at random", "fuse_attention"
    )


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


# --- what stays -----------------------------------------------------------------------------------


def refused(model: nn.Module, reason: Reason, place: str, fact: str, left: int = 0, x: Tensor | None = None) -> None:
    """Declined at this place for this reason; `left` calls are made of what remains."""
    original = hostile.prepared(model, 0)
    example = torch.randn(2, 5, WIDTH, dtype=torch.float64) if x is None else x
    fused = repfx.reparameterize(original, (example,), verify=False, **ALONE)
    if not any(module.training for module in original.modules()):
        hostile.assert_same(original, fused, example)
    assert_declined(fused, reason, place, fact, "fuse_attention")
    assert len(calls(fused)) == left


def test_unequal_heads_cannot_be_stacked() -> None:
    """Each of them is one call still."""
    model = Net(per_head(), **heads_of((4, 4, 2)))
    refused(model, Reason.NOT_EXACT, "cat", "heads whose queries have 2 and 4 channels", left=3)
    model = Net(per_head(), **heads_of(values=(4, 4, 5)))
    refused(model, Reason.NOT_EXACT, "cat", "heads whose values have 4 and 5 channels", left=2)


def test_heads_of_different_values() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y, z = torch.tanh(x), torch.relu(x)
        outs = [plain(s, i, s.q[i](w), s.k[i](w)).softmax(-1) @ s.v[i](w) for i, w in enumerate((y, z, y))]
        return torch.cat(outs, -1)

    refused(Net(run, **heads_of()), Reason.NOT_EXACT, "cat", "heads whose queries are made of different values", left=3)


def test_softmax_over_another_axis() -> None:
    refused(vision(dim=-2), Reason.NOT_EXACT, "softmax", "softmax of its scores over axis -2")


def test_softmax_in_another_type() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = s.a(torch.tanh(x)).chunk(3, -1)
        return F.softmax(q @ k.transpose(1, 2), dim=-1, dtype=torch.float64) @ v

    refused(Net(run, a=nn.Linear(WIDTH, 9)), Reason.NOT_EXACT, "softmax", "in torch.float64")


def test_heads_joined_along_tokens() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return torch.cat([plain(s, i, s.q[i](y), s.k[i](y)).softmax(-1) @ s.v[i](y) for i in range(HEADS)], 1)

    refused(Net(run, **heads_of()), Reason.NOT_EXACT, "cat", "along another axis than their channels", left=3)


def test_scores_or_weights_that_are_returned() -> None:
    def run(s: Net, x: Tensor, which: int) -> tuple[Tensor, Tensor]:
        q, k, v = s.a(torch.tanh(x)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) * 0.5
        weights = scores.softmax(-1)
        return weights @ v, (scores, weights)[which]

    for which, name in enumerate(("mul", "softmax")):
        model = Net(lambda s, x, which=which: run(s, x, which), a=nn.Linear(WIDTH, 9))
        refused(model, Reason.OUTSIDE_USE, name, "is read inside the attention and by the output")


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
        refused(model(mask), Reason.NOT_EXACT, place, fact)


def test_a_bias_that_could_widen_one_query() -> None:
    """One query of five tokens, and a bias of five by five: the sum has five rows, which the call refuses."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return (s.q(y[:, :1]) @ s.k(y).transpose(1, 2) + s.b).softmax(-1) @ s.v(y)

    parts = {"q": nn.Linear(WIDTH, 3), "k": nn.Linear(WIDTH, 3), "v": nn.Linear(WIDTH, 3)}
    model = Net(run, **parts, b=nn.Parameter(torch.randn(5, 5)))
    refused(model, Reason.NOT_EXACT, "matmul_1", "different tokens; it may widen them")


def test_a_bias_for_more_heads_than_there_are() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = (y[:, None] for y in s.a(torch.tanh(x)).split([3, 3, 3], -1))
        return (q @ k.transpose(-2, -1) + s.b).softmax(-1) @ v

    model = Net(run, a=nn.Linear(WIDTH, 9), b=nn.Parameter(torch.randn(2, 5, 5)))
    refused(model, Reason.NOT_EXACT, "matmul_1", "may widen the scores to more heads")


def test_values_wider_than_keys_have_no_fused_kernel() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = s.a(torch.tanh(x)).split([2, 2, 5], -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v

    refused(Net(run, a=nn.Linear(WIDTH, 9)), Reason.COST, "matmul_1", "has 2 channels per key and 5 per value")


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


def test_an_excluded_projection_stays() -> None:
    model = hostile.prepared(Net(per_head(), **heads_of()), 0)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fused = repfx.reparameterize(model, (x,), exclude=("q.1",), verify=False, **ALONE)
    hostile.assert_same(model, fused, x)
    assert_declined(fused, Reason.NOT_EXACT, "cat", "queries are made of different values", "fuse_attention")
    assert len(calls(fused)) == 3


# --- the result as a module -----------------------------------------------------------------------


def test_exported_trained_and_compiled_again() -> None:
    bias = nn.Parameter(torch.randn(HEADS, 5, 5))
    model = Net(per_head(lambda s, i, q, k: plain(s, i, q, k) + s.b[i]), **heads_of(), b=bias)
    original = hostile.prepared(model, 0)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,))
    hostile.assert_same(original, torch.export.export(fused, (x,)).module(), x)
    again = repfx.reparameterize(fused, (x,))
    assert not repfx.report(again).merges
    decomposed = torch.export.export(again, (x,)).run_decompositions()  # as exporters do
    hostile.assert_same(original, decomposed.module(), x)
    fused(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in fused.parameters())
    original(x).square().sum().backward()
    assert torch.allclose(dict(fused.named_parameters())["b"].grad, original.b.grad)  # type: ignore[arg-type]


def test_explain_counts_without_weights() -> None:
    with torch.device("meta"):
        model = Net(per_head(), **heads_of()).eval()
    told = repfx.explain(model)
    assert [m.rule for m in told.merges] == ["fold_product_scales + fuse_attention", "fuse_attention"]
    assert {m.after for m in told.merges} == {"linear 6->36", "scaled_dot_product_attention of 3 heads"}


def test_it_is_among_the_default_passes() -> None:
    assert FuseAttention() in DEFAULT_PASSES


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
