"""The lifted vocabulary: what one value of a graph computes, as a closed union.

Every node of a traced graph is one of these.  All but `Opaque` are affine; a consumer matches on the
union and `assert_never`s the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx

from repfx.affine import AffineConv
from repfx.decline import Decline
from repfx.incidence import Ints


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map of one value.  `build(axes, channels)` gives it over that many spatial axes.

    `axes` is None where the operation means the same over any number of them (a scalar factor, a
    slice of channels); `channels` is the channel count of the source, where the caller knows it.
    """

    source: fx.Node
    axes: int | None
    build: Callable[[int, int | None], AffineConv | Decline] = field(repr=False)


@dataclass(frozen=True)
class Sum:
    """sum_i factor_i value_i + shift, element by element, all of one shape."""

    terms: tuple[tuple[fx.Node, float], ...]
    shift: float = 0.0


@dataclass(frozen=True, eq=False)
class Concat:
    """Channel concatenation.  `last` if along the last axis (tokens), `first` if along axis 1.

    With `order`, output channel o is channel order[o] of the concatenation (an interleaving stack).
    """

    parts: tuple[fx.Node, ...]
    first: bool
    last: bool
    order: Ints | None = None


@dataclass(frozen=True)
class Alias:
    """The same value under another name: eval-mode dropout, Identity, contiguous."""

    source: fx.Node


@dataclass(frozen=True)
class Constant:
    """Depends on parameters and buffers only."""


@dataclass(frozen=True)
class Input:
    """A model input."""


@dataclass(frozen=True)
class Opaque:
    """Not affine, or not known to be; `decline` says why where a user would want to know.

    `inputs` lists the values of which output channel c uses channel c alone, in a way that is the same
    for every c (an activation, a pooling, a gate): a channel order passes through.  Else it is empty.
    """

    decline: Decline | None = None
    inputs: tuple[fx.Node, ...] = ()


Op = Affine | Sum | Concat | Alias | Constant | Input | Opaque


def affine_sources(op: Op) -> tuple[fx.Node, ...]:
    """The values that an affine operation reads; empty for the others."""
    match op:
        case Affine(source=source) | Alias(source=source):
            return (source,)
        case Sum(terms=terms):
            return tuple(node for node, _ in terms)
        case Concat(parts=parts):
            return parts
        case Constant() | Input() | Opaque():
            return ()
