"""Networks as people write them go through, whole or in parts, with the same outputs (`tests/ugly.py`)."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfx
from repfx.verification import count_operations
from repfx.verification.calls import leaves
from tests import hostile
from tests.compiling import Net, conv
from tests.ugly import UGLY, ConvNorm, Exits

BN = nn.BatchNorm2d
LEFT = {  # (without, with an example): batch norms that stay
    "yolo": (0, 0), "unet": (0, 0), "detector": (0, 0), "exits": (1, 1), "exits by data": (3, 3), "functional": (0, 0),
    "checkpointed": (0, 0), "reentrant": (0, 0), "tuples": (0, 0), "windows": (0, 0), "decorated": (2, 2),
}  # fmt: skip
WHOLE_ONLY_WITH_AN_EXAMPLE = ("unet", "windows")
NEVER_WHOLE = ("exits by data", "decorated")


def image(height: int = 16, width: int = 16, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def outputs(value: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def agree(model: nn.Module, fused: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        wanted, got = model(x), fused(x)
    assert type(wanted) is type(got)
    assert len(outputs(wanted)) == len(outputs(got))
    for a, b in zip(outputs(wanted), outputs(got), strict=True):
        assert hostile.relative_error(a, b) <= hostile.TOLERANCE


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("shaped", [False, True], ids=["alone", "example"])
@pytest.mark.parametrize("name", UGLY)
def test_goes_through(name: str, shaped: bool) -> None:
    torch.manual_seed(0)
    model = hostile.prepared(UGLY[name](), 0)
    agree(model, copy.deepcopy(model), image())
    with torch.no_grad():
        model(image())  # what is built lazily is there
    before = hostile.snapshot(model)
    fused = repfx.reparameterize(model, (image(),) if shaped else None)
    hostile.assert_untouched(model, before)
    agree(model, fused, image())
    assert count_operations(fused, (image(),)).batch_norms <= LEFT[name][shaped]
    never = name in NEVER_WHOLE or (name in WHOLE_ONLY_WITH_AN_EXAMPLE and not shaped)
    assert isinstance(fused, torch.fx.GraphModule) is not never
    if not shaped:
        agree(model, fused, image(24, 40, batch=2))
    agree(model, repfx.reparameterize(fused), image())
    keys = repfx.key_map(fused)
    assert list(keys) == list(fused.state_dict())
    for key in {k for names in keys.values() for k in names if not k.startswith("unregistered")}:
        assert isinstance(operator.attrgetter(key)(model), Tensor)


def test_untraceable_parts_are_named_with_their_line() -> None:
    report = repfx.report(repfx.reparameterize(hostile.prepared(Exits(2.0), 0)))
    (island,) = report.islands
    assert island.path == ""
    assert "at Exits.forward, line " in island.cause
    assert "branches on a value that is known at run time only" in island.cause
    assert "the model" in str(report)
    assert {m.path.partition(".")[0] for m in report.merges} == {"stem", "layers"}


# --- what of a class its islands' parts allow ------------------------------------------------------


class Reaching(nn.Module):
    """Does not trace, and reads a weight of a grandchild."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvNorm(3 if i == 0 else 4, 4, 3) for i in range(2))
        self.tail = nn.ModuleList([nn.Sequential(conv(4, 4), BN(4)), nn.Sequential(conv(4, 4), BN(4))])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) * block.conv.weight.abs().max()
        for i, layer in enumerate(self.tail):
            x = layer(x) if i else x + layer(x)
        return x if float(x.sum()) > 0 else -x


def test_a_child_whose_attributes_are_read_stays_and_its_neighbours_do_not() -> None:
    model = hostile.prepared(Reaching(), 0)
    fused = repfx.reparameterize(model)
    agree(model, fused, image())
    assert {type(b) for b in fused.blocks} == {ConvNorm}
    assert count_operations(fused, (image(),)).batch_norms == 2


def test_excluded_parts_of_islands_stay() -> None:
    model = hostile.prepared(Exits(2.0), 0)
    fused = repfx.reparameterize(model, exclude=("layers.1.bn", "stem"))
    agree(model, fused, image())
    assert isinstance(fused.get_submodule("layers.1.bn"), BN)
    assert type(fused.get_submodule("stem")) is ConvNorm
    assert not any(isinstance(m, BN) for m in fused.get_submodule("layers.0").modules())


class Counting(nn.Module):
    """Another way on every other call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.calls = conv(4, 4), BN(4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.conv(x)) if self.calls % 2 else x


@pytest.mark.parametrize("inner", [False, True])
def test_a_forward_that_counts_its_calls_stays(inner: bool) -> None:
    part = Counting()
    model = Net(lambda s, x: s.n(s.a(s.p(x))), p=part, a=conv(4, 4), n=BN(4)) if inner else part
    model = hostile.prepared(model, 0)
    fused = repfx.reparameterize(model, verify=False)
    assert part.calls == 0
    x = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(3):
        hostile.assert_same(model, fused, x)
    assert "so one call is not like another" in repfx.report(fused).islands[0].cause


# --- wrappers --------------------------------------------------------------------------------------


def pair() -> nn.Module:
    return hostile.prepared(Net(lambda s, x: s.n(s.a(x)), a=conv(3, 4), n=BN(4)), 0)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    model = pair()
    fused = repfx.reparameterize(wrap(model).eval())
    agree(model, fused, image())
    assert set(fused.state_dict()) == {"a.weight", "a.bias"}
    assert count_operations(fused, (image(),)).batch_norms == 0


def test_scripted_modules_are_refused_and_scripted_parts_stay() -> None:
    scripted = torch.jit.script(hostile.prepared(nn.Sequential(conv(3, 3), BN(3)), 1))
    with pytest.raises(repfx.UserError, match=r"Sequential is a TorchScript module.*pass the module that it was made"):
        repfx.reparameterize(scripted)
    model = hostile.prepared(Net(lambda s, x: s.n(s.a(s.i(x))), i=scripted, a=conv(3, 4), n=BN(4)), 0)
    fused = repfx.reparameterize(model)
    agree(model, fused, image())
    assert "n" not in dict(fused.named_children())


# --- attributes ------------------------------------------------------------------------------------


def test_plain_attributes_are_kept_and_copied() -> None:
    model = pair()
    model.num_classes, model.feature_info = 7, [{"num_chs": 4, "module": "a"}]
    model.secret, model.helper = [nn.ReLU()], len
    fused = repfx.reparameterize(model)
    model.feature_info[0]["num_chs"] = 5
    for result in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), repfx.reparameterize(fused)):
        assert result.num_classes == 7
        assert result.feature_info == [{"num_chs": 4, "module": "a"}]
        assert not hasattr(result, "secret")
        assert not hasattr(result, "helper")
        assert repfx.report(result).model == "Net"


def test_a_copy_keeps_its_report() -> None:
    fused = repfx.reparameterize(pair())
    for result in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert repfx.report(result).merges == repfx.report(fused).merges


# --- the key map -----------------------------------------------------------------------------------


def test_the_key_map_names_what_went_in() -> None:
    model = hostile.prepared(
        Net(lambda s, x: s.b(s.n(s.a(x)).relu() * s.g), a=conv(3, 4), n=BN(4), b=conv(4, 2, bias=False),
            g=nn.Parameter(torch.rand(4, 1, 1))), 0,
    )  # fmt: skip
    norm = tuple(f"n.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    keys = repfx.key_map(repfx.reparameterize(model))
    assert keys == {
        "a.weight": ("a.weight", "a.bias", *norm),
        "a.bias": ("a.weight", "a.bias", *norm),
        "mul.weight": ("g", "b.weight"),
    }
    with pytest.raises(repfx.UserError, match="was not made by"):
        repfx.key_map(model)


def test_the_key_map_of_parts_of_islands() -> None:
    model = hostile.prepared(Exits(2.0), 0)
    keys = repfx.key_map(repfx.reparameterize(model))
    assert keys["layers.1.conv.weight"][:2] == ("layers.1.conv.weight", "layers.1.bn.weight")
    assert keys["exits.0.weight"] == ("exits.0.weight",)
