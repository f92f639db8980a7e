"""stack_heads: heads that are joined by a concatenation are one attention over stacked heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from passes.fuse_attention import FuseAttention
from passes.stack_heads import StackHeads
from repfx.decline import Reason
from repfx.verification import count_operations
from tests import hostile
from tests.attention import HEADS, SIZE, WIDTH, Scores, calls, fused_tokens, heads_of, linears, per_head, plain, refused
from tests.compiling import Net, assert_declined, only

ALONE = only(StackHeads())
BOTH = only(StackHeads(), FuseAttention())


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
    refused(
        StackHeads(),
        model,
        Reason.NOT_EXACT,
        "cat",
        "heads with and heads without a causal mask",
        left=3,
        beside=(FuseAttention(),),
    )
    model = Net(
        lambda s, x: torch.cat(
            [F.scaled_dot_product_attention(s.q[i](x), s.k[i](x), s.v[i](x), dropout_p=0.1) for i in range(HEADS)], -1
        ),
        **heads_of(),
    )
    fused = repfx.reparameterize(hostile.prepared(model, 0), (torch.randn(2, 5, WIDTH).double(),), **ALONE)
    assert_declined(
        fused, Reason.NOT_EXACT, "scaled_dot_product_attention", "drops attention weights at random", "stack_heads"
    )


def test_unequal_heads_cannot_be_stacked() -> None:
    """Each of them is one call still."""
    model = Net(per_head(), **heads_of((4, 4, 2)))
    refused(
        StackHeads(),
        model,
        Reason.NOT_EXACT,
        "cat",
        "heads whose queries have 2 and 4 channels",
        left=3,
        beside=(FuseAttention(),),
    )
    model = Net(per_head(), **heads_of(values=(4, 4, 5)))
    refused(
        StackHeads(),
        model,
        Reason.NOT_EXACT,
        "cat",
        "heads whose values have 4 and 5 channels",
        left=2,
        beside=(FuseAttention(),),
    )


def test_heads_of_different_values() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y, z = torch.tanh(x), torch.relu(x)
        outs = [plain(s, i, s.q[i](w), s.k[i](w)).softmax(-1) @ s.v[i](w) for i, w in enumerate((y, z, y))]
        return torch.cat(outs, -1)

    refused(
        StackHeads(),
        Net(run, **heads_of()),
        Reason.NOT_EXACT,
        "cat",
        "heads whose queries are made of different values",
        left=3,
        beside=(FuseAttention(),),
    )


def test_heads_joined_along_tokens() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return torch.cat([plain(s, i, s.q[i](y), s.k[i](y)).softmax(-1) @ s.v[i](y) for i in range(HEADS)], 1)

    refused(
        StackHeads(),
        Net(run, **heads_of()),
        Reason.NOT_EXACT,
        "cat",
        "along another axis than their channels",
        left=3,
        beside=(FuseAttention(),),
    )


def test_an_excluded_projection_stays() -> None:
    model = hostile.prepared(Net(per_head(), **heads_of()), 0)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fused = repfx.reparameterize(model, (x,), exclude=("q.1",), verify=False, **BOTH)
    hostile.assert_same(model, fused, x)
    assert_declined(fused, Reason.NOT_EXACT, "cat", "queries are made of different values", "stack_heads")
    assert len(calls(fused)) == 3


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
    assert [m.rule for m in told.merges] == ["fold_product_scales + stack_heads", "stack_heads"]
    assert {m.after for m in told.merges} == {"linear 6->36", "scaled_dot_product_attention of 3 heads"}
