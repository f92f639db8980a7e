"""What attention reads has its channels innermost: copied where a view has moved them, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repfx
from tests import hostile
from tests.compiling import Net

call = F.scaled_dot_product_attention


class Strides(fx.Interpreter):
    """Runs a graph and notes the strides of the last axes that attention reads."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is call:
            self.found = [x.stride(-1) for x in args[:3]]
        return super().call_function(target, args, kwargs)


def visformer(s: Net, x: Tensor) -> Tensor:
    """Channels first: (B, 3, heads, size, N)."""
    b, _, h, w = x.shape
    q, k, v = s.a(x.tanh()).reshape(b, 3, 2, 3, h * w).permute(1, 0, 2, 4, 3).unbind(0)
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


def indexed(s: Net, x: Tensor) -> Tensor:
    y = s.a(x.tanh()).reshape(x.shape[0], 3, 2, 3, -1).transpose(3, 4)
    return (y[:, 0] @ y[:, 1].transpose(-2, -1)).softmax(-1) @ y[:, 2]


def called(s: Net, x: Tensor) -> Tensor:
    """The user's own call; its copies are not lost."""
    q, k, v = s.a(x.tanh()).flatten(2).transpose(1, 2).contiguous().chunk(3, -1)
    return call(q.contiguous(), k, v)


def vision(s: Net, x: Tensor) -> Tensor:
    """Tokens: channels lie innermost as they are."""
    y = x.tanh().flatten(2).transpose(1, 2)
    q, k, v = s.l(y).reshape(y.shape[0], y.shape[1], 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


@pytest.mark.parametrize(
    ("run", "copies"),
    [(visformer, 3), (indexed, 3), (called, 3), (vision, 0)],
    ids=["visformer", "indexed", "called", "vision"],
)
def test_operands_with_strides_are_copied(run: Callable[[Net, Tensor], Tensor], copies: int) -> None:
    original = hostile.prepared(Net(run, a=nn.Conv2d(6, 18, 1), l=nn.Linear(6, 18)), 0)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,))
    assert isinstance(fused, fx.GraphModule)
    for size in ((4, 5), (1, 3), (7, 2)):
        hostile.assert_same(original, fused, torch.randn(2, 6, *size, dtype=torch.float64))
    assert sum(node.target == "contiguous" for node in fused.graph.nodes) == copies
    runner = Strides(fused)
    runner.run(x)
    assert runner.found == [1, 1, 1]
