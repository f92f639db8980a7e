"""Arguments of a forward: what is a value, what is compiled in, and what a call with another value gets."""

from __future__ import annotations

import copy
import enum
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfx
from repfx.verification import count_operations
from tests import hostile

BN = nn.BatchNorm2d


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), BN(4)

    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Optioned(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, flag: bool = False) -> Tensor:
        y = self.body(x)
        if mask is not None:
            y = y * mask
        return (y.relu() if flag else y) * scale


class Variadic(Base):
    def forward(self, x: Tensor, /, *more: Any, k: Tensor | None = None, **named: Any) -> Tensor:
        y = self.body(x)
        for value in more:
            y = y + value
        for name in sorted(named):
            y = y * named[name]
        return y if k is None else y - k


class Required(Base):
    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.body(x) if mask is None else self.body(x) * mask


class TensorDefault(Base):
    def forward(self, x: Tensor, shift: Tensor = torch.ones(1)) -> Tensor:  # noqa: B008
        return self.body(x) + shift


def image(seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 6, 5, generator=generator, dtype=torch.float64)


def prepared(kind: type[nn.Module]) -> nn.Module:
    return hostile.prepared(kind(), 0)


def agree(model: nn.Module, fused: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        assert hostile.relative_error(model(*args, **kwargs), fused(*args, **kwargs)) <= hostile.TOLERANCE
    assert count_operations(fused, args, kwargs).batch_norms == 0


def test_an_optional_argument_is_left_out() -> None:
    model = prepared(Optioned)
    agree(model, repfx.reparameterize(model), image())


@pytest.mark.parametrize(
    "given", [{"mask": image(1, 1)}, {"flag": True}, {"scale": 2.0}, {"scale": 1}, {"scale": True}]
)
def test_another_value_than_the_default_is_an_error(given: dict[str, Any]) -> None:
    model = prepared(Optioned)
    fused = repfx.reparameterize(model)
    (name,) = given
    message = rf"^argument {name} of Optioned is .*compiled the model for .*example_kwargs.* that pass {name}"
    for result in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), repfx.reparameterize(fused)):
        agree(model, result, image())
        agree(model, result, image(), None, scale=1.0, flag=False)
        with pytest.raises(repfx.InputError, match=message):
            result(image(), **given)


def test_an_example_gives_the_arguments() -> None:
    model, mask = prepared(Optioned), image(1, 1)
    fused = repfx.reparameterize(model, (image(), mask), example_kwargs={"flag": True, "scale": 0.5})
    agree(model, fused, image(2), image(3, 1), flag=True, scale=0.5)
    assert repfx.report(fused).equivalence is not None
    for args, kwargs in (((), {}), ((mask,), {}), ((mask,), {"flag": True}), ((), {"flag": True, "scale": 0.5})):
        with pytest.raises(ValueError, match="repfx compiled the model"):
            fused(image(), *args, **kwargs)


@pytest.mark.parametrize("kind", [Optioned, Variadic, Required])
def test_the_signature_stays(kind: type[nn.Module]) -> None:
    model = prepared(kind)
    fused = repfx.reparameterize(model)
    wanted = [(p.name, p.kind, p.default) for p in inspect.signature(model.forward).parameters.values()]
    for result in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), repfx.reparameterize(fused)):
        assert [(p.name, p.kind, p.default) for p in inspect.signature(result.forward).parameters.values()] == wanted


def test_any_number_of_arguments() -> None:
    model = prepared(Variadic)
    fused = repfx.reparameterize(model)
    agree(model, fused, image())
    for args, kwargs in (((1.0,), {}), ((), {"z": 2.0}), ((), {"k": image(1, 4)})):
        with pytest.raises(repfx.InputError):
            fused(image(), *args, **kwargs)
    more, named = (image(1, 4), 2.0), {"a": image(2, 4), "b": 3.0}
    fused = repfx.reparameterize(model, (image(), *more), example_kwargs=named)
    for result in (fused, pickle.loads(pickle.dumps(fused)), repfx.reparameterize(fused)):
        agree(model, result, image(3), image(4, 4), 2.0, a=image(5, 4), b=3.0)
        for args, kwargs in ((more, {}), (more[:1], named), ((more[0], 3.0), named), (more, {**named, "b": 4.0})):
            with pytest.raises(repfx.InputError):
                result(image(), *args, **kwargs)


def test_a_required_argument_was_a_value_when_it_was_compiled() -> None:
    model = prepared(Required)
    fused = repfx.reparameterize(model)
    agree(model, fused, image(), image(1, 1))
    with pytest.raises(repfx.InputError, match="it cannot be None"):
        fused(image(), None)
    fused = repfx.reparameterize(model, (image(), None))
    agree(model, fused, image(), None)
    with pytest.raises(repfx.InputError, match="mask of Required is a tensor"):
        fused(image(), image(1, 1))


def test_a_default_that_no_graph_can_hold_leaves_the_forward_as_it_is() -> None:
    model = prepared(TensorDefault)
    fused = repfx.reparameterize(model)
    with torch.no_grad():
        for args in ((), (image(1, 4),)):
            assert hostile.relative_error(model(image(), *args), fused(image(), *args)) <= hostile.TOLERANCE
    assert [str(i.cause) for i in repfx.report(fused).islands] == ["shift has a Tensor as its default"]
    given = repfx.reparameterize(model, (image(), image(1, 4)))
    agree(model, given, image(), image(2, 4))
    with pytest.raises(repfx.InputError, match="it cannot be None"):
        given(image())


class Colour(enum.Enum):
    RED = 1


class Defaults(Base):
    """Defaults that are neither tensors nor numbers."""

    def forward(
        self, x: Tensor, colour: Colour = Colour.RED, dtype: torch.dtype = torch.float64, sizes: Any = (1, 2),
        at: str = "cpu", wide: float = float("inf"),
    ) -> Tensor:  # fmt: skip
        y = self.body(x).to(dtype) if colour is Colour.RED and at == "cpu" and wide > 1 else x
        return y * sizes[1]


def test_defaults_of_all_kinds() -> None:
    model = prepared(Defaults)
    for fused in (f := repfx.reparameterize(model), pickle.loads(pickle.dumps(f)), repfx.reparameterize(f)):
        agree(model, fused, image())
        agree(model, fused, image(), sizes=(1, 2), at="cpu")
        for given in ({"sizes": (1, 3)}, {"dtype": torch.float32}, {"at": "cuda"}, {"sizes": [1, 2]}, {"colour": None}):
            with pytest.raises(repfx.InputError):
                fused(image(), **given)


def test_example_inputs_that_fit_no_call_are_an_error() -> None:
    with pytest.raises(repfx.UserError, match=r"do not fit Required\.forward.*missing a required argument: 'mask'"):
        repfx.reparameterize(prepared(Required), (image(),))


def test_a_forward_set_on_the_object_is_the_one_that_runs() -> None:
    model = prepared(Optioned)
    entry = copy.copy(model)
    entry.forward = model.body  # as `forward_features` of a classifier
    fused = repfx.reparameterize(entry)
    with torch.no_grad():
        assert hostile.relative_error(model.body(image()), fused(image())) <= hostile.TOLERANCE
    assert count_operations(fused, (image(),)).batch_norms == 0


def test_a_convolution_whose_forward_was_replaced_stays() -> None:
    model = prepared(Optioned)
    conv = model.conv
    conv.forward = lambda x: nn.functional.conv2d(x, conv.weight, None, padding=1) * 2
    fused = repfx.reparameterize(model)
    with torch.no_grad():
        assert hostile.relative_error(model(image()), fused(image())) <= hostile.TOLERANCE
    assert [i.path for i in repfx.report(fused).islands] == ["conv"]


# --- what inner modules are given -----------------------------------------------------------------


class Inner(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.body(x) if mask is None else self.body(x) * mask


class Island(nn.Module):
    """Does not trace: asks the data.  Calls its child with `mask`, which may be None."""

    def __init__(self, kind: type[nn.Module] = Inner, passes: bool = True) -> None:
        super().__init__()
        self.inner, self.passes = kind(), passes

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.inner(x, mask)
        return y if float(y.sum()) > 0 else -y


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y if float(y.sum()) > 0 else -y


@pytest.mark.parametrize("kind", [Inner, Required])
def test_a_child_that_may_be_given_none_or_a_tensor_stays(kind: type[nn.Module]) -> None:
    model = hostile.prepared(Island(kind), 0)
    fused = repfx.reparameterize(model)
    for mask in (None, image(1, 1)):
        with torch.no_grad():
            assert hostile.relative_error(model(image(), mask), fused(image(), mask)) <= hostile.TOLERANCE
    causes = {i.path: i.cause for i in repfx.report(fused).islands}
    assert "its caller passes mask" in causes["inner"]


def test_a_child_that_is_never_given_its_optional_argument_is_compiled() -> None:
    model = hostile.prepared(Plain(), 0)
    fused = repfx.reparameterize(model)
    agree(model, fused, image())
    assert [i.path for i in repfx.report(fused).islands] == [""]


# --- containers that are changed ------------------------------------------------------------------


def appends(body: nn.Module, given: Any) -> Tensor:
    given.append(body(given[0]))
    return given[-1] * 2.0


def replaces(body: nn.Module, given: Any) -> Tensor:
    for i in range(len(given)):
        given[i] = body(given[i])
    return given[0] + given[-1]


def updates(body: nn.Module, given: Any) -> Tensor:
    given.update(y=body(given["x"]))
    return given.pop("y") * 2.0


def slices(body: nn.Module, given: Any) -> Tensor:
    own = list(given)
    own[0] = body(own[0])
    return own[0] + own[-1][:, :1]


class Changes(Base):
    """A forward that works on a list or a dictionary that it was given."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def forward(self, given: Any) -> Tensor:
        return self.run(self.body, given)


@pytest.mark.parametrize(
    ("run", "given"),
    [
        (appends, lambda: [image()]),
        (replaces, lambda: [image(), image() * 2.0]),
        (updates, lambda: {"x": image()}),
        (slices, lambda: [image(), image() * 2.0]),
    ],
)
def test_containers_that_a_forward_changes(run: Any, given: Any) -> None:
    model, example = hostile.prepared(Changes(run), 0), given()
    before = copy.deepcopy(example)
    for verify in (True, False):
        fused = repfx.reparameterize(model, (example,), verify=verify)
        assert str(example) == str(before), "the example was changed"
        ours, theirs = given(), given()
        with torch.no_grad():
            assert hostile.relative_error(model(theirs), fused(ours)) <= hostile.TOLERANCE
        assert len(ours) == len(theirs)


class Starred(Base):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("example", [False, True])
def test_arguments_that_are_not_given_may_be_exported(example: bool) -> None:
    model = hostile.prepared(Starred(), 0)
    fused = repfx.reparameterize(model, (image(),) if example else None)
    program = torch.export.export(fused, (image(),))
    with torch.no_grad():
        assert hostile.relative_error(model(image()), program.module()(image())) <= hostile.TOLERANCE
    with pytest.raises(repfx.InputError):
        fused(image(), 3)
