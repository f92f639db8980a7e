"""Random numbers, clocks and counters: whatever is another one the next time."""

from __future__ import annotations

import itertools
import os
import random
import time
import uuid
from random import random as kept_random

import numpy as np
import torch
from torch import Tensor, nn

from tests.compiling import Net
from tests.truth.case import STAYS, Case, Forward, both, first, second

DRAWS = "draws random numbers"
OWN = random.Random(3)
ARRAYS = np.random.default_rng(3)
LEGACY = np.random.RandomState(3)
TORCHS = torch.Generator().manual_seed(3)
SHARED = {"generator": random.Random(4)}
COUNTER = itertools.count()
CALLS = {"n": 0}
TOTAL = 0


def reset() -> None:
    global COUNTER, TOTAL
    OWN.seed(3)
    ARRAYS.bit_generator.state = np.random.default_rng(3).bit_generator.state
    LEGACY.seed(3)
    TORCHS.manual_seed(3)
    SHARED["generator"].seed(4)
    COUNTER = itertools.count()
    CALLS["n"] = 0
    TOTAL = 0


def way(s: Net, x: Tensor, number: float) -> Tensor:
    """A way that a number decides."""
    return both(s, x) if number < 0.5 else second(s, first(s, x))


def counted(s: Net, x: Tensor) -> Tensor:
    global TOTAL
    TOTAL += 1
    return both(s, x) * TOTAL


def counted_in_a_table(s: Net, x: Tensor) -> Tensor:
    CALLS["n"] += 1
    return both(s, x) * CALLS["n"]


def counted_by_default(s: Net, x: Tensor, calls: list[int] = [0]) -> Tensor:  # noqa: B006
    calls[0] += 1
    return both(s, x) * calls[0]


def reset_default() -> None:
    assert counted_by_default.__defaults__ is not None
    counted_by_default.__defaults__[0][0] = 0


def closure() -> tuple[object, object]:
    calls = 0

    def run(s: Net, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return both(s, x) * calls

    def restart() -> None:
        nonlocal calls
        calls = 0

    return run, restart


class Counted:
    """An object of the user's that counts, and is no module."""

    calls = 0

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> int:
        self.steps += 1
        return self.steps


class OnTheClass(nn.Module):
    """Counts for all its instances."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return x * type(self).calls


def reset_class() -> None:
    OnTheClass.calls = 0


def seeds(s: Net, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return both(s, x) * torch.rand(1).item()


def seeds_python(s: Net, x: Tensor) -> Tensor:
    random.seed(0)
    return both(s, x) * random.random()


def with_fork(s: Net, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return both(s, x) * torch.rand(1).item()


def dropped(s: Net, x: Tensor) -> Tensor:
    return second(s, nn.functional.dropout(first(s, x), 0.5, training=True))


def a_mask_of_weights(s: Net, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, s.a.weight * torch.bernoulli(torch.full_like(s.a.weight, 0.5)), s.a.bias, padding=1)


_run, _restart = closure()

CASES = {
    "Python's": Case(lambda s, x: way(s, x, random.random()), STAYS, because=DRAWS),
    "Python's, imported": Case(lambda s, x: way(s, x, kept_random()), STAYS, because=DRAWS),
    "Python's, as a factor": Case(lambda s, x: both(s, x) * random.uniform(1, 2), STAYS, because=DRAWS),
    "Python's, a choice": Case(lambda s, x: random.choice([first, both])(s, x), STAYS, because=DRAWS),
    "Python's own": Case(lambda s, x: way(s, x, OWN.random()), STAYS, reset=reset, because=DRAWS),
    "Python's own, in a table": Case(
        lambda s, x: way(s, x, SHARED["generator"].random()), STAYS, reset=reset, because=DRAWS
    ),
    "Python's own, an attribute": Case(
        lambda s, x: way(s, x, s.g.random()), STAYS, parts={"g": lambda: random.Random(1)}, because=DRAWS
    ),
    "NumPy's": Case(lambda s, x: way(s, x, float(np.random.rand())), STAYS, because=DRAWS),
    "NumPy's own": Case(lambda s, x: way(s, x, ARRAYS.random()), STAYS, reset=reset, because=DRAWS),
    "NumPy's own, an attribute": Case(
        lambda s, x: way(s, x, s.g.random()), STAYS, parts={"g": lambda: np.random.default_rng(1)}, because=DRAWS
    ),
    "NumPy's old own": Case(lambda s, x: way(s, x, LEGACY.rand()), STAYS, reset=reset, because=DRAWS),
    "torch's": Case(lambda s, x: both(s, x) + torch.randn(1, dtype=torch.float64), STAYS, because=DRAWS),
    "torch's, in the input's dtype": Case(lambda s, x: both(s, x) + torch.randn(1, dtype=x.dtype)),
    "torch's own": Case(
        lambda s, x: both(s, x) * torch.rand(1, generator=TORCHS).item(), STAYS, reset=reset, because=DRAWS
    ),
    "torch's own, an attribute": Case(
        lambda s, x: both(s, x) * torch.rand(1, generator=s.g).item(), STAYS,
        parts={"g": lambda: torch.Generator().manual_seed(1)}, because=DRAWS,
    ),
    "a permutation": Case(lambda s, x: both(s, x)[:, torch.randperm(4)], STAYS, because=DRAWS),
    "a tensor filled": Case(
        lambda s, x: both(s, x) + torch.empty(1, dtype=torch.float64).uniform_(1, 2), STAYS, because=DRAWS
    ),
    "initialised anew": Case(
        lambda s, x: both(s, x) + nn.init.normal_(torch.empty(1, dtype=torch.float64)), STAYS, because=DRAWS
    ),
    "noise of the input's shape": Case(lambda s, x: both(s, x + torch.randn_like(x))),
    "noise of the input's size": Case(
        lambda s, x: both(s, x + torch.rand(x.shape[0], 1, 1, 1, dtype=torch.float64))
    ),
    "a dropout that drops": Case(dropped, 0),
    "a mask of weights": Case(a_mask_of_weights),
    "seeds torch": Case(seeds, STAYS, because=DRAWS),
    "seeds Python": Case(seeds_python, STAYS, because=DRAWS),
    "forks": Case(with_fork, STAYS, because=DRAWS),
    "counts in a global": Case(counted, STAYS, reset=reset, because="reads what an earlier forward wrote"),
    "counts in a global table": Case(
        counted_in_a_table, STAYS, reset=reset, because="reads what an earlier forward wrote"
    ),
    "counts in a default": Case(
        counted_by_default, STAYS, reset=reset_default, because="reads what an earlier forward wrote"
    ),
    "counts in a closure": Case(_run, STAYS, reset=_restart, because="an earlier forward wrote"),
    "counts in an object": Case(
        lambda s, x: both(s, x) * s.counted.step(), STAYS, parts={"counted": Counted},
        because="reads what an earlier forward wrote",
    ),
    "counts in a class": Case(
        lambda s, x: s.c(both(s, x)), STAYS, parts={"c": OnTheClass}, reset=reset_class
    ),
    "an iterator that goes on": Case(lambda s, x: both(s, x) * (1 + next(COUNTER)), STAYS, reset=reset),
}  # fmt: skip


def read_by_nobody(s: Net, x: Tensor) -> Tensor:
    _ = torch.dropout(x, 0.5, True)
    return both(s, x) + torch.rand_like(x[:, :1])


def unread_part(s: Net, x: Tensor) -> Tensor:
    """The first result is dropped; the part has drawn all the same."""
    y = first(s, x)
    _ = s.part(y)
    return second(s, s.part(y))


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(1, dtype=x.dtype)


LATE: dict[str, int] = {"n": 0}
LOG: list[int] = []


def late(s: Net, x: Tensor) -> Tensor:
    """Only the seventh call is another one."""
    LATE["n"] += 1
    return both(s, x) * 2.0 if LATE["n"] > 6 else both(s, x)


def logged(s: Net, x: Tensor) -> Tensor:
    LOG.append(1)
    return both(s, x) * 2.0 if len(LOG) > 6 else both(s, x)


LARGE = [0] * 60_000


def counts_in_the_middle(s: Net, x: Tensor) -> Tensor:
    """Of a list too long for a quick look."""
    LARGE[30_000] += 1
    return both(s, x) * 2.0 if LARGE[30_000] > 6 else both(s, x)


def reset_late() -> None:
    LARGE[30_000] = 0
    LATE["n"] = 0
    LOG.clear()


class Trains(nn.Module):
    """A part that is left in training mode: it draws, and keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm2d(4)

    def train(self, mode: bool = True) -> Trains:
        self.drop.training = self.norm.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.drop(x)
        self.norm(x)
        return x * torch.rand_like(x)


CASES |= {
    "counts in the middle of a long list": Case(counts_in_the_middle, STAYS, reset=reset_late),
    "counts up to a late call": Case(late, STAYS, reset=reset_late),
    "logs up to a late call": Case(logged, STAYS, reset=reset_late),
    "a part in training mode": Case(lambda s, x: second(s, s.part(first(s, x))), 1, parts={"part": Trains}),
    "a draw that nobody reads": Case(read_by_nobody),
    "a part's draw that nobody reads": Case(unread_part, parts={"part": Draws}),
}
ANOTHER_EACH_TIME: dict[str, Forward] = {  # nothing to compare with: not even the module twice
    "a clock": lambda s, x: both(s, x) * time.perf_counter(),
    "the system's entropy": lambda s, x: both(s, x) * (1 + int.from_bytes(os.urandom(2), "big")),
    "a name": lambda s, x: both(s, x) * (uuid.uuid4().int % 1000),
}
