"""Random programs: which statements, what is in their holes, how the module is called and compiled."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from tests.pyfuzz import statements as written
from tests.pyfuzz.expressions import EXPRESSIONS
from tests.pyfuzz.program import Call, Program, Statement

_FLOATS = ("0.5", "1.25", "2.0", "-0.75", "0.1", "3")
_ACTIVATIONS = ("relu", "tanh", "sigmoid", "abs", "neg")
_SIZES = ((8, 8), (9, 12), (12, 9), (6, 8), (8, 16), (7, 7), (4, 4))
_KINDS = {  # how often
    "asking": 30, "memory": 16, "caches": 10, "flags": 8, "random": 6, "functions": 14, "casts": 12, "block": 14,
    "context": 6, "apart": 14,
}  # fmt: skip


def programs(seed: int) -> Iterator[Program]:
    """An endless stream."""
    draws = random.Random(seed)
    while True:
        yield program(draws.randrange(2**31))


def program(seed: int) -> Program:
    """The program of this number."""
    rng = random.Random(seed)
    odd = rng.choices((1, 2, 3, 5), (45, 30, 17, 8))[0]
    body = [statement(rng, 0) for _ in range(odd)]
    for _ in range(rng.randint(1, 2)):
        body.insert(rng.randint(0, len(body)), _plain(rng, "chains"))
    signature = rng.choice(written.SIGNATURES)
    returns = "return x" if rng.random() < 0.6 else fill(rng, rng.choice(written.RETURNS))
    return Program(
        tuple(body),
        returns,
        signature,
        written.OPENINGS.get(signature, ""),
        _calls(rng),
        example=rng.random() < 0.55,
        verify=rng.random() < 0.15,
        double=rng.random() < 0.9,
        loaded="exec" if rng.random() < 0.15 else "file",
        objective=rng.choice(("single-branch", "macs")),
        weights=rng.randrange(100),
    )


def statement(rng: random.Random, depth: int) -> Statement:
    """One that is more than a chain."""
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    if depth >= 2 and kind in ("block", "context", "apart"):
        kind = "asking"
    if kind == "block":
        return _block(rng, rng.choice(written.CONTROL), "control", depth)
    if kind == "context":
        return _block(rng, rng.choice(written.CONTEXTS), "contexts", depth)
    if kind == "apart":
        place = rng.choice(("method", "function", "module", "module", "list", "sequential"))
        return _block(rng, rng.choice(written.OUTSIDE[place]), place, depth, place)
    return _plain(rng, kind)


def _plain(rng: random.Random, kind: str) -> Statement:
    return Statement(fill(rng, rng.choice(written.KINDS[kind])), kind)


def _block(rng: random.Random, code: str, kind: str, depth: int, place: str = "") -> Statement:
    inside = [_inner(rng, depth + 1) for _ in range(rng.choice((1, 2, 2)))]
    other = [_inner(rng, depth + 1)] if "{other}" in code else []
    return Statement(fill(rng, code), kind, place, tuple(inside), tuple(other))


def _inner(rng: random.Random, depth: int) -> Statement:
    return _plain(rng, "chains") if rng.random() < 0.4 else statement(rng, depth)


def _calls(rng: random.Random) -> tuple[Call, ...]:
    """The same size twice, another one, the first again; then with gradients."""
    first, second = rng.sample(_SIZES, 2)
    batch = rng.choice((2, 2, 1))
    one = (batch, *first)
    two = rng.choice(((batch, *second), (batch, first[0], second[1]), (3, *first)))
    modes = rng.choice((("no_grad", "grad"), ("no_grad", "leaf"), ("leaf", "no_grad"), ("inference", "leaf")))
    return tuple(Call(size, mode) for mode in modes for size in (one, one, two, one))


def fill(rng: random.Random, text: str, depth: int = 0) -> str:
    """A text with something in each of its holes; `<k>`, `<j>` and `<key>` are the same throughout."""
    once: dict[str, str] = {}

    def draw(match: re.Match[str]) -> str:
        name = match[1]
        if name in _CONSTANT:
            return once.setdefault(name, _CONSTANT[name](rng)) if name in "kj" else _CONSTANT[name](rng)
        if name == "key" and name in once:
            return once[name]
        choices = EXPRESSIONS[name]
        if depth >= 2:
            choices = tuple(choice for choice in choices if "<" not in re.sub(r"<[kj]>| < ", "", choice))
        found = fill(rng, rng.choice(choices), depth + 1)
        once[name] = found
        return found

    return re.sub(r"<(number|question|key|weight|float|act|k|j)>", draw, text)


_CONSTANT: dict[str, Callable[[random.Random], str]] = {
    "k": lambda rng: str(rng.randrange(3)),
    "j": lambda rng: str(rng.randrange(3)),
    "float": lambda rng: rng.choice(_FLOATS),
    "act": lambda rng: rng.choice(_ACTIVATIONS),
}
