"""The lifted vocabulary: what one value of a graph computes, as a closed union.

Every node of a traced graph is one of these.  `Affine`, `Sum`, `Concat` and `Alias` are affine maps of
convolution kind; `Resampling` and `Normalised` are not, but something in them is.  A consumer matches on
the union and `assert_never`s the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

from torch import Tensor, fx

from repfx.algebra import AffineConv, Ints
from repfx.decline import Decline


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


class Resolution(Enum):
    """How many positions a resampling makes of those it reads, for every input size."""

    LOWER = "at most as many"  # a pooling, a mean
    SAME = "as many"  # a transposition, a flattening
    HIGHER = "at least as many"  # an upsampling by a factor
    UNKNOWN = "fewer or more"  # a resize to a size that is given otherwise

    def then(self, other: Resolution) -> Resolution:
        """One resampling after the other."""
        if self is other or other is Resolution.SAME:
            return self
        return other if self is Resolution.SAME else Resolution.UNKNOWN

    @property
    def density(self) -> Fraction:
        """Positions of the source for one of the value, in order of magnitude: what "cheaper" is decided with."""
        return {Resolution.LOWER: Fraction(4), Resolution.HIGHER: Fraction(1, 4)}.get(self, Fraction(1))


@dataclass(frozen=True, eq=False)
class Resampling:
    """y_c = R x_c, the same linear map R over positions for every channel c, whose rows sum to one.

    So it commutes with every per-pixel affine map A, constants included: A(R x) = R(A x).  Upsampling,
    pooling that divides by what it sees, a mean over axes, a selection of one position, and (R a mere
    reordering) transposing, flattening, squeezing.  `view(n)` is the number of spatial axes of the value
    where the source is seen over n of them, None where R would mix channels seen so.  `first`: a channel
    order along axis 1 passes through to axis 1.  `pinned`: the operation names the number of channels, so
    only maps that keep it may pass.  `decline` says why R itself is no convolution.
    """

    source: fx.Node
    view: Callable[[int], int | None] = field(repr=False)
    resolution: Resolution = Resolution.UNKNOWN
    first: bool = False
    pinned: bool = False
    decline: Decline | None = None

    def passes(self, map_: AffineConv) -> bool:
        """Whether the operation accepts what is on the other side of this map."""
        return not self.pinned or map_.in_channels == map_.out_channels

    def unseen(self, axes: int) -> int | None:
        """Number of spatial axes of the source where the value has this many."""
        return next((before for before in range(4) if self.view(before) == axes), None)


@dataclass(frozen=True, eq=False)
class Normalised:
    """scale * normalised(source) + shift per channel; only the scale and shift are affine.

    `build(axes)` gives them over that many spatial axes, None where the channels lie elsewhere (`first`:
    along axis 1, else the last); `plain` is the function, with its arguments after the source, that
    normalises alone.
    """

    source: fx.Node
    channels: int
    first: bool
    build: Callable[[int], AffineConv | None] = field(repr=False)
    plain: tuple[Callable[..., Tensor], tuple[object, ...]] = field(repr=False)
    parameters: int


Op = Affine | Sum | Concat | Alias | Constant | Input | Resampling | Normalised | Opaque
ANY: tuple[type[Op], ...] = (Affine, Sum, Concat, Alias, Input, Resampling, Normalised, Opaque)  # of the input


def affine_sources(op: Op) -> tuple[fx.Node, ...]:
    """The values that an affine operation reads; empty for the others."""
    match op:
        case Affine(source=source) | Alias(source=source):
            return (source,)
        case Sum(terms=terms):
            return tuple(node for node, _ in terms)
        case Concat(parts=parts):
            return parts
        case Constant() | Input() | Resampling() | Normalised() | Opaque():
            return ()
