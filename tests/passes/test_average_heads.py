"""average_heads alone: the average of linear heads over one vector is one Linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from passes.average_heads import AverageHeads
from repfx.decline import Reason
from tests.compiling import Net, assert_declined, compiled, counted, left, only

ALONE = only(AverageHeads())
VECTOR: dict[str, Any] = {"sizes": ((),), "example": ()}


def heads(run: Any, second: int = 4) -> Net:
    return Net(
        run, a=nn.Linear(4, 3), b=nn.Linear(second, 3), n=nn.BatchNorm1d(4), m=nn.BatchNorm1d(4), c=nn.Linear(4, 3)
    )


SPELLINGS = {
    "halved": lambda s, x: (s.a(s.n(x)) + s.b(s.m(x))) / 2,
    "times a half": lambda s, x: 0.5 * (s.a(s.n(x)) + s.b(s.m(x))),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_averaged(name: str) -> None:
    _, fused = compiled(heads(SPELLINGS[name]), 4, **VECTOR, **ALONE)
    assert counted(left(fused, 4, ())) == {"linears": 1}


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: 0.5 * s.a(s.n(x)) + 0.5 * s.b(s.m(x)),
        lambda s, x: torch.stack([s.a(s.n(x)), s.b(s.m(x))]).mean(0),
        lambda s, x: (s.a(s.n(x)) + s.b(s.m(x)) + s.c(x)) / 3,
    ],
)
def test_every_spelling_with_all_passes(run: Any) -> None:
    _, fused = compiled(heads(run), 4, **VECTOR)
    assert counted(left(fused, 4, ())) == {"linears": 1}


def test_declined_where_a_head_is_returned_by_itself() -> None:
    model = heads(lambda s, x: ((y := s.a(s.n(x))), (y + s.b(s.m(x))) / 2))
    _, fused = compiled(model, 4, **VECTOR, **ALONE)
    assert_declined(fused, Reason.OUTSIDE_USE, "a", "by the output", "average_heads")
    assert left(fused, 4, ()).linears == 2


def test_heads_of_different_vectors_stay_two() -> None:
    model = heads(lambda s, x: (s.a(torch.relu(x)) + s.b(torch.tanh(x))) / 2)
    _, fused = compiled(model, 4, **VECTOR, **ALONE)
    assert left(fused, 4, ()).linears == 2
    assert_declined(fused, Reason.COST, "truediv", "would not make the network smaller or shorter", "average_heads")
