"""fold_product_scales alone: the scale of attention scores goes into the rows of a projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repfx
from passes.fold_product_scales import FoldProductScales
from repfx.decline import Reason
from repfx.graph import is_size
from tests import hostile
from tests.compiling import Net, assert_declined, compiled, conv, declines, only

ALONE = only(FoldProductScales())
WIDTH = 6
SIZES = (5, 1, 9)


def muls(fused: nn.Module) -> int:
    assert isinstance(fused, fx.GraphModule)
    names = {"mul", "truediv", "imul", "div"}
    return sum(getattr(n.target, "__name__", n.target) in names and not is_size(n) for n in fused.graph.nodes)


def folded(run: Callable[[Net, Tensor], Any], example: bool = True, **parts: Any) -> nn.Module:
    """Compiled with hostile weights, with and without the gate; equal at all numbers of tokens and images."""
    original = hostile.prepared(Net(lambda s, x: run(s, torch.tanh(x)), **parts), 0)
    inputs = [torch.randn(2, n, WIDTH, dtype=torch.float64) * 2 for n in SIZES]
    results = []
    for verify in (True, False):
        fused = repfx.reparameterize(original, (inputs[0],) if example else None, verify=verify, **ALONE)
        for x in inputs:
            hostile.assert_same(original, fused, x)
        results.append(fused)
    checked = repfx.report(results[0])
    assert not [d for d in checked.declines if d.reason is Reason.VERIFICATION]
    assert all(merge.error is not None and merge.error < 1e-12 for merge in checked.merges), "no probe was made"
    assert muls(results[0]) == muls(results[1])
    return results[0]


def vision(s: Net, x: Tensor) -> Tensor:
    """(3, heads, size) on the channel axis, as in ViT."""
    B, N, C = x.shape
    q, k, v = s.a(x).reshape(B, N, 3, 2, C // 2).permute(2, 0, 3, 1, 4).unbind(0)
    return ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v


def levit(s: Net, x: Tensor) -> Tensor:
    """(heads, sizes of q, k and v), values wider than keys, as in LeViT."""
    B, N, _ = x.shape
    q, k, v = s.b(x).view(B, N, 2, -1).split([2, 2, 4], dim=3)
    q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
    return (q @ k * 0.3).softmax(-1) @ v


def queries(s: Net, x: Tensor) -> Tensor:
    """The factor on the queries, before the product, as in Swin."""
    B, N, C = x.shape
    qkv = s.a(x).reshape(B, N, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    q = q * 0.3
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def indexed(s: Net, x: Tensor) -> Tensor:
    """Parts by slices of the channels; a learned factor; einsum."""
    y = s.a(x)
    q, k, v = y[..., :6], y[:, :, 6:12], y.narrow(-1, 12, 6)
    q, k = q.unflatten(-1, (2, 3)).transpose(1, 2), k.unflatten(2, (2, -1)).transpose(1, 2)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / s.t
    return scores.softmax(-1) @ v.reshape(v.shape[0], -1, 2, 3).transpose(1, 2)


def apart(s: Net, x: Tensor) -> Tensor:
    """Queries from a projection of their own; the whole of it is scaled."""
    return (s.q(x).transpose(1, 2).contiguous().transpose(1, 2) @ s.k(x).mT * 0.3).sigmoid()


PARTS: dict[str, Any] = {
    "a": nn.Linear(WIDTH, 18),
    "b": nn.Linear(WIDTH, 16),
    "q": nn.Linear(WIDTH, 4),
    "k": nn.Linear(WIDTH, 4),
}


@pytest.mark.parametrize("run", [vision, levit, queries, indexed, apart], ids=lambda run: run.__name__)
def test_scale_of_scores(run: Callable[[Net, Tensor], Tensor]) -> None:
    fused = folded(run, t=nn.Parameter(torch.ones(1)), **PARTS)
    assert muls(fused) == 0
    assert len(repfx.report(fused).merges) == 1


def test_on_images_with_channels_first() -> None:
    """The keys' sizes are read from the image; the factor goes into rows of a 1x1 convolution."""

    def run(s: Net, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        q, k, v = s.a(x).view(B, 2, -1, H * W).split([2, 2, 3], dim=2)
        weights = (q.transpose(-2, -1) @ k * 0.3).softmax(-1)
        return (v @ weights.transpose(-2, -1)).reshape(B, 6, H, W)

    _, fused = compiled(Net(run, a=conv(4, 14, 1)), 4, example=(8, 8), **ALONE)
    assert muls(fused) == 0
    assert not declines(fused, Reason.VERIFICATION)


def test_the_keys_take_it_where_the_queries_cannot() -> None:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        q = s.q(x)
        return (q @ s.k(x).transpose(1, 2) * 0.3).softmax(-1), torch.relu(q)

    assert muls(folded(run, **PARTS)) == 0


# --- what stays -----------------------------------------------------------------------------------


def refused(run: Callable[[Net, Tensor], Any], reason: Reason, place: str, fact: str, count: int = 1) -> None:
    fused = folded(run, **PARTS)
    assert_declined(fused, reason, place, fact, "fold_product_scales")
    assert muls(fused) == count


def test_channels_that_are_read_elsewhere() -> None:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = s.a(x).chunk(3, -1)
        return (q @ k.transpose(1, 2) * 0.3).softmax(-1) @ v, (q + k).relu()

    refused(run, Reason.OUTSIDE_USE, "mul", "those channels are also read by add")


def test_a_projection_that_is_returned() -> None:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = s.a(x)
        q, k, _ = y.chunk(3, -1)
        return (q @ k.transpose(1, 2) * 0.3).softmax(-1), y

    refused(run, Reason.OUTSIDE_USE, "mul", "cannot go into a: those channels are also read by the output")


def test_scores_that_are_read_before_they_are_scaled() -> None:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = s.q(x) @ s.k(x).transpose(1, 2)
        return (scores * 0.3).softmax(-1), scores

    refused(run, Reason.OUTSIDE_USE, "mul", "its scores are read before they are scaled")


def test_one_projection_in_both_factors() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q = s.q(x)
        return (q @ q.transpose(1, 2) * 0.3).softmax(-1)

    refused(run, Reason.NOT_EXACT, "mul", "scales the product of a value with itself")


def test_overlapping_channels_in_both_factors() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        return (y[:, :, :5] @ y[:, :, 4:9].transpose(1, 2) * 0.3).softmax(-1)

    refused(run, Reason.OUTSIDE_USE, "mul", "those channels are also read by matmul")


def test_a_view_that_hides_the_channels() -> None:
    """Behind a reshape that merges tokens into the channels any part may hold any channel."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = s.a(x).transpose(1, 2).reshape(x.shape[0], -1, 18)
        q, k = y.split([6, 12], -1)
        return (q.transpose(1, 2) @ k * 0.3).softmax(-1)

    refused(run, Reason.OUTSIDE_USE, "mul", "those channels are also read by matmul")


def test_some_of_the_parts_of_a_chunk() -> None:
    """A slice of parts is no axis of theirs; what the parts hold is not followed through it."""

    def run(s: Net, x: Tensor) -> Tensor:
        some = s.a(x).chunk(3, -1)[:2]
        return (some[0][:, :, :2] @ some[1][:, :, :2].transpose(1, 2) * 0.3).softmax(-1)

    refused(run, Reason.OUTSIDE_USE, "mul", "those channels are also read by matmul")


def test_parts_of_a_tensor_split() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, _ = s.a(x).tensor_split(3, -1)
        return (q @ k.transpose(1, 2) * 0.3).softmax(-1)

    assert muls(folded(run, **PARTS)) == 0


def test_a_factor_per_key_or_between_others_stays() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return (torch.relu(s.q(x)) @ torch.relu(s.k(x)).transpose(1, 2) * 0.3).softmax(-1)

    fused = folded(run, **PARTS)
    assert muls(fused) == 1
    assert not declines(fused)
