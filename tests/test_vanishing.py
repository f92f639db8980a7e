"""Border terms that are zero whatever the weights are go; others stay; and planning composes weights for neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
import repnext  # noqa: F401  registers the family with timm
from repfx.algebra import AffineConv
from tests import hostile
from tests.blocks import REGISTRY
from tests.compiling import Net, compiled, conv, left


def framed(x: Tensor, p: Tensor) -> Tensor:
    y = F.pad(x, (1, 1, 1, 1))
    for edge in (slice(0, 1), slice(-1, None)):
        y[:, :, edge, :] = p
        y[:, :, :, edge] = p
    return y


Run = Callable[[Any, Tensor], Tensor]
CASES: dict[str, tuple[Run, int]] = {  # and how many border terms are left
    "the number that was added": (lambda s, x: s.a(F.pad(x + 3.0, (1, 1, 1, 1), value=3.0)), 0),
    "another number": (lambda s, x: s.a(F.pad(x + 3.0, (1, 1, 1, 1), value=2.0)), 1),
    "the number, scaled": (lambda s, x: s.a(F.pad((x + 1.5) * 2, (1, 1, 1, 1), value=3.0)), 0),
    "the parameter that was added": (lambda s, x: s.a(framed(x + s.p, s.p)), 0),
    "another parameter": (lambda s, x: s.a(framed(x + s.p, s.q)), 1),
    "zeros around a norm": (lambda s, x: s.a(F.pad(s.n(x), (1, 1, 1, 1))), 1),
    "a parameter that comes and goes": (lambda s, x: s.a(F.pad(x + s.p - s.p, (1, 1, 1, 1))), 0),
    "two branches that cancel": (lambda s, x: s.b(s.n(x) - s.n(x)) + s.b(x), 0),
    "one norm in two branches": (lambda s, x: s.b(s.n(x)) + s.c(s.n(x)), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_term_stays_where_it_is_one(name: str) -> None:
    run, borders = CASES[name]
    p, q = (nn.Parameter(torch.randn(4, 1, 1)) for _ in range(2))
    model = Net(run, a=conv(4, 4, 3, 0), b=conv(4, 4), c=conv(4, 4, 1), n=nn.BatchNorm2d(4), p=p, q=q)
    _, fused = compiled(model, 4, example=(8, 8))
    after = left(fused, 4)
    assert (after.convolutions, after.border_terms) == (1, borders)
    assert after.adds == after.others == 0


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[AffineConv]:
    """The maps that are evaluated."""
    found: list[AffineConv] = []
    values = AffineConv.values

    def noted(map_: AffineConv) -> Any:
        found.append(map_)
        return values(map_)

    monkeypatch.setattr(AffineConv, "values", noted)
    return found


@pytest.mark.parametrize("name", ["repnext_m0", "repvgg_a0"])
def test_planning_composes_no_weights(name: str, composed: list[AffineConv]) -> None:
    plan = repfx.explain(timm.create_model(name).eval())
    assert len(plan.merges) > 20
    assert not composed


def test_planning_composes_where_a_number_is_met_again(composed: list[AffineConv]) -> None:
    assert not repfx.explain(hostile.prepared(REGISTRY["dbb"].factory(), seed=7)).after.border_terms
    assert composed
