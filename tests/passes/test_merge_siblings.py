"""merge_siblings alone: convolutions and linears that read one value are one, and slices of its result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repfx
from passes.merge_siblings import MergeSiblings
from repfx.decline import Reason
from repfx.layers import ChannelSlice
from tests import hostile
from tests.compiling import Net, assert_declined, compiled, conv, counted, declines, left, only

ALONE = only(MergeSiblings())


def gate(s: Net, x: Tensor) -> Tensor:
    return torch.relu(s.a(x)) * s.b(x)


def test_siblings_are_stacked_and_sliced() -> None:
    _, fused = compiled(Net(gate, a=conv(4, 6, 1), b=conv(4, 6, 1)), 4, **ALONE)
    assert counted(left(fused, 4)) == {"convolutions": 1, "muls": 1, "others": 1}
    slices = [m for m in fused.modules() if isinstance(m, ChannelSlice)]
    assert sorted((m.start, m.stop) for m in slices) == [(0, 6), (6, 12)]


def test_unequal_widths_and_biases() -> None:
    def run(s: Net, x: Tensor) -> tuple[Tensor, ...]:
        return torch.relu(s.a(x)), torch.tanh(s.b(x)), s.c(x).sigmoid()

    model = Net(run, a=conv(4, 2, 3), b=conv(4, 5, 3, bias=False), c=conv(4, 1, 3))
    _, fused = compiled(model, 4, **ALONE)
    assert left(fused, 4).convolutions == 1


def test_query_key_value() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        weights = (s.q(x) @ s.k(x).transpose(-2, -1)).softmax(-1)
        return weights @ s.v(x)

    model = Net(run, q=nn.Linear(4, 3), k=nn.Linear(4, 3, bias=False), v=nn.Linear(4, 6))
    original = hostile.prepared(model, 0)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,), verify=False, **ALONE)
    hostile.assert_same(original, fused, x)
    assert sum(isinstance(m, nn.Linear) for m in fused.modules()) == 1


def projections(s: Net, x: Tensor) -> tuple[Tensor, ...]:
    return torch.relu(s.q(x)), torch.tanh(s.k(x)), s.v(x).sigmoid()


@pytest.mark.parametrize("objective", ["single-branch", "macs"])
@pytest.mark.parametrize("biased", [True, False])
def test_projections_of_other_widths(objective: str, biased: bool) -> None:
    """With an unbiased one among them, "macs" stacks the two biased ones: zeros for its bias would be parameters."""
    model = Net(projections, q=nn.Linear(4, 3), k=nn.Linear(4, 3, bias=biased), v=nn.Linear(4, 6))
    original = hostile.prepared(model, 0)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    fused = repfx.reparameterize(original, (x,), verify=False, objective=objective, **ALONE)
    hostile.assert_same(original, fused, x)
    apart = objective == "macs" and not biased
    assert sum(isinstance(m, nn.Linear) for m in fused.modules()) == (2 if apart else 1)
    if apart:
        assert_declined(fused, Reason.COST, "k", "would grow from 57 to 60 parameters", "merge_siblings")


@pytest.mark.parametrize("objective", ["single-branch", "macs"])
def test_pointwise_branches_of_an_inception_block(objective: str) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        first, second = torch.relu(s.a(x)), torch.relu(s.c(torch.relu(s.b(x))))
        return torch.cat([first, second, torch.relu(s.d(x))], 1)

    model = Net(run, a=conv(4, 3, 1), b=conv(4, 2, 1), c=conv(2, 5, 3), d=conv(4, 3, 3))
    _, fused = compiled(model, 4, objective=objective, **ALONE)
    assert left(fused, 4).convolutions == 3
    fact = "is 3x3 of stride 1x1, padded by 1x1, its sibling 1x1 of stride 1x1, padded by 0x0"
    assert_declined(fused, Reason.COST, "d", fact, "merge_siblings")


def test_other_windows_strides_and_groups_stay() -> None:
    near = {
        "kernel": (conv(4, 6, 1), conv(4, 6, 3)),
        "padding": (conv(4, 6, 3, 1), conv(4, 6, 3, 2)),
        "dilation": (conv(4, 6, 3, 2), conv(4, 6, 3, 3, dilation=2)),
        "mode": (conv(4, 6, 3), conv(4, 6, 3, padding_mode="circular")),
        "depthwise": (conv(4, 4, 3, groups=4), conv(4, 4, 3, groups=4)),
    }
    for name, (a, b) in near.items():
        model = Net(lambda s, x: (torch.relu(s.a(x)), torch.tanh(s.b(x))), a=a, b=b)
        _, fused = compiled(model, 4, ((8, 8), (5, 9)), **ALONE)
        assert left(fused, 4).convolutions == 2, name
        if name == "depthwise":
            assert not declines(fused), "what mixes no channels is no sibling"
        else:
            assert_declined(fused, Reason.COST, "b", "one convolution has one window", "merge_siblings")


def test_siblings_of_different_values_stay() -> None:
    model = Net(lambda s, x: s.a(torch.relu(x)) * s.b(torch.tanh(x)), a=conv(4, 6, 1), b=conv(4, 6, 1))
    _, fused = compiled(model, 4, **ALONE)
    assert left(fused, 4).convolutions == 2
    model = Net(lambda s, x: s.a(y := torch.relu(x)) * s.b(y), a=conv(4, 6, 1), b=conv(4, 6, 1))  # one step away
    _, fused = compiled(model, 4, **ALONE)
    assert left(fused, 4).convolutions == 1


def test_a_sibling_that_is_excluded_stays() -> None:
    _, fused = compiled(Net(gate, a=conv(4, 6, 1), b=conv(4, 6, 1)), 4, exclude=("b",), **ALONE)
    assert left(fused, 4).convolutions == 2
    _, fused = compiled(Net(gate, a=conv(4, 6, 1), b=conv(4, 6, 1)), 4, **ALONE)  # one step away
    assert left(fused, 4).convolutions == 1
