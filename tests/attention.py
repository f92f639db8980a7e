"""Attention in tests: networks that write it out head by head, compiled and compared at all numbers of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repfx
from repfx.decline import Reason
from repfx.rewriting import Pass
from tests import hostile
from tests.compiling import Net, assert_declined, declines

WIDTH, HEADS, SIZE = 6, 3, 4


TOKENS = (5, 1, 9)


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


def refused(
    one: Pass,
    model: nn.Module,
    reason: Reason,
    place: str,
    fact: str,
    left: int = 0,
    beside: Sequence[Pass] = (),
) -> None:
    """Declined by this pass at this place for this reason; `left` calls are made of what remains."""
    original = hostile.prepared(model, 0)
    example = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fused = repfx.reparameterize(original, (example,), verify=False, passes=(one, *beside))
    hostile.assert_same(original, fused, example)
    assert_declined(fused, reason, place, fact, one.name)
    assert len(calls(fused)) == left
