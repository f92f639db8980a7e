"""What is shared before is shared after: trunks called twice, tied weights, loops; under both objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import repfx
from tests import hostile
from tests.compiling import Net, conv

Run = Callable[[Net, Tensor], Any]


def parts(**more: nn.Module) -> dict[str, nn.Module]:
    """A convolution with the norm behind it, and another norm."""
    return {"a": conv(3, 4), "n": nn.BatchNorm2d(4), "m": nn.BatchNorm2d(4), **more}


def trunk(s: Net, x: Tensor) -> Tensor:
    return s.n(s.a(x)).relu()


def siamese(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return trunk(s, x), trunk(s, x.flip(-1))


def correlated(s: Net, x: Tensor) -> Tensor:
    return trunk(s, x) * trunk(s, x[..., :-1, :-1]).mean((2, 3), keepdim=True)


def in_a_loop(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    for _ in range(3):
        y = s.n(s.b(y)).relu()
    return y


def over_levels(s: Net, x: Tensor) -> list[Tensor]:
    """A detection head on a pyramid: one head, three sizes."""
    levels = [x, nn.functional.max_pool2d(x, 2), nn.functional.max_pool2d(x, 4)]
    return [s.b(trunk(s, level)) for level in levels]


def own_norms(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """One convolution, a norm of its own for each caller (domain-specific batch norms)."""
    return s.n(s.a(x)), s.m(s.a(x.flip(-1)))


def with_and_without(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return s.n(s.a(x)), s.a(x.flip(-1))


def functional(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """One weight, read by two calls of a function."""
    w = s.a.weight
    return torch.conv2d(x, w, padding=1), torch.conv2d(x.flip(-1), w * 2.0, padding=1)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shared:
    """A forward, its parts, and how many convolution weights the two objectives may hold."""

    run: Run
    build: Callable[[], dict[str, nn.Module]] = parts
    single: int = 1
    macs: int = 1
    norms_left: tuple[int, int] = (0, 0)  # under single-branch, under macs


CASES = {
    "a trunk called twice": Shared(siamese),
    "on a crop": Shared(correlated),
    "in a loop": Shared(in_a_loop, lambda: parts(b=conv(4, 4)), single=2, macs=2),
    "a head over levels": Shared(over_levels, lambda: parts(b=conv(4, 4)), single=2, macs=2),
    "norms of its callers": Shared(own_norms, single=2, macs=1, norms_left=(0, 2)),
    "one caller without a norm": Shared(with_and_without, single=2, macs=1, norms_left=(0, 1)),
    "a reparametrized weight": Shared(siamese, lambda: parts() | {"a": weight_norm(conv(3, 4))}),
    "read by a function": Shared(functional, single=2, macs=1, norms_left=(0, 0)),
}


def weights(model: nn.Module) -> int:
    """How many different convolution weights a model holds."""
    return len({id(p) for p in model.parameters() if p.dim() == 4})


@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
@pytest.mark.parametrize("objective", ["single-branch", "macs"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_shared_stays_shared(name: str, objective: str, example: bool) -> None:
    case = CASES[name]
    model = hostile.prepared(Net(case.run, **case.build()), 0)
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = repfx.reparameterize(model, (x,) if example else None, objective=objective)
    hostile.assert_same(model, fused, x)
    left, norms = (case.single, case.norms_left[0]) if objective == "single-branch" else (case.macs, case.norms_left[1])
    assert weights(fused) <= left
    report = repfx.report(fused)
    assert report.after.batch_norms == norms, list(map(str, report.declines))
    if objective == "macs":
        assert report.after.parameters <= report.before.parameters
    plan = repfx.explain(model, (x,) if example else None, objective=objective)
    assert plan.after == replace(report.after, macs=None, others=0)  # which are counted by running it


@pytest.mark.parametrize("objective", ["single-branch", "macs"])
def test_a_tie_between_two_modules(objective: str) -> None:
    model = Net(lambda s, x: (s.n(s.a(x)).relu(), s.m(s.b(x.flip(-1))).relu()), **parts(b=conv(3, 4, bias=False)))
    model.b.weight = model.a.weight
    hostile.prepared(model, 0)
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = repfx.reparameterize(model, objective=objective)
    hostile.assert_same(model, fused, x)
    report = repfx.report(fused)
    if objective == "macs":
        assert report.after.parameters <= report.before.parameters
        assert weights(fused) == 1
    else:
        assert report.after.batch_norms == 0


def test_a_shared_weight_still_learns_from_all_its_callers() -> None:
    model = hostile.prepared(Net(siamese, **parts()), 0)
    fused = repfx.reparameterize(model)
    convolution = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = fused(x)
    (one.sum() + other.sum()).backward()
    both = convolution.weight.grad
    convolution.weight.grad = None
    fused(x)[0].sum().backward()
    assert both is not None
    assert convolution.weight.grad is not None
    assert not torch.allclose(both, convolution.weight.grad)


def test_equal_numbers_are_no_sharing() -> None:
    """Two norms that agree by chance stay two functions of two weights."""
    model = hostile.prepared(Net(own_norms, **parts()), 0)
    model.m.load_state_dict(model.n.state_dict())
    fused = repfx.reparameterize(model)
    assert weights(fused) == 2
