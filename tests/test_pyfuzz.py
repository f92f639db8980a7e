"""The fuzzer that writes Python: some of its programs, and proof that it would notice a lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests import test_net
from tests.pyfuzz.program import Call, Program, Statement
from tests.pyfuzz.running import Finding, Seen, UnfitError, examine
from tests.pyfuzz.shrinking import reproducer, shrink
from tests.pyfuzz.writing import program

SEEDS = range(60)
IMAGE = (Call((2, 8, 8)), Call((2, 9, 12)))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Programs are tiny; threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def outcome(seed: int) -> tuple[Finding | None, Seen | None]:
    """What came of a program; no `Seen` where it does not run by itself."""
    seen = Seen()
    try:
        return examine(program(seed), seen), seen
    except UnfitError:
        return None, None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_compiled_does_what_it_does(seed: int) -> None:
    finding, seen = outcome(seed)
    if seen is None:
        pytest.skip("the program itself does not run")
    assert finding is None, f"{finding.kind}: {finding.message}\n{program(seed).source()}"


def test_most_programs_fold_around_what_is_odd() -> None:
    ran = [seen for _, seen in map(outcome, SEEDS) if seen is not None]
    assert len(ran) > 0.9 * len(SEEDS), "too many programs do not run by themselves"
    assert sum(seen.folded for seen in ran) > 0.8 * len(ran)
    assert sum(seen.whole for seen in ran) > 0.5 * len(ran), "most statements are left out of the graph"
    assert any(seen.islands for seen in ran)
    assert any(seen.refused for seen in ran)


def one(code: str, **options: object) -> Program:
    """A program of one statement, between two norms."""
    body = (Statement(code), Statement("x = self.n0(self.c0(x))"))
    return Program(body, calls=IMAGE, **options)  # type: ignore[arg-type]


LIES: dict[str, tuple[test_net.Patch, Program]] = {
    "a truth": (test_net.negated, one("x = x * 2.0 if x.shape[-1] > 4 else x", example=True)),
    "a number": (test_net.larger, one("x = x + int(x.shape[-1])", example=True)),
    "a text": (test_net.other_text, one('x = x + len(f"{x.shape}")', example=True)),
    "a loop": (test_net.first_only, one("x = x + sum(part.mean() for part in x)", example=True)),
    "a type": (test_net.lists, one("def asks(image):\n    return isinstance(image, list)\nx = x + asks(image)")),
    "training": (test_net.in_training, one("x = x * 2.0 if self.training else x")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_the_tracer_is_found(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, asking = LIES[lie]
    assert examine(asking) is None
    tell(monkeypatch)
    assert examine(asking) is not None


def test_random_programs_find_a_lie_and_show_it_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    test_net.larger(monkeypatch)
    seed, finding = next(found for found in map(_failing, SEEDS) if found is not None)
    small = shrink(program(seed), finding.kind, seconds=4.0)
    assert len(list(small.all())) <= len(list(program(seed).all()))
    text = reproducer(small, finding)
    shown: list[Program] = []
    monkeypatch.setattr("tests.pyfuzz.__main__.replay", shown.append)
    exec(compile(text, str(tmp_path / "found.py"), "exec"), {})
    assert shown == [small]


def _failing(seed: int) -> tuple[int, Finding] | None:
    try:
        finding = examine(program(seed))
    except UnfitError:
        return None
    return None if finding is None else (seed, finding)


@pytest.mark.parametrize("write", [lambda p: p.source(), repr], ids=["source", "values"])
def test_a_seed_is_one_program(write: Callable[[Program], str]) -> None:
    assert [write(program(seed)) for seed in SEEDS] == [write(program(seed)) for seed in SEEDS]
    assert len({write(program(seed)) for seed in SEEDS}) == len(SEEDS)
