"""The affine algebra: what a piece of a network computes, as one convolution in normal form.

    y[o] = bias[o] + sum_k planes[o, k] (*) x~[reads[o, k]] + sum_i ones_i[o] (*) 1~

`x~` is x extended beyond its border (by zeros unless `padding_mode` says otherwise), `1~` is a plane
that is one inside the image and zero outside.  The last sum is the *border term*: a constant that was
added before a zero-padded convolution.  With a `zoom` z, `x` is spread before: z - 1 zeros stand between
neighbouring pixels (a transposed convolution of stride z).

The *structure* (who reads whom, kernel sizes, strides, which border terms exist) is computed at once
from integers; the *values* only when asked for.  So every decision is made without looking at weights.

This file holds the type and the operations that always succeed.  `repfx.algebra.constructors` builds maps,
`repfx.algebra.serial` composes them, `repfx.algebra.parallel` adds and concatenates them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, reduce, wraps
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray

from repfx.algebra.incidence import Incidence, Ints
from repfx.algebra.kernels import gathered, scattered, taken
from repfx.algebra.values import Values, evaluate, multiplied
from repfx.decline import Decline, Reason

ZEROS = "zeros"
REMEMBERED = 4096  # structures whose derivations are kept, for the alike blocks of a network


@dataclass(frozen=True)
class Border:
    """Window of one border term: tap t looks at `n stride + t - before` of the plane of ones.

    The plane is as large as the input, or `longer`: a constant on a map that padding has enlarged or an
    unpadded kernel has cut (negative) is one inside that map.  A `free` axis is not looked at: along it the
    plane of ones has no border.
    """

    kernel: tuple[int, ...]
    before: tuple[int, ...]
    free: tuple[bool, ...]
    longer: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        given = self.longer or (0,) * len(self.free)
        object.__setattr__(self, "longer", tuple(0 if free else size for free, size in zip(self.free, given)))


@dataclass(frozen=True)
class Extension:
    """What a map reads beyond the border of the image: zeros, or what a padding mode of PyTorch's puts there."""

    mode: str = ZEROS
    laps: bool = False  # circular, and it may go round more than once, which torch's own refuses

    @staticmethod
    def shared(extensions: Sequence[Extension]) -> Extension:
        """The extension of maps of one image, of which all that pad pad alike."""
        modes = [extension.mode for extension in extensions if extension.mode != ZEROS]
        return Extension(modes[0] if modes else ZEROS, any(extension.laps for extension in extensions))

    def of(self, inner: Extension) -> Extension:
        """The extension of a map that extends so what a map with the extension `inner` gives."""
        mode = inner.mode if self.mode == ZEROS else self.mode
        twice_around = self.mode == inner.mode == "circular"
        return Extension(mode, self.laps or inner.laps or twice_around)


_ALL = np.ones((), bool)  # taps in use, where nothing else is said


@dataclass(frozen=True, eq=False)
class AffineConv:
    """One affine map between feature maps, in normal form.  Built by `repfx.algebra.constructors`.

    The output size on each axis is `(H + extent) // stride + 1`; tap t of output n reads input
    position `n stride + t - before`.  No spatial axes (empty tuples): a Linear.  With a zoom z, H is the
    size of the spread input, (h - 1) z + 1, and the stride is one.
    """

    in_channels: int
    incidence: Incidence
    kernel: tuple[int, ...]
    before: tuple[int, ...]
    stride: tuple[int, ...]
    extent: tuple[int, ...]
    biased: bool
    inputs: tuple[AffineConv, ...] = field(repr=False)
    rule: Callable[[Sequence[Values]], Values] = field(repr=False)
    borders: tuple[Border, ...] = ()
    extension: Extension = Extension()
    multiple: tuple[int, ...] = ()  # the input size is a multiple of this, or the original raises
    selection: Ints | None = field(default=None, repr=False)  # pure copies: output o is input selection[o]
    zoom: tuple[int, ...] = ()  # distance of neighbouring pixels in the spread input
    support: NDArray[np.bool_] = field(default_factory=lambda: _ALL, repr=False)  # taps in use

    def __post_init__(self) -> None:
        self._complete()
        violated = [rule for rule, holds in self._invariants() if not holds]
        if violated:
            raise AssertionError("; ".join(violated))
        if not any(self.pads(axis) for axis in range(self.axes)):
            object.__setattr__(self, "extension", Extension())  # what is not padded is padded in no particular way

    def _complete(self) -> None:
        """What is not said is the plain thing."""
        ones = (1,) * self.axes
        object.__setattr__(self, "multiple", self.multiple or ones)
        object.__setattr__(self, "zoom", self.zoom or ones)
        if self.support is _ALL:
            object.__setattr__(self, "support", np.ones(self.kernel, bool))

    def _invariants(self) -> Iterator[tuple[str, bool]]:
        """What holds of every map."""
        per_axis = [self.before, self.stride, self.extent, self.multiple, self.zoom]
        per_axis += [window for border in self.borders for window in (border.kernel, border.before, border.free)]
        yield "one entry per spatial axis", all(len(entries) == self.axes for entries in per_axis)
        yield "one entry of the support per tap", self.support.shape == self.kernel
        yield "a constant at the border is a constant", self.biased or not self.borders
        yield "a spread input is not strided over", not self.is_zoomed or max(self.stride) == 1
        yield "copies are per pixel and add nothing", self.selection is None or (self.is_pointwise and not self.biased)

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @cached_property
    def structure(self) -> Hashable:
        """Everything but the numbers: maps of equal structure are written back alike."""
        return _named((
            self.in_channels, self.incidence, self.kernel, self.before, self.stride, self.extent, self.biased,
            self.borders, self.extension, self.multiple, self.zoom,
            None if self.selection is None else self.selection.tobytes(), self.support.tobytes(),
        ))  # fmt: skip

    @cached_property
    def bare(self) -> AffineConv:
        """The structure alone: a map without numbers."""
        return replace(self, inputs=(), rule=_no_numbers)

    def fed(self, inputs: Sequence[AffineConv]) -> AffineConv:
        """The same map of the values of other maps, of the same structures."""
        other = object.__new__(AffineConv)
        other.__dict__.update(self.__dict__)
        other.__dict__["inputs"] = tuple(inputs)
        return other

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return self.incidence.outputs

    @cached_property
    def after(self) -> tuple[int, ...]:
        """Padding after the last position; negative crops."""
        return tuple(e - b + k for e, b, k in zip(self.extent, self.before, self.kernel))

    @cached_property
    def is_pointwise(self) -> bool:
        """One tap, no stride, no padding: a per-pixel map."""
        plain = zip(self.kernel, self.stride, self.before, self.extent)
        return not self.is_zoomed and all(k == 1 and s == 1 and b == 0 and e == -1 for k, s, b, e in plain)

    @cached_property
    def is_zoomed(self) -> bool:
        """Whether the input is spread: a transposed convolution with a stride."""
        return any(z > 1 for z in self.zoom)

    @cached_property
    def is_identity(self) -> bool:
        """Whether the output is the input, by structure."""
        return self.selection is not None and np.array_equal(self.selection, np.arange(self.in_channels))

    @property
    def is_given(self) -> bool:
        """Whether its numbers are the network's or a constant's, neither copies nor computed from other maps."""
        return not self.inputs and self.selection is None

    @property
    def padding_mode(self) -> str:
        """How the image is extended, in PyTorch's words."""
        return self.extension.mode

    def values(self) -> Values:
        """Evaluate the numbers: planes (O, K, *kernel), bias (O,), one tensor per border term."""
        return evaluate(self)

    def pads(self, axis: int) -> bool:
        """Whether any tap can look beyond the border on this axis."""
        return self.before[axis] > 0 or self.after[axis] > 0


@lru_cache(REMEMBERED)
def _named(content: tuple[Hashable, ...]) -> Hashable:
    """One short name for equal contents, which is compared at once."""
    return object()


def _no_numbers(values: Sequence[Values]) -> Values:
    raise AssertionError("a bare structure has no numbers")


def by_structure(
    combine: Callable[[Sequence[AffineConv]], AffineConv | Decline],
) -> Callable[[Sequence[AffineConv]], AffineConv | Decline]:
    """`combine`, done once for all maps of equal structure.

    It is given bare structures, so what it returns, a map of the values of the given maps or a refusal, cannot
    rest on anything else.
    """
    known: dict[tuple[Hashable, ...], AffineConv | Decline] = {}

    @wraps(combine)
    def combined(parts: Sequence[AffineConv]) -> AffineConv | Decline:
        key = tuple([part.structure for part in parts])
        found = known.get(key)
        if found is None:
            if len(known) >= REMEMBERED:
                known.clear()
            found = known[key] = combine([part.bare for part in parts])
        return found if isinstance(found, Decline) else found.fed(parts)

    return combined


def take(map_: AffineConv, outputs: Ints) -> AffineConv:
    """Only these output channels, in this order (a slice, a permutation, duplicates)."""
    incidence = map_.incidence.take(outputs)

    def rule(values: Sequence[Values]) -> Values:
        (v,) = values
        return Values(
            taken(v.given, outputs, incidence.width),
            gathered(v.bias, outputs),
            tuple(gathered(one, outputs) for one in v.ones),
        )

    selection = None if map_.selection is None else map_.selection[outputs]
    return replace(map_, incidence=incidence, inputs=(map_,), rule=rule, selection=selection)


def repeated(map_: AffineConv, times: int) -> AffineConv:
    """A scale and shift per channel, for channels that stand for `times` channels each: c -> c times + i."""
    assert map_.is_pointwise
    assert map_.incidence.is_depthwise

    def rule(values: Sequence[Values]) -> Values:
        (v,) = values
        return Values(v.planes.repeat_interleave(times, 0), v.bias.repeat_interleave(times, 0))

    channels = map_.in_channels * times
    return replace(
        map_,
        in_channels=channels,
        incidence=Incidence.selecting(np.arange(channels)),
        inputs=(map_,),
        rule=rule,
        selection=None,
    )


def scaled(map_: AffineConv, factor: float) -> AffineConv:
    """factor * map."""

    def rule(values: Sequence[Values]) -> Values:
        (v,) = values
        planes = multiplied(v.given, factor)
        return Values(planes, v.bias * factor, tuple(one * factor for one in v.ones))

    return replace(map_, inputs=(map_,), rule=rule, selection=None)


def restrict(map_: AffineConv, start: int, stop: int) -> AffineConv:
    """The map seen by inputs start..stop alone, all others being zero; the constants are kept."""
    incidence = map_.incidence.restricted(start, stop)
    places = map_.incidence.places_after_restriction(start, stop)

    def rule(values: Sequence[Values]) -> Values:
        (v,) = values
        return replace(v, given=scattered(v.planes, places, incidence.width))

    return replace(
        map_,
        in_channels=stop - start,
        incidence=incidence,
        inputs=(map_,),
        rule=rule,
        selection=None,
    )


def linear_part(map_: AffineConv) -> AffineConv:
    """The map without its constants."""

    def rule(values: Sequence[Values]) -> Values:
        (v,) = values
        return Values(v.given, torch.zeros_like(v.bias))

    return replace(map_, biased=False, borders=(), inputs=(map_,), rule=rule)


def over(map_: AffineConv, axes: int) -> AffineConv:
    """A per-pixel map over another number of spatial axes: a 1x1 convolution as a Linear, and back."""
    if not map_.is_pointwise or map_.borders:
        raise AssertionError("only a per-pixel map means the same over any axes")
    if map_.axes == axes:
        return map_

    def rule(values: Sequence[Values]) -> Values:
        (v,) = values
        return Values(v.planes.reshape(*v.planes.shape[:2], *(1,) * axes), v.bias)

    return replace(
        map_,
        kernel=(1,) * axes,
        before=(0,) * axes,
        stride=(1,) * axes,
        extent=(-1,) * axes,
        multiple=(1,) * axes,
        zoom=(1,) * axes,
        support=_ALL,
        inputs=(map_,),
        rule=rule,
    )


@dataclass(frozen=True)
class Grid:
    """The smallest regular grid of taps, per axis, that holds the support of a map."""

    taps: tuple[int, ...]
    first: tuple[int, ...]
    dilation: tuple[int, ...]


def grid_of(map_: AffineConv) -> Grid:
    """(taps, first tap, dilation) on each axis."""
    taps, first, dilation = [], [], []
    for axis in range(map_.axes):
        others = tuple(a for a in range(map_.axes) if a != axis)
        places = np.flatnonzero(map_.support.any(axis=others))
        start, end = (int(places[0]), int(places[-1])) if len(places) else (0, 0)
        step = reduce(gcd, (int(p) - start for p in places[1:]), 0) or 1
        first.append(start)
        dilation.append(step)
        taps.append((end - start) // step + 1)
    return Grid(tuple(taps), tuple(first), tuple(dilation))


def transposed_padding(map_: AffineConv) -> tuple[tuple[int, int], ...] | Decline:
    """(padding, output_padding) per axis of the transposed convolution that a zoomed map is."""
    grid, found = grid_of(map_), []
    for axis, zoom in enumerate(map_.zoom):
        before = map_.before[axis] - grid.first[axis]
        length = grid.dilation[axis] * (grid.taps[axis] - 1)
        padding, more = length - before, map_.extent[axis] + length + 1 - 2 * before
        if padding < 0 or not 0 <= more < max(zoom, grid.dilation[axis] if grid.taps[axis] > 1 else more + 1):
            fact = "is padded or cropped as no transposed convolution can be"
            return Decline(Reason.UNSUPPORTED, fact)
        found.append((padding, more))
    return tuple(found)


def home(values: Sequence[Values]) -> torch.device:
    """The device to compute on: copies and pads are made on the CPU and follow the weights."""
    cpu = torch.device("cpu")
    return next((v.device for v in values if v.device != cpu), cpu)


def moved(values: Sequence[Values]) -> list[Values]:
    """All values on one device."""
    device = home(values)
    if all(v.device == device for v in values):
        return list(values)
    return [Values(v.planes.to(device), v.bias.to(device), tuple(o.to(device) for o in v.ones)) for v in values]


def times(numbers: Sequence[int]) -> str:
    """Sizes in words: 3x3; "1" where there is no axis."""
    return "x".join(str(n) for n in numbers) or "1"
