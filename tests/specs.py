"""Networks as values: a small language of frozen dataclasses, and the modules they stand for.

A specification is valid for every number of channels: group counts are rounded to a divisor, branches
that are added get a 1x1 convolution where their channel counts differ.  Spatial sizes are not repaired:
a network may refuse some input sizes, as real ones do.  `repr` leaves out defaults, so it is short
enough to be a reproducer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from math import gcd
from typing import Any

Pair = tuple[int, int]


class Spec:
    """Short repr, and the simpler specifications a shrinker may try."""

    def __repr__(self) -> str:
        given = [f for f in fields(self) if getattr(self, f.name) != _default(f)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"

    def children(self) -> Iterator[Node]:
        """Nodes directly inside."""
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Part):
                    yield item.node
                elif isinstance(item, Spec):
                    yield item  # type: ignore[misc]

    def simpler(self) -> Iterator[Any]:
        """Every specification one simplification away, the boldest first."""
        if not isinstance(self, Network | Part):
            if self != Identity():
                yield Identity()
            yield from self.children()
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            yield from (replace(self, **{f.name: v}) for v in _simpler_values(value, _default(f)))  # type: ignore[type-var]

    def holds(self, *kinds: type[Spec]) -> bool:
        """Whether a node of one of these kinds is anywhere inside."""
        return isinstance(self, kinds) or any(child.holds(*kinds) for child in self.children())

    def size(self) -> int:
        """What a shrinker minimises: nodes first, then fields that differ from their default."""
        differing = sum(getattr(self, f.name) != _default(f) for f in fields(self))  # type: ignore[arg-type]
        return 10 + differing + sum(child.size() for child in self.children())


def _default(f: Any) -> Any:
    return f.default


def _simpler_values(value: Any, default: Any) -> Iterator[Any]:
    if value != default and not isinstance(default, Spec):
        yield default
    if isinstance(value, Spec):
        yield from value.simpler()
    elif isinstance(value, tuple) and any(isinstance(item, Spec) for item in value):
        for i in range(len(value)):
            yield value[:i] + value[i + 1 :]
        for i, item in enumerate(value):
            yield from ((*value[:i], simple, *value[i + 1 :]) for simple in item.simpler())
    elif isinstance(value, tuple) and isinstance(default, tuple) and len(value) == len(default):
        yield from ((*value[:i], d, *value[i + 1 :]) for i, d in enumerate(default) if value[i] != d)
    elif isinstance(value, tuple):
        yield from (value[:i] + value[i + 1 :] for i in range(len(value)))


# --- the language ---------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Identity(Spec):
    """x."""


@dataclass(frozen=True, repr=False)
class Conv(Spec):
    """Convolution; `before` and `after` pad per axis, negative crops; out=0 keeps the channel count."""

    out: int = 0
    kernel: Pair = (1, 1)
    before: Pair = (0, 0)
    after: Pair = (0, 0)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False
    mode: str = "zeros"
    same: bool = False  # padding="same" instead of the numbers


@dataclass(frozen=True, repr=False)
class ConvTranspose(Spec):
    """Transposed convolution."""

    out: int = 0
    kernel: int = 2
    stride: int = 2
    padding: int = 0
    groups: int = 1
    bias: bool = False


@dataclass(frozen=True, repr=False)
class Norm(Spec):
    """Batch norm: module, functional with buffers, frozen (torchvision), act (timm), stateless (train)."""

    spelling: str = "module"
    affine: bool = True


@dataclass(frozen=True, repr=False)
class Scale(Spec):
    """A constant times, plus, divided or subtracted, in one of several spellings and shapes."""

    spelling: str = "mul"


@dataclass(frozen=True, repr=False)
class AvgPool(Spec):
    """Average pooling."""

    kernel: int = 2
    stride: int = 1
    padding: int = 0
    count_include_pad: bool = True
    ceil_mode: bool = False
    divisor: int = 0


@dataclass(frozen=True, repr=False)
class Pad(Spec):
    """Padding on its own; spelling "assign" writes a border of one value per channel, one pixel wide."""

    before: Pair = (1, 1)
    after: Pair = (1, 1)
    value: float = 0.0
    spelling: str = "constant"


@dataclass(frozen=True, repr=False)
class Permute(Spec):
    """A fixed order of the channels: shuffle, flip, index or roll."""

    spelling: str = "shuffle"


@dataclass(frozen=True, repr=False)
class Resize(Spec):
    """Nearest upsampling, pixel shuffle, pixel unshuffle, or strided slicing."""

    spelling: str = "nearest"


@dataclass(frozen=True, repr=False)
class Nothing(Spec):
    """An identity that takes code: dropout, contiguous, same-dtype to, view, clone; most return x itself."""

    spelling: str = "dropout"


@dataclass(frozen=True, repr=False)
class Act(Spec):
    """A non-linearity."""

    spelling: str = "relu"


@dataclass(frozen=True, repr=False)
class MaxPool(Spec):
    """Max pooling 3x3 that keeps the size."""


@dataclass(frozen=True, repr=False)
class Gate(Spec):
    """Squeeze and excite, or a weight that depends on the input ("dynamic")."""

    spelling: str = "squeeze"


@dataclass(frozen=True, repr=False)
class GroupNorm(Spec):
    """Layer norm over channels of each pixel ("layer"), or group norm with one group ("group")."""

    spelling: str = "group"


@dataclass(frozen=True, repr=False)
class Tokens(Spec):
    """Pixels as tokens through [batch norm,] linear [, batch norm], and back to an image."""

    out: int = 0
    norm_first: bool = False
    norm_last: bool = False
    bias: bool = False


@dataclass(frozen=True, repr=False)
class Generated(Spec):
    """3x3 convolution whose weight is an expression of parameters, or parametrized, or weight-normed."""

    spelling: str = "sum"


@dataclass(frozen=True, repr=False)
class Trick(Spec):
    """One of the steps in `tests.tricks`."""

    spelling: str = "numbers"


@dataclass(frozen=True, repr=False)
class Shared(Spec):
    """The network's shared 3x3 convolution number `key`, then a batch norm of one's own.

    `tied`: a convolution of one's own that holds the shared one's weight.
    """

    key: int = 0
    tied: bool = False
    norm: bool = True


@dataclass(frozen=True, repr=False)
class Serial(Spec):
    """One after the other."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True, repr=False)
class Twice(Spec):
    """One module, called twice in a row."""

    body: Node = field(default=Identity())


@dataclass(frozen=True, repr=False)
class Parallel(Spec):
    """All branches on the same input; `how` is "cat" or one of the spellings of a sum or product."""

    branches: tuple[Node, ...] = (Identity(),)
    how: str = "add"


@dataclass(frozen=True, repr=False)
class Part(Spec):
    """A share of the channels and what is done to it."""

    node: Node = field(default=Identity())
    weight: int = 1


@dataclass(frozen=True, repr=False)
class Split(Spec):
    """Channels divided among the parts by weight; results joined as in `Parallel`.

    `order` of the results: "same", "reversed", "dropped" (last one left out), "doubled" (first twice).
    """

    parts: tuple[Part, ...] = (Part(), Part())
    spelling: str = "split"
    how: str = "cat"
    order: str = "same"


Node = (
    Identity | Conv | ConvTranspose | Norm | Scale | AvgPool | Pad | Permute | Resize | Nothing | Act
    | MaxPool | Gate | GroupNorm | Tokens | Generated | Trick | Shared | Serial | Twice | Parallel | Split
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Head(Spec):
    """Global pooling and linear classifiers; with more than one, their results are averaged."""

    classes: int = 3
    heads: int = 1
    norm: bool = False
    pool: str = "mean"
    average: str = "half"


@dataclass(frozen=True, repr=False)
class Network(Spec):
    """Steps one after the other; `taps` are steps whose results are returned too (modulo their number)."""

    channels: int = 4
    steps: tuple[Node, ...] = ()
    taps: tuple[int, ...] = ()
    head: Head | None = None
    returns: str = "tuple"


def divisor(requested: int, *counts: int) -> int:
    """The largest common divisor of `counts` that is not above `requested`."""
    common = gcd(*counts)
    return max(d for d in range(1, common + 1) if common % d == 0 and d <= max(requested, 1))


def shares(channels: int, weights: tuple[int, ...]) -> list[int]:
    """Channels divided by weight, at least one each; fewer parts where there are too few channels."""
    weights = weights[:channels]
    total, left, out = sum(weights), channels, []
    for i, w in enumerate(weights):
        rest = len(weights) - i - 1
        size = left if rest == 0 else max(1, min(channels * w // total, left - rest))
        out.append(size)
        left -= size
    return out
