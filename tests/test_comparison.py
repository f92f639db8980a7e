"""What `verify` and the comparison of the whole say of numbers that are none, and of outputs that hold no tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import repfx
from repfx.verification import whole
from tests import hostile
from tests.compiling import Net, conv

INFINITY, NAN = float("inf"), float("nan")


def net(run: Callable[[Net, Tensor], Any], seed: int = 0) -> Net:
    parts = Net(run, a=conv(3, 4), n=nn.BatchNorm2d(4))
    return hostile.prepared(parts, seed)  # type: ignore[return-value]


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)


def scores(s: Net, x: Tensor) -> Tensor:
    return s.n(s.a(x))


# --- infinities and NaN ---------------------------------------------------------------------------


def masked(s: Net, x: Tensor) -> Tensor:
    """Class scores of which one is masked."""
    y = scores(s, x)
    return y.index_fill(1, torch.tensor([1]), -INFINITY)


def masked_whole(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """One output of two is infinite everywhere."""
    y = scores(s, x)
    return torch.full_like(y, -INFINITY), y


def with_nan(s: Net, x: Tensor) -> Tensor:
    y = scores(s, x)
    return torch.cat([y, torch.full_like(y, NAN)], 1)


def signed(s: Net, x: Tensor) -> Tensor:
    y = scores(s, x)
    return torch.cat([y, y.sign() * INFINITY], 1)


@pytest.mark.parametrize("run", [masked, masked_whole, with_nan])
def test_networks_of_two_seeds_differ(run: Callable[[Net, Tensor], Any]) -> None:
    for dtype in (torch.float64, None):
        found = repfx.verify(net(run, 1), net(run, 2), (image(),), dtype=dtype)
        assert not found.equal
        assert found.relative_error > 0.1


@pytest.mark.parametrize("run", [masked, masked_whole, with_nan, signed])
def test_what_is_not_finite_in_both_is_equal_in_place(run: Callable[[Net, Tensor], Any]) -> None:
    model = net(run)
    report = repfx.report(repfx.reparameterize(model, (image(),)))
    assert report.equivalence is not None
    assert report.equivalence.equal
    assert report.after.batch_norms == 0
    assert repfx.verify(model, copy.deepcopy(model), (image(),)).relative_error == 0.0


@dataclass(frozen=True)
class Odd:
    """What the original and the other one return in the first place."""

    original: float
    other: float
    equal: bool = False


ODD = {
    "NaN where the original has none": Odd(1.0, NAN),
    "none where the original has NaN": Odd(NAN, 1.0),
    "NaN in both": Odd(NAN, NAN, equal=True),
    "infinite where the original is not": Odd(1.0, INFINITY),
    "finite where the original is not": Odd(-INFINITY, 1.0),
    "another sign": Odd(INFINITY, -INFINITY),
    "the same infinity": Odd(-INFINITY, -INFINITY, equal=True),
    "NaN for an infinity": Odd(INFINITY, NAN),
}


class Put(nn.Module):
    """One number in one place."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[0, 0, 0, 0] = self.value
        return y


@pytest.mark.parametrize("dtype", [torch.float64, None])
@pytest.mark.parametrize("name", ODD)
def test_one_odd_number(name: str, dtype: torch.dtype | None) -> None:
    odd = ODD[name]
    found = repfx.verify(Put(odd.original), Put(odd.other), (image(torch.float32),), dtype=dtype)
    assert found.equal is odd.equal
    if not odd.equal:
        assert found.relative_error == INFINITY
        assert "at (0, 0, 0, 0)" in found.worst


def negative_variance(model: Net) -> None:
    model.n.running_var.fill_(-1.0)


def infinite_bias(model: Net) -> None:
    model.a.bias.data.fill_(INFINITY)


def nan_weight(model: Net) -> None:
    model.a.weight.data.fill_(NAN)


@pytest.mark.parametrize("spoil", [negative_variance, infinite_bias, nan_weight])
def test_a_network_that_is_not_finite_is_refused(spoil: Callable[[Net], None]) -> None:
    model = net(scores)
    spoil(model)
    with pytest.raises(repfx.UserError, match=r"(no finite number|NaN)"):
        repfx.reparameterize(model)
    with pytest.raises(repfx.UserError, match=r"(no finite number|NaN)"):
        repfx.reparameterize(model, (image(),))
    with pytest.raises(repfx.UserError, match="no finite number"):
        repfx.verify(model, copy.deepcopy(model), (image(),))


def test_a_weight_that_overflows_is_refused_with_its_channel() -> None:
    model = net(scores).float()
    with torch.no_grad():
        model.a.weight.fill_(1e30)
        model.n.weight.fill_(1e20)
    with pytest.raises(repfx.UserError, match="channel 0"):
        repfx.reparameterize(model, verify=False)


# --- outputs that hold no tensor ------------------------------------------------------------------


def nothing(s: Net, x: Tensor) -> None:
    scores(s, x)


def a_number(s: Net, x: Tensor) -> int:
    return int(scores(s, x).shape[1])


def a_text(s: Net, x: Tensor) -> str:
    scores(s, x)
    return "done"


def a_list_without_any(s: Net, x: Tensor) -> list[Any]:
    scores(s, x)
    return [None, 3]


NONE = [nothing, a_number, a_text, a_list_without_any]


@pytest.mark.parametrize("run", NONE)
def test_what_holds_no_tensor_was_not_compared(run: Callable[[Net, Tensor], Any]) -> None:
    report = repfx.report(repfx.reparameterize(net(run), (image(),)))
    assert report.equivalence is None
    assert "its outputs hold no tensor" in str(report)
    assert "its outputs hold no tensor" in report.to_markdown()


def test_what_derives_no_input_was_not_compared() -> None:
    model = hostile.prepared(Net(lambda s, x: s.n(s.a(x["image"])), a=conv(3, 4), n=nn.BatchNorm2d(4)), 0)
    report = repfx.report(repfx.reparameterize(model))
    assert report.equivalence is None
    lines = [line for line in str(report).splitlines() if "not compared" in line]
    assert len(lines) == 1
    assert "pass example_inputs to have it compared" in lines[0]
    assert repfx.report(repfx.reparameterize(model, ({"image": image()},))).equivalence is not None


class Pair(NamedTuple):
    boxes: Tensor
    count: int  # type: ignore[assignment]


def generated(s: Net, x: Tensor) -> Iterator[Tensor]:
    yield scores(s, x)
    yield scores(s, x * 2.0)


def mixed(s: Net, x: Tensor) -> dict[str, Any]:
    y = scores(s, x)
    return {"pair": Pair(y, 3), "none": None, "deep": [{"y": y * 2.0}]}


@pytest.mark.parametrize("run", [generated, mixed])
def test_tensors_are_found_wherever_they_are(run: Callable[[Net, Tensor], Any]) -> None:
    model = net(run)
    found = repfx.report(repfx.reparameterize(model, (image(),))).equivalence
    assert found is not None
    assert found.tensors > 0
    assert not repfx.verify(net(run, 1), net(run, 2), (image(),)).equal


@pytest.mark.parametrize(
    "other",
    [
        lambda s, x: (scores(s, x), 4),
        lambda s, x: (scores(s, x), 3.0),
        lambda s, x: (scores(s, x), True),
        lambda s, x: (scores(s, x).float(), 3),
    ],
)
def test_numbers_and_dtypes_beside_tensors_are_compared(other: Callable[[Net, Tensor], Any]) -> None:
    model = net(lambda s, x: (scores(s, x), 3))
    assert repfx.verify(model, net(lambda s, x: (scores(s, x), 3)), (image(),)).equal
    assert not repfx.verify(model, net(other), (image(),), dtype=None).equal


@pytest.mark.parametrize(
    "other",
    [
        lambda s, x: scores(s, x),
        lambda s, x: {"a": scores(s, x)},
        lambda s, x: (scores(s, x), scores(s, x)),
        lambda s, x: (scores(s, x)[:, :3],),
    ],
)
def test_another_structure_is_said(other: Callable[[Net, Tensor], Any]) -> None:
    with pytest.raises(repfx.UserError, match=r"(the outputs are|has shape)"):
        repfx.verify(net(lambda s, x: (scores(s, x),)), net(other), (image(),))


# --- constants and casts --------------------------------------------------------------------------


SOBEL = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]


def sobel(s: Net, x: Tensor) -> Tensor:
    kernel = torch.tensor(SOBEL).expand(3, 1, 3, 3)
    return scores(s, torch.conv2d(x, kernel.to(x.device), padding=1, groups=3))


def ones(s: Net, x: Tensor) -> Tensor:
    return scores(s, x) + torch.ones(4, 1, 1)


def eye(s: Net, x: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", torch.eye(4), scores(s, x))


def cast(s: Net, x: Tensor) -> Tensor:
    return scores(s, x.float()).float()


def grid(s: Net, x: Tensor) -> Tensor:
    theta = torch.eye(2, 3).repeat(x.shape[0], 1, 1)
    where = nn.functional.affine_grid(theta, x.size(), align_corners=False)  # type: ignore[arg-type]
    return scores(s, nn.functional.grid_sample(x, where, align_corners=False))


def mapped(s: Net, x: Tensor) -> Tensor:
    y = scores(s, x)
    return y * torch.linspace(0, 1, y.shape[-1]) + torch.arange(4, dtype=torch.float32).view(-1, 1, 1)


@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
@pytest.mark.parametrize("run", [sobel, ones, eye, cast, grid, mapped])
def test_float32_made_in_a_forward_is_no_obstacle(run: Callable[[Net, Tensor], Any], example: bool) -> None:
    model = net(run).float()
    x = image(torch.float32)
    fused = repfx.reparameterize(model, (x,) if example else None)
    report = repfx.report(fused)
    assert report.equivalence is not None
    assert report.equivalence.dtype == "float64"
    assert report.after.batch_norms == 0
    found = repfx.verify(model, fused, (x,))
    assert found.equal
    assert found.dtype == "float64"
    assert found.tolerance < 1e-5


def coarse(s: Net, x: Tensor) -> Tensor:
    """Rounded to half precision on purpose: that is part of the function, in float64 too."""
    table = torch.linspace(-1.0, 1.0, 4).view(1, 4, 1, 1) / 3.0
    return scores(s, x) * table.half().to(x) + s.a.weight.sum().bfloat16().to(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rounding_that_the_code_asks_for_is_no_difference(dtype: torch.dtype) -> None:
    model = net(coarse).to(dtype)
    fused = repfx.reparameterize(model, (image(dtype),))
    found = repfx.report(fused).equivalence
    assert found is not None
    assert found.equal
    assert hostile.relative_error(model(image(dtype)).detach(), fused(image(dtype)).detach()) <= found.tolerance
    broken = copy.deepcopy(fused)
    next(broken.parameters()).data.mul_(1.01)
    assert not repfx.verify(model, broken, (image(dtype),)).equal


# --- inputs that are derived ----------------------------------------------------------------------


def logarithm(s: Net, x: Tensor) -> Tensor:
    return scores(s, x.log())


def never_finite(s: Net, x: Tensor) -> Tensor:
    return scores(s, x).abs().neg().sqrt()


def standardised(s: Net, x: Tensor) -> Tensor:
    """0 / 0 where the input is constant."""
    y = scores(s, x)
    return (y - y.mean((2, 3), keepdim=True)) / y.std((2, 3), keepdim=True)


def test_a_network_of_logarithms_is_given_positive_numbers() -> None:
    report = repfx.report(repfx.reparameterize(net(logarithm)))
    assert report.equivalence is not None
    assert report.equivalence.equal
    assert report.after.batch_norms == 0


def test_where_no_derived_input_helps_nothing_was_compared() -> None:
    report = repfx.report(repfx.reparameterize(net(never_finite)))
    assert report.equivalence is None
    assert "no finite number for the inputs that were derived" in report.not_compared


@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
def test_a_probe_of_ours_for_which_the_original_is_undefined_says_nothing(example: bool) -> None:
    model = net(standardised)
    fused = repfx.reparameterize(model, (image(),) if example else None)
    found = repfx.report(fused).equivalence
    assert found is not None
    assert found.equal
    broken = copy.deepcopy(fused)
    next(broken.parameters()).data[0, 0, 0, 0].mul_(1.01)
    assert not repfx.verify(model, broken, (image(),)).equal


def test_a_search_for_inputs_ends_where_one_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def slow(s: Net, x: Tensor) -> Tensor:
        tried.append(x.shape[-1])
        raise RuntimeError("takes a second, and fails")

    clock = iter(range(1000))
    monkeypatch.setattr(whole.time, "monotonic", lambda: float(next(clock)))  # type: ignore[attr-defined]
    report = repfx.report(repfx.reparameterize(net(slow)))
    assert "it runs on none of the 1 inputs" in report.not_compared
