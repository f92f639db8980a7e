"""What a forward returns, and how it is written: containers, generators, numbers, parts shared, hidden, patched."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.compiling import Net, conv
from tests.truth.case import STAYS, Case, both, first, second


class Pair(NamedTuple):
    early: Tensor
    late: Tensor | None = None


@dataclasses.dataclass
class Record:
    features: list[Tensor]
    size: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: Tensor


class Plain:
    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.itself = self


def generated(s: Net, x: Tensor) -> Iterator[Tensor]:
    y = first(s, x)
    yield y
    yield second(s, y.relu())


def delegated(s: Net, x: Tensor) -> Tensor:
    *_, last = generated(s, x)
    return last


def deep(s: Net, x: Tensor) -> Any:
    y = first(s, x)
    return {"a": [y, (second(s, y.relu()), None)], "b": {"c": 1, "d": "e"}}


def twice(s: Net, x: Tensor) -> Any:
    y = both(s, x)
    return y, y, x, s.a.bias


def shared(s: Net, x: Tensor) -> Tensor:
    return both(s, x) - both(s, x.flip(-1))


def through_a_list(s: Net, x: Tensor) -> Tensor:
    values = [first(s, x)]
    values.append(values[-1].relu())
    values.extend(second(s, v) for v in values[-1:])
    values.insert(0, x)
    return values.pop()


def through_a_class(s: Net, x: Tensor) -> Tensor:
    held = types.SimpleNamespace(x=first(s, x))
    held.y = held.x.relu()
    return second(s, held.y)


def through_kwargs(s: Net, x: Tensor) -> Tensor:
    def run(*args: Tensor, **kwargs: Any) -> Tensor:
        return second(s, args[0].relu()) * kwargs.get("scale", 1.0)

    return run(*[first(s, x)], **{"scale": 2.0})


def stacked(s: Net, x: Tensor) -> Tensor:
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: None)
        return both(s, x)


def raised(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    try:
        raise KeyError("no")
    except KeyError:
        y = y.relu()
    finally:
        y = y * 2.0
    return second(s, y)


def looped(s: Net, x: Tensor) -> Tensor:
    for step in (first, lambda s, y: y.relu(), second):
        x = step(s, x)
    else:
        x = x + 1.0
    return x


def late(s: Net, x: Tensor) -> Tensor:
    s.add_module("late", nn.Identity())
    return both(s, s.late(x))


def patched(s: Net, x: Tensor) -> Tensor:
    s.n.forward = types.MethodType(lambda self, y: y * 2.0, s.n)
    return both(s, x)


def hooked(s: Net, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = s.n.register_forward_hook(lambda module, args, out: seen.append(out))
    y = both(s, x)
    handle.remove()
    return y + seen[0]


def hidden() -> dict[str, nn.Module]:
    return {"norm": nn.BatchNorm2d(4).double().eval()}


CASES = {
    "a named tuple": Case(lambda s, x: Pair(first(s, x), both(s, x))),
    "a dataclass": Case(lambda s, x: Record([both(s, x)], None)),
    "a dataclass with a size": Case(lambda s, x: Record([both(s, x)], x.shape[1])),
    "a frozen dataclass": Case(lambda s, x: Slotted(both(s, x))),
    "an object": Case(lambda s, x: Plain(both(s, x)), STAYS),
    "an ordered dictionary": Case(lambda s, x: collections.OrderedDict(out=both(s, x))),
    "a default dictionary": Case(lambda s, x: collections.defaultdict(list, out=both(s, x)), STAYS),
    "a set of sizes": Case(lambda s, x: (both(s, x), x.shape, x.dtype, x.shape[-1])),
    "nested": Case(deep),
    "a generator": Case(generated, STAYS),
    "the end of a generator": Case(delegated),
    "the same twice, and the input": Case(twice),
    "nothing beside": Case(lambda s, x: (both(s, x), None, 3, 2.5, "text")),
    "parts that are shared": Case(shared),
    "through a list": Case(through_a_list),
    "through a namespace": Case(through_a_class),
    "through arguments": Case(through_kwargs),
    "a stack of contexts": Case(stacked),
    "an exception of its own": Case(raised),
    "a loop over functions": Case(looped),
    "a part that comes late": Case(late, STAYS, because="makes parts"),
    "a part that is patched": Case(patched),
    "a hook that comes and goes": Case(hooked, STAYS),
    "a norm in a table": Case(lambda s, x: s.table["norm"](both(s, x)), 0, parts={"table": hidden}),
    "one part in two places": Case(
        lambda s, x: second(s, s.again(first(s, x).relu())), parts={"again": lambda: conv(4, 4)}
    ),
    "a tensor that is no input": Case(lambda s, x: (both(s, x), torch.arange(3))),
}
