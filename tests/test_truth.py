"""No forward makes the trace say what is not so: `tests/truth/` holds them, by kind."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repfx
from repfx.errors import InputError
from repfx.state import copied
from repfx.verification.calls import leaves
from tests import hostile
from tests.truth import asking, between, caches, functions, memory, mixing, modes, randomness, returning
from tests.truth.case import Case

KINDS = {
    "between": between,
    "memory": memory,
    "mixing": mixing,
    "modes": modes,
    "randomness": randomness,
    "functions": functions,
    "caches": caches,
    "asking": asking,
    "returning": returning,
}
ALL = {f"{kind}: {name}": case for kind, module in KINDS.items() for name, case in module.CASES.items()}
SIZES = ((8, 8), (9, 12), (8, 8))  # the first one twice, with another in between


def image(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


@contextmanager
def seeded(case: Case) -> Iterator[None]:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    case.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def answers(model: nn.Module, case: Case) -> list[Any]:
    """What a fresh copy returns, call after call, in either mode; an `InputError` where it says so."""
    found = []
    for gradients in (False, True) if case.gradients else (False,):
        with seeded(case), torch.set_grad_enabled(gradients):
            own = copied(model)  # Python copies no closures
            for size in SIZES:
                x = image((size[0], size[0]) if case.square else size)
                try:
                    found.append(list(leaves(own(x))))
                except InputError as error:
                    found.append(error)  # type: ignore[arg-type]
    return found


def assert_alike(wanted: list[Any], got: list[Any], refusals: bool) -> None:
    assert len(wanted) == len(got)
    for expected, actual in zip(wanted, got, strict=True):
        if isinstance(actual, InputError):
            assert refusals, actual
            continue
        assert [place for place, _ in expected] == [place for place, _ in actual]
        for (place, a), (_, b) in zip(expected, actual, strict=True):
            if isinstance(a, Tensor):
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                assert hostile.relative_error(a.detach(), b.detach()) <= hostile.TOLERANCE, place
            else:
                assert a == b


@pytest.mark.parametrize("example", [False, True], ids=["without", "with example"])
@pytest.mark.parametrize("name", ALL)
def test_the_compiled_module_does_what_the_module_does(name: str, example: bool) -> None:
    case = ALL[name]
    model = hostile.prepared(case.build(), 0)
    wanted = answers(model, case)
    before = hostile.snapshot(model)
    attributes = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    with seeded(case):
        fused = repfx.reparameterize(model, (image(SIZES[0]),) if example else None)
    hostile.assert_untouched(model, before)
    assert {key: value for key, value in vars(model).items() if not key.startswith("_")} == attributes
    assert_alike(wanted, answers(fused, case), refusals=example and case.other_sizes)
    assert_alike(wanted, answers(model, case), refusals=False)  # nor has compiling changed the model
    left = case.sized if example and case.sized is not None else case.left
    kinds = [type(m).__name__ for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    report = repfx.report(fused)
    assert len(kinds) == left, [island.cause for island in report.islands] or [str(d) for d in report.declines]
    if case.because and left:
        assert any(case.because in island.cause for island in report.islands), report.islands


@pytest.mark.parametrize("name", randomness.ANOTHER_EACH_TIME)
def test_what_is_another_each_time_stays(name: str) -> None:
    """Nothing is equal here, not even the module twice; what is asked for at run time is asked for at run time."""
    model = hostile.prepared(Case(randomness.ANOTHER_EACH_TIME[name]).build(), 0)
    fused = repfx.reparameterize(model, verify=False)
    assert [island.path for island in repfx.report(fused).islands] == [""]
    assert not torch.equal(fused(image(SIZES[0])), fused(image(SIZES[0])))


def gradient(model: nn.Module, case: Case) -> Tensor | None:
    """What one backward pass through everything that is returned leaves at the input."""
    with seeded(case):
        own, x = copied(model), image(SIZES[0]).requires_grad_()
        returned = [value for _, value in leaves(own(x)) if isinstance(value, Tensor) and value.requires_grad]
        if returned:
            sum((value.double() ** 2).sum() for value in returned).backward()
    return x.grad


@pytest.mark.parametrize("name", [n for n in ALL if n.split(":")[0] in ("functions", "mixing", "memory", "between")])
def test_gradients_are_those_of_the_module(name: str) -> None:
    """A function with a backward of its own keeps it; what is detached stays detached."""
    case = ALL[name]
    if not case.gradients:
        return
    model = hostile.prepared(case.build(), 0)
    try:
        wanted = gradient(model, case)
    except (RuntimeError, NotImplementedError):
        return  # it has none itself
    with seeded(case):
        fused = repfx.reparameterize(model, verify=False)
    got = gradient(fused, case)
    assert (wanted is None) == (got is None)
    if wanted is not None and got is not None:
        assert hostile.relative_error(wanted, got) <= 10 * hostile.TOLERANCE


def test_threads_compile_one_after_the_other_and_leave_torch_as_it_was() -> None:
    before = {name: getattr(torch, name) for name in ("zeros", "tensor", "rand", "is_inference_mode_enabled")}
    model = hostile.prepared(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0)
    x, failed = image(SIZES[0]), []

    def compile_twice() -> None:
        try:
            for _ in range(2):
                fused = repfx.reparameterize(model, verify=False)
                assert hostile.relative_error(model(x).detach(), fused(x).detach()) <= hostile.TOLERANCE
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=compile_twice) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert {name: getattr(torch, name) for name in before} == before


def test_what_cannot_be_copied_is_refused_in_words() -> None:
    case = randomness.ANOTHER_EACH_TIME["a clock"]
    model = hostile.prepared(Case(case, parts={"lock": threading.Lock}).build(), 0)
    with pytest.raises(repfx.UserError, match="cannot be copied: TypeError"):
        repfx.reparameterize(model)
