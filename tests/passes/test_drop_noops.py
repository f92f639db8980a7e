"""drop_noops alone: values that are other values disappear; an operation that changes a value stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import repfx
from passes.drop_noops import DropNoops
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only


def test_noops_disappear() -> None:
    def run(s: Net, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(s.d(s.i(x)), training=False).contiguous()
        return s.a(F.pad(x, (0, 0, 0, 0))[:, :])

    _, fused = compiled(Net(run, a=conv(4, 4), i=nn.Identity(), d=nn.Dropout()), 4, **only(DropNoops()))
    assert [n.op for n in fused.graph.nodes] == ["placeholder", "call_module", "output"]


def test_a_whole_slice_and_a_whole_permutation_are_no_copies() -> None:
    model = Net(lambda s, x: s.a(torch.index_select(x[:, 0:4], 1, s.i)), a=conv(4, 4), i=torch.arange(4))
    _, fused = compiled(model, 4, example=(8, 8), **only(DropNoops()))
    assert [n.op for n in fused.graph.nodes] == ["placeholder", "call_module", "output"]


def test_near_misses_stay() -> None:
    model = Net(lambda s, x: s.a(F.pad(x, (0, 1))[:, 0:3]), a=conv(3, 4))
    _, fused = compiled(model, 4, example=(8, 8), **only(DropNoops()))
    names = [n.name for n in fused.graph.nodes if n.op.startswith("call")]
    assert names == ["pad", "getitem", "a"]


def test_a_dropout_in_training_mode_stays() -> None:
    model = Net(lambda s, x: s.a(s.d(x)), a=conv(4, 4), d=nn.Dropout()).eval()
    model.d.train()
    fused = repfx.reparameterize(model, passes=(DropNoops(),))
    assert_declined(fused, Reason.NOT_EXACT, "d", "is a dropout in training mode inside an eval model")


@pytest.mark.parametrize("same", ["dtype", "device", "itself", "keyword", "type_as"])
def test_a_cast_to_what_a_value_is_disappears(same: str) -> None:
    cast = {
        "dtype": lambda x: x.to(x.dtype),
        "device": lambda x: x.to(x.device),
        "itself": lambda x: x.to(x),
        "keyword": lambda x: x.to(dtype=x.dtype),
        "type_as": lambda x: x.type_as(x),
    }[same]
    _, fused = compiled(Net(lambda s, x: s.b(cast(s.a(x))), a=conv(4, 4, 1), b=conv(4, 4, 1)), 4)
    assert counted(left(fused, 4)) == {"convolutions": 1}


def test_a_cast_to_what_another_value_is_stays() -> None:
    run = Net(lambda s, x: s.b(s.a(x).to(s.g.dtype)), a=conv(4, 4, 1), b=conv(4, 4, 1), g=torch.ones(1))
    _, fused = compiled(run, 4)
    assert counted(left(fused, 4))["convolutions"] == 2
    _, fused = compiled(
        Net(lambda s, x: s.b(s.a(x).contiguous()), a=conv(4, 4, 1), b=conv(4, 4, 1)), 4
    )  # one step away
    assert counted(left(fused, 4)) == {"convolutions": 1}
