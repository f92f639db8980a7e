"""Questions: what type a value has, how many items, which attributes, what it reads like; with or without sizes."""

from __future__ import annotations

import contextlib
import enum
import functools
import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compiling import Net
from tests.truth.case import FOLDS, STAYS, Case, both, first, second


def otherwise(s: Net, x: Tensor) -> Tensor:
    """The way that no truthful answer leads to."""
    return second(s, first(s, x)) * 7.0


def if_(answer: bool, s: Net, x: Tensor) -> Tensor:
    return both(s, x) if answer else otherwise(s, x)


def matched(s: Net, x: Any) -> Tensor:
    match x:
        case list() | tuple() | dict():
            return otherwise(s, x[0])
        case torch.Tensor():
            return both(s, x)
        case _:
            return otherwise(s, x)


def matched_shape(s: Net, x: Tensor) -> Tensor:
    match x.shape:
        case (_, 3, _, _):
            return both(s, x)
        case _:
            return otherwise(s, x)


@functools.singledispatch
def entered(x: Any, s: Net) -> Tensor:
    return otherwise(s, x)


@entered.register(torch.Tensor)
def _entered_tensor(x: Tensor, s: Net) -> Tensor:
    return both(s, x)


@entered.register(list)
def _entered_list(x: list[Tensor], s: Net) -> Tensor:
    return otherwise(s, x[0])


BY_TYPE = {torch.Tensor: both, list: otherwise, nn.Parameter: otherwise}


class Axis(enum.IntEnum):
    CHANNELS = 1
    WIDTH = 3


def tried(s: Net, x: Tensor) -> Tensor:
    try:
        size = x.sizes
    except AttributeError:
        size = 1.0
    return both(s, x) * size


def tried_to_unpack(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    try:
        _, c, _ = y.shape
    except ValueError:
        _, c, _, _ = y.shape
    return second(s, y) * float(c)


def tried_to_count(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    try:
        n = len(y.mean())
    except TypeError:
        n = 1
    return second(s, y) * n


def asserted(s: Net, x: Tensor) -> Tensor:
    assert isinstance(x, Tensor), "a tensor"
    assert x.ndim == 4, f"{x.ndim} axes"
    assert x.shape[1] == 3 and x.shape[2] > 0, f"{tuple(x.shape)}"  # noqa: PT018 - two questions in one assertion, as people write them
    if x.size(0) == 0:
        raise ValueError(f"an empty batch: {x.size()}")
    return both(s, x)


def padded(s: Net, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    x = F.pad(x, (0, -w % 4, 0, -h % 4))
    return both(s, x)[..., :h, :w]


def windows(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    n = max(1, y.shape[-1] // 4)
    return torch.cat([second(s, part) for part in y.chunk(n, -1)], -1)


def halves(s: Net, x: Tensor, depth: int = 2) -> Tensor:
    if depth == 0 or x.shape[-1] < 4:
        return both(s, x)
    left, right = x.chunk(2, -1)
    return torch.cat([halves(s, left, depth - 1), halves(s, right, depth - 1)], -1)


def shrinking(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    while y.shape[-1] > 4:
        y = F.avg_pool2d(y, 2, ceil_mode=True)
    return second(s, y)


def by_name(s: Net, x: Tensor) -> Tensor:
    return getattr(both(s, x), "relu" if hasattr(x, "relu") else "neg")()


def attribute_or(s: Net, x: Tensor) -> Tensor:
    return both(s, x) * getattr(x, "scale", 3.0)


def positional(s: Net, x: Tensor) -> Tensor:
    b, _, *rest = x.shape
    return both(s, x).reshape(b, 4, *rest)


def mixed_sums(s: Net, x: Tensor) -> Tensor:
    size = sum(x.shape[2:]) + len(x.shape) + min(x.shape[2], 100) + max(x.shape[2:])
    return both(s, x) * float(size)


def whole(n: Any) -> bool:
    return isinstance(n, int) and isinstance(n, numbers.Integral) and not isinstance(n, Tensor | float | bool)


QUESTIONS = {
    "a tensor": lambda s, x: if_(isinstance(x, Tensor), s, x),
    "a tensor, among others": lambda s, x: if_(isinstance(x, list | Tensor | dict), s, x),
    "no list": lambda s, x: if_(not isinstance(x, list | tuple | Mapping), s, x),
    "no parameter": lambda s, x: if_(not isinstance(x, nn.Parameter), s, x),
    "a parameter": lambda s, x: if_(isinstance(s.a.weight, nn.Parameter) and isinstance(s.a.weight, Tensor), s, x),
    "a buffer is no parameter": lambda s, x: if_(not isinstance(s.n.running_mean, nn.Parameter), s, x),
    "iterable": lambda s, x: if_(isinstance(x, Iterable) and isinstance(x, Sized), s, x),
    "no sequence": lambda s, x: if_(not isinstance(x, Sequence), s, x),
    "torch's own question": lambda s, x: if_(torch.is_tensor(x), s, x),
    "its type": lambda s, x: if_(type(x) is Tensor, s, x),
    "its type, equal": lambda s, x: if_(type(x) == Tensor, s, x),  # noqa: E721
    "its type, among others": lambda s, x: if_(type(x) in (list, Tensor), s, x),
    "its class": lambda s, x: if_(x.__class__ is Tensor and x.__class__.__name__ == "Tensor", s, x),
    "the name of its type": lambda s, x: if_(type(x).__name__ == "Tensor", s, x),
    "a subclass": lambda s, x: if_(issubclass(type(x), Tensor), s, x),
    "by its type": lambda s, x: BY_TYPE[type(x)](s, x),
    "the type of a weight": lambda s, x: if_(type(s.a.weight) is nn.Parameter, s, x),
    "matched": matched,
    "dispatched": lambda s, x: entered(x, s),
    "the type of a computed value": lambda s, x: if_(isinstance(first(s, x).relu() + 1, Tensor), s, x),
    "the type of an item": lambda s, x: if_(isinstance(x[0], Tensor) and isinstance(x.chunk(2)[0], Tensor), s, x),
    "the type of a maximum": lambda s, x: if_(isinstance(x.max(), Tensor), s, x),
    "a size is whole": lambda s, x: if_(whole(x.shape[0]) and whole(x.size(1)), s, x),
    "the type of a size": lambda s, x: if_(type(x.shape[0]) is int, s, x),
    "the type of a shape": lambda s, x: if_(isinstance(x.shape, torch.Size) and isinstance(x.shape, tuple), s, x),
    "the type of a dtype": lambda s, x: if_(isinstance(x.dtype, torch.dtype), s, x),
    "the type of a device": lambda s, x: if_(isinstance(x.device, torch.device), s, x),
    "is it callable": lambda s, x: if_(not callable(x) and callable(s.a), s, x),
    "is it torch.fx's": lambda s, x: if_(not isinstance(x, torch.fx.Proxy) and not tracing(), s, x),
    "is it None": lambda s, x: if_(x is not None, s, x),
    "is it equal to None": lambda s, x: if_(x != None, s, x),  # noqa: E711
    "None among them": lambda s, x: if_(None not in (x,) and x not in (None, "x"), s, x),
    "has it": lambda s, x: if_(hasattr(x, "shape") and hasattr(x, "mT"), s, x),
    "has it not": lambda s, x: if_(not hasattr(x, "logits") and not hasattr(x, "keys"), s, x),
    "an attribute or else": attribute_or,
    "an attribute by a computed name": by_name,
    "an attribute that it has not": tried,
    "a parameter's size": lambda s, x: both(s, x) * s.a.weight.size(0) * s.a.weight.shape[1] * s.a.weight.dim(),
    "a parameter's length": lambda s, x: both(s, x) * len(s.a.weight) * s.a.bias.numel() * s.a.weight.ndim,
    "checked": asserted,
    "axes by their names": lambda s, x: both(s, x).mean(Axis.WIDTH) * x.shape[Axis.CHANNELS],
    "padded to a multiple": padded,
    "a modulus": lambda s, x: both(s, x) * (x.shape[-1] % 3 + x.shape[-1] // 3),
    "both at once": lambda s, x: both(s, x) * sum(divmod(x.shape[-1], 3)),
    "a root": lambda s, x: both(s, x) * x.shape[-1] ** -0.5 * math.sqrt(x.shape[-2]),
    "a constant for each row": lambda s, x: both(s, x) + torch.zeros(x.shape[0], 1, 1, 1, dtype=x.dtype),
    "expanded": lambda s, x: both(s, x) + torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(x.shape[0], -1, -1, -1),
}  # fmt: skip
NEEDS_SIZES = {
    "an index": lambda s, x: both(s, x) * operator.index(x.shape[-1]),
    "a number": lambda s, x: both(s, x) * float(int(x.shape[-1]) + float(x.shape[-2])),
    "a comparison": lambda s, x: if_(x.shape[-1] > 4, s, x),
    "among the sizes": lambda s, x: if_(3 in x.shape and 77 not in x.shape, s, x),
    "a truth": lambda s, x: if_(bool(x.shape[0]), s, x),
    "a list of them": lambda s, x: if_(list(x.shape)[1] == 3 and tuple(x.shape)[1] == 3, s, x),
    "text": lambda s, x: if_(f"{x.shape[1]}" == "3" and str(x.shape[1]) == "3", s, x),
    "old text": lambda s, x: if_("%d" % x.shape[1] == "3" and "{:>2}".format(x.shape[1]) == " 3", s, x),  # noqa: UP031, UP032
    "a key": lambda s, x: {3: both, 4: otherwise}[x.shape[1]](s, x),
    "the matched shape": matched_shape,
    "for each of a range": lambda s, x: sum(both(s, x[..., i : i + 1]) for i in range(x.shape[-1])),
    "for each row": lambda s, x: torch.cat([both(s, row[None]) for row in x]),
    "for each, counted": lambda s, x: torch.cat([both(s, row[None]) * i for i, row in enumerate(x)]),
    "for each, backwards": lambda s, x: torch.cat([both(s, row[None]) for row in reversed(x)]),
    "its length": lambda s, x: both(s, x) * len(x),
    "NumPy's root": lambda s, x: both(s, x) * float(np.sqrt(x.shape[-1])),
    "rounded": lambda s, x: both(s, x) * round(x.shape[-1] * 0.4),
    "sums, least and most": mixed_sums,
    "windows": windows,
    "too few are unpacked": tried_to_unpack,
    "unpacked with a star": positional,
    "equal tuples": lambda s, x: if_(x.shape[:0] == () and (x.shape[1:1]) == torch.Size([]), s, x),
    "halves": halves,
    "shrinking": shrinking,
    "its dtype, by identity": lambda s, x: if_(first(s, x).dtype is torch.float64, s, x),
    "its place, by identity": lambda s, x: if_(first(s, x).is_cuda is not True, s, x),
    "its dtype": lambda s, x: if_(x.dtype == torch.float64 and x.dtype.is_floating_point, s, x),
    "its device": lambda s, x: if_(x.device.type == "cpu" and not x.is_cuda, s, x),
    "its axes": lambda s, x: if_(x.dim() == 4 and x.ndim == 4, s, x),
    "how many": lambda s, x: if_(x.numel() > 0, s, x),
    "is it floating": lambda s, x: if_(x.is_floating_point() and torch.is_floating_point(x), s, x),
    "all and any": lambda s, x: if_(all(n > 0 for n in x.shape) and any(n == 3 for n in x.shape), s, x),
}  # fmt: skip


def tracing() -> bool:
    return torch.fx._symbolic_trace.is_fx_tracing()


def caught_index(s: Net, x: Tensor) -> Tensor:
    try:
        return both(s, x) * x.shape[7]
    except IndexError:
        return both(s, x)


def suppressed_index(s: Net, x: Tensor) -> Tensor:
    y = both(s, x)
    with contextlib.suppress(IndexError):
        y = y * y.shape[7]
    return y


def caught_unpacking(s: Net, x: Tensor) -> Tensor:
    n: float
    try:
        _, _, n = (x * 2.0).shape
    except ValueError:
        n = 3.0
    return both(s, x) * n


CASES = {
    **{name: Case(run) for name, run in QUESTIONS.items()},
    "no items": Case(tried_to_count, STAYS),
    "an index that is caught": Case(caught_index),
    "an index that is suppressed": Case(suppressed_index),
    "an unpacking that is caught": Case(caught_unpacking, STAYS, sized=FOLDS),
    **{name: Case(run, STAYS, sized=FOLDS) for name, run in NEEDS_SIZES.items()},
}
