"""What a forward keeps for the next: caches by size, in globals, closures, classes, objects; last inputs."""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor

from tests.compiling import Net
from tests.truth.case import STAYS, Case, both, first, second

GRIDS: dict[Any, Tensor] = {}
TEXTS: dict[str, Tensor] = {}
LAST: list[Tensor] = []
RECENT: deque[Tensor] = deque(maxlen=2)
ANY: dict[str, Any] = defaultdict(dict)
READS_BACK = "reads what an earlier forward wrote"


class Store:
    grids: dict[Any, Tensor] = {}  # noqa: RUF012 - shared by all, as people write it


STORE = Store()


def reset() -> None:
    for table in (GRIDS, TEXTS, LAST, RECENT, ANY, Store.grids, vars(STORE)):
        table.clear()
    lines.cache_clear()


def line(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)


def in_a_global(s: Net, x: Tensor) -> Tensor:
    key = (x.shape[-2], x.shape[-1])
    if key not in GRIDS:
        GRIDS[key] = line(x)
    return second(s, first(s, x) + GRIDS[key])


def by_text(s: Net, x: Tensor) -> Tensor:
    key = f"{x.shape[-2]}x{x.shape[-1]}"
    if key not in TEXTS:
        TEXTS[key] = line(x)
    return second(s, first(s, x) + TEXTS[key])


def on_a_class(s: Net, x: Tensor) -> Tensor:
    grid = Store.grids.get(x.shape)
    if grid is None:
        grid = Store.grids[x.shape] = line(x)
    return second(s, first(s, x) + grid)


def on_an_object(s: Net, x: Tensor) -> Tensor:
    name = f"grid{x.shape[-1]}"
    if not hasattr(STORE, name):
        setattr(STORE, name, line(x))
    return second(s, first(s, x) + getattr(STORE, name))


@functools.lru_cache(maxsize=8)
def lines(size: int) -> Tensor:
    return torch.linspace(-1, 1, size, dtype=torch.float64)


def by_lru(s: Net, x: Tensor) -> Tensor:
    return second(s, first(s, x) + lines(x.shape[-1]))


def in_an_attribute(s: Net, x: Tensor) -> Tensor:
    if s.grid is None or s.grid.shape[-1] != x.shape[-1]:
        s.grid = line(x)
    return second(s, first(s, x) + s.grid)


def by_size_in_an_attribute(s: Net, x: Tensor) -> Tensor:
    if x.shape[-1] not in s.grids:
        s.grids[x.shape[-1]] = line(x)
    return second(s, first(s, x) + s.grids[x.shape[-1]])


def last_input(s: Net, x: Tensor) -> Tensor:
    before = LAST[0] if LAST else torch.zeros(1, dtype=x.dtype)
    LAST[:] = [x.mean().detach()]
    return both(s, x) + before


def moving_average(s: Net, x: Tensor) -> Tensor:
    s.average = 0.9 * s.average + 0.1 * x.mean().detach()
    return both(s, x) + s.average


def streaming(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    RECENT.append(y.mean((2, 3)).detach())
    return second(s, y) + sum(RECENT).mean()


def only_noted(s: Net, x: Tensor) -> Tensor:
    s.seen = first(s, x)
    return second(s, s.seen)


def noted_outside(s: Net, x: Tensor) -> Tensor:
    ANY["features"]["first"] = first(s, x)
    return second(s, ANY["features"].pop("first"))


def noted_and_left(s: Net, x: Tensor) -> Tensor:
    ANY["features"]["first"] = first(s, x)
    return second(s, ANY["features"]["first"])


def memo(s: Net, x: Tensor, known: OrderedDict[int, Tensor] = OrderedDict()) -> Tensor:  # noqa: B006
    if x.shape[-1] not in known:
        known[x.shape[-1]] = line(x)
    return second(s, first(s, x) + known[x.shape[-1]])


def reset_memo() -> None:
    assert memo.__defaults__ is not None
    memo.__defaults__[0].clear()


def first_call_decides(s: Net, x: Tensor) -> Tensor:
    if "grid" not in GRIDS:
        GRIDS["grid"] = line(x).abs().sum()
    return second(s, first(s, x) + GRIDS["grid"])


def by_identity(s: Net, x: Tensor) -> Tensor:
    if id(s) not in GRIDS:
        GRIDS[id(s)] = line(x).abs().sum()
    return second(s, first(s, x) + GRIDS[id(s)])


@functools.cache
def width_of(shape: tuple[int, ...]) -> float:
    return shape[-1] * 0.5


def by_a_tuple(s: Net, x: Tensor) -> Tensor:
    return both(s, x) * width_of(tuple(x.shape[2:]))


def by_device(s: Net, x: Tensor) -> Tensor:
    key = f"{x.device}"
    if key not in GRIDS:
        GRIDS[key] = s.a.bias * 2.0
    return second(s, first(s, x) + GRIDS[key].view(1, -1, 1, 1))


CASES = {
    "by the device's name": Case(by_device, reset=reset),
    "by a name without the size": Case(first_call_decides, STAYS, reset=reset),
    "by the identity of the module": Case(by_identity, STAYS, reset=reset),
    "by a tuple of sizes": Case(by_a_tuple, STAYS, sized=0),
    "in a global": Case(in_a_global, STAYS, sized=0, reset=reset),
    "by text": Case(by_text, STAYS, sized=0, reset=reset),
    "on a class": Case(on_a_class, STAYS, sized=0, reset=reset),
    "on an object": Case(on_an_object, STAYS, sized=0, reset=reset),
    "by a cached function": Case(by_lru, STAYS, sized=0, reset=reset),
    "in an attribute": Case(in_an_attribute, STAYS, sized=STAYS, parts={"grid": lambda: None}),
    "by size, in an attribute": Case(by_size_in_an_attribute, STAYS, sized=STAYS, parts={"grids": dict}),
    "the last input": Case(last_input, STAYS, reset=reset),
    "a moving average": Case(
        moving_average, STAYS, parts={"average": lambda: torch.zeros((), dtype=torch.float64)}, because=READS_BACK
    ),
    "the recent ones": Case(streaming, STAYS, reset=reset),
    "only noted": Case(only_noted),
    "noted outside, and taken back": Case(noted_outside, reset=reset),
    "noted outside, and left": Case(noted_and_left, reset=reset),
    "in a default": Case(memo, STAYS, sized=0, reset=reset_memo),
}
