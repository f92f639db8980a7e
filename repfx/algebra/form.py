"""The executed form of an affine map: which convolution, linear, copy or scale writes it.

Groups, dilation and padding are *recovered* here from the structure of the map:

    output = order(conv(gather(x)) + border)

The groups are the blocks of channels that read each other.  Where the blocks do not lie in order,
the inputs are gathered or the outputs put in order by an index; where they have no equal shape, the
next coarser contiguous blocks are used.  Structure only; nothing here looks at weights.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from math import gcd, prod

import numpy as np

from repfx.algebra.affine import REMEMBERED, ZEROS, AffineConv, Grid, grid_of, times, transposed_padding
from repfx.algebra.incidence import Incidence, Ints
from repfx.decline import Decline


class Kind(Enum):
    """What executes the map."""

    IDENTITY = "identity"
    COPY = "copy"  # slice or index of channels
    SCALE = "scale"  # per-channel scale and shift
    CONV = "conv"
    LINEAR = "linear"
    TRANSPOSED = "transposed conv"


@dataclass(frozen=True, eq=False)
class Form:
    """One executed form.  `kernel`, `dilation`, `pads` have one entry per spatial axis."""

    kind: Kind
    in_channels: int
    out_channels: int
    groups: int = 1
    kernel: tuple[int, ...] = ()  # taps, dilation not counted
    first: tuple[int, ...] = ()  # position of the first tap in the map's window
    dilation: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()  # of a transposed convolution: the zoom
    output_padding: tuple[int, ...] = ()  # of a transposed convolution
    pads: tuple[tuple[int, int], ...] = ()  # (before, after); negative crops
    padding_mode: str = ZEROS
    laps: bool = False
    biased: bool = False
    borders: int = 0
    border_parameters: int = 0
    gather: Ints | None = None  # inputs to read, in this order; None: all
    order: Ints | None = None  # output o is convolution output order[o]; None: in order

    @property
    def gathers(self) -> bool:
        """Whether inputs are copied to be read; a contiguous slice is a view and free."""
        return self.gather is not None and not contiguous(self.gather)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output reads one input channel."""
        return self.kind in (Kind.CONV, Kind.LINEAR, Kind.TRANSPOSED) and self.groups == self.in_channels > 1

    @property
    def padded_apart(self) -> bool:
        """Whether the padding is no symmetric, non-negative one that a convolution takes itself."""
        return self.laps or any(before != after or before < 0 for before, after in self.pads)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per output position."""
        return -(-self.weights // prod(self.stride)) if self.kind is Kind.TRANSPOSED else self.weights

    @property
    def weights(self) -> int:
        """Elements of the emitted weight."""
        if self.kind not in (Kind.CONV, Kind.LINEAR, Kind.TRANSPOSED):
            return 0
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel)

    @property
    def parameters(self) -> int:
        """Parameters of the emitted module."""
        bias = self.out_channels if self.biased else 0
        scale = self.out_channels if self.kind is Kind.SCALE else 0
        return self.weights + bias + scale + self.border_parameters

    def __str__(self) -> str:
        if self.kind in (Kind.IDENTITY, Kind.SCALE, Kind.COPY):
            return f"{self.kind.value} of {self.out_channels} channels"
        text = f"{self.kind.value} {self.in_channels}->{self.out_channels}"
        ones = (1,) * len(self.kernel)
        numbers = [
            (times(self.kernel), self.kernel != ()),
            (f"stride {times(self.stride)}", self.stride != ones),
            (f"dilation {times(self.dilation)}", self.dilation != ones),
            (f"groups {self.groups}", self.groups > 1),
        ]
        extras = [
            ("sliced inputs", self.gather is not None and not self.gathers),
            ("gathered inputs", self.gathers),
            ("explicit padding", self.padded_apart),
            ("border term", bool(self.borders)),
            ("channel order", self.order is not None),
        ]
        said = [text, *(words for words, present in numbers if present)]
        return " + ".join([" ".join(said), *(name for name, present in extras if present)])


_KNOWN: dict[Hashable, Form] = {}


def form_of(map_: AffineConv) -> Form:
    """The cheapest executed form of a map; maps of one structure share it."""
    form = _KNOWN.get(map_.structure)
    if form is None:
        if len(_KNOWN) >= REMEMBERED:
            _KNOWN.clear()
        form = _KNOWN[map_.structure] = _derived(map_)
    return form


def _derived(map_: AffineConv) -> Form:
    if map_.selection is not None:
        return _copy_form(map_, map_.selection)
    if _is_scale(map_):
        return Form(Kind.SCALE, map_.in_channels, map_.out_channels, biased=map_.biased)
    blocks, grid = _blocks(map_), grid_of(map_)
    return _transposed(map_, grid, blocks) if map_.is_zoomed else _convolution(map_, grid, blocks)


def _is_scale(map_: AffineConv) -> bool:
    """Whether every channel is scaled and shifted, and that is all."""
    in_place = map_.in_channels == map_.out_channels and map_.incidence.one_to_one
    return map_.is_pointwise and in_place and not map_.borders


def _copy_form(map_: AffineConv, selection: Ints) -> Form:
    if map_.is_identity:
        return Form(Kind.IDENTITY, map_.in_channels, map_.out_channels)
    return Form(Kind.COPY, map_.in_channels, map_.out_channels, gather=selection)


def _convolution(map_: AffineConv, grid: Grid, blocks: _Blocks) -> Form:
    last = [f + d * (k - 1) + 1 for f, d, k in zip(grid.first, grid.dilation, grid.taps)]
    pads = tuple(
        (b - f, e + end - b) for b, f, e, end in zip(map_.before, grid.first, map_.extent, last)
    )  # fmt: skip
    return Form(
        Kind.CONV if map_.axes else Kind.LINEAR,
        blocks.inputs(map_),
        map_.out_channels,
        groups=blocks.groups,
        kernel=grid.taps,
        first=grid.first,
        dilation=grid.dilation,
        stride=map_.stride,
        pads=pads,
        padding_mode=map_.padding_mode,
        laps=map_.extension.laps,
        biased=map_.biased,
        borders=len(map_.borders),
        border_parameters=sum(map_.out_channels * prod(b.kernel) for b in map_.borders),
        gather=blocks.gather,
        order=blocks.order,
    )


def _transposed(map_: AffineConv, grid: Grid, blocks: _Blocks) -> Form:
    found = transposed_padding(map_)
    assert not isinstance(found, Decline), "checked when the map was made"
    assert not map_.borders
    more = tuple(m for _, m in found)
    return Form(
        Kind.TRANSPOSED,
        blocks.inputs(map_),
        map_.out_channels,
        groups=blocks.groups,
        kernel=grid.taps,
        first=grid.first,
        # one tap has any dilation; torch wants one larger than the output padding
        dilation=tuple(max(d, m + 1) if k == 1 else d for d, k, m in zip(grid.dilation, grid.taps, more)),
        stride=map_.zoom,
        output_padding=more,
        pads=tuple((p, p) for p, _ in found),
        biased=map_.biased,
        gather=blocks.gather,
        order=blocks.order,
    )


def contiguous(indices: Ints) -> bool:
    """Whether an index is a slice of step one."""
    return len(indices) > 0 and bool(np.all(np.diff(indices) == 1))


@dataclass(frozen=True)
class _Blocks:
    """How channels are grouped: see the module docstring."""

    groups: int
    gather: Ints | None = None  # inputs to read, in this order; None: all, in order
    order: Ints | None = None  # of the outputs; None: in order

    def inputs(self, map_: AffineConv) -> int:
        """How many channels the convolution reads."""
        return map_.in_channels if self.gather is None else len(self.gather)


def _blocks(map_: AffineConv) -> _Blocks:
    incidence = map_.incidence
    if not map_.axes:
        return _Blocks(1)  # a Linear has no groups
    if _has_equal_blocks(incidence):
        flat, order = incidence.sets.reshape(-1), np.argsort(incidence.classes, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(map_.out_channels)
        return _Blocks(len(incidence.sets), _unless_in_order(flat, map_.in_channels), _unless_in_order(place))
    if incidence.is_depthwise and (incidence.sizes == 1).all():
        return _Blocks(map_.out_channels, incidence.firsts)
    return _contiguous_blocks(map_)


def _has_equal_blocks(incidence: Incidence) -> bool:
    """Whether the read sets are disjoint, of one size, and read by equally many outputs each."""
    readers = np.bincount(incidence.classes, minlength=len(incidence.sets))
    flat = incidence.sets.reshape(-1)
    disjoint = (incidence.sizes == incidence.width).all() and len(np.unique(flat)) == len(flat)
    return bool(disjoint and (readers == readers[0]).all())


def _unless_in_order(indices: Ints, count: int | None = None) -> Ints | None:
    """An index of so many channels; None where it is all of them in order."""
    return None if np.array_equal(indices, np.arange(len(indices) if count is None else count)) else indices


def _contiguous_blocks(map_: AffineConv) -> _Blocks:
    """The most groups of neighbouring channels that read only each other."""
    inputs, outputs, reads = map_.in_channels, map_.out_channels, map_.incidence.reads
    used = len(reads) or inputs
    gather = None if used == inputs else reads
    rank = np.arange(inputs) if gather is None else np.searchsorted(gather, np.arange(inputs))
    for groups in _divisors(gcd(used, outputs)):
        if _fits(map_, rank, used // groups, outputs // groups):
            return _Blocks(groups, gather)
    raise AssertionError("one group always fits")


def _fits(map_: AffineConv, rank: Ints, block_in: int, block_out: int) -> bool:
    """Whether each block of outputs reads only its own block of inputs."""
    rows = map_.incidence.rows
    owner = np.arange(map_.out_channels)[:, None] // block_out
    return bool(np.all((rows < 0) | (rank[rows.clip(0)] // block_in == owner)))


def _divisors(number: int) -> list[int]:
    return [d for d in range(number, 0, -1) if number % d == 0]
