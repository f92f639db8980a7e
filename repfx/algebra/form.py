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
from repfx.algebra.incidence import Ints
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
        if self.kernel:
            text += f" {times(self.kernel)}"
        if any(s != 1 for s in self.stride):
            text += f" stride {times(self.stride)}"
        if any(d != 1 for d in self.dilation):
            text += f" dilation {times(self.dilation)}"
        if self.groups > 1:
            text += f" groups {self.groups}"
        extras = [
            ("sliced inputs", self.gather is not None and not self.gathers),
            ("gathered inputs", self.gathers),
            ("explicit padding", self.padded_apart),
            ("border term", bool(self.borders)),
            ("channel order", self.order is not None),
        ]
        return " + ".join([text, *(name for name, present in extras if present)])


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
    copied = _copy_form(map_)
    if copied is not None:
        return copied
    depthwise_in_place = map_.in_channels == map_.out_channels and map_.incidence.one_to_one
    if map_.is_pointwise and depthwise_in_place and not map_.borders:
        return Form(Kind.SCALE, map_.in_channels, map_.out_channels, biased=True)
    gather, groups, order = _blocks(map_)
    grid = grid_of(map_)
    kernel, first, dilation = grid.taps, grid.first, grid.dilation
    inputs = map_.in_channels if gather is None else len(gather)
    if map_.is_zoomed:
        return _transposed(map_, grid, gather, groups, order)
    last = [f + d * (k - 1) + 1 for f, d, k in zip(first, dilation, kernel)]
    pads = tuple(
        (b - f, e + end - b) for b, f, e, end in zip(map_.before, first, map_.extent, last)
    )  # fmt: skip
    return Form(
        Kind.CONV if map_.axes else Kind.LINEAR,
        inputs,
        map_.out_channels,
        groups=groups,
        kernel=kernel,
        first=first,
        dilation=dilation,
        stride=map_.stride,
        pads=pads,
        padding_mode=map_.padding_mode,
        laps=map_.extension.laps,
        biased=map_.biased,
        borders=len(map_.borders),
        border_parameters=sum(map_.out_channels * prod(b.kernel) for b in map_.borders),
        gather=gather,
        order=order,
    )


def _transposed(map_: AffineConv, grid: Grid, gather: Ints | None, groups: int, order: Ints | None) -> Form:
    found = transposed_padding(map_)
    assert not isinstance(found, Decline), "checked when the map was made"
    assert not map_.borders
    more = tuple(m for _, m in found)
    return Form(
        Kind.TRANSPOSED,
        map_.in_channels if gather is None else len(gather),
        map_.out_channels,
        groups=groups,
        kernel=grid.taps,
        first=grid.first,
        # one tap has any dilation; torch wants one larger than the output padding
        dilation=tuple(max(d, m + 1) if k == 1 else d for d, k, m in zip(grid.dilation, grid.taps, more)),
        stride=map_.zoom,
        output_padding=more,
        pads=tuple((p, p) for p, _ in found),
        biased=map_.biased,
        gather=gather,
        order=order,
    )


def contiguous(indices: Ints) -> bool:
    """Whether an index is a slice of step one."""
    return len(indices) > 0 and bool(np.all(np.diff(indices) == 1))


def _copy_form(map_: AffineConv) -> Form | None:
    if map_.selection is None:
        return None
    kind = Kind.IDENTITY if map_.is_identity else Kind.COPY
    gather = None if map_.is_identity else map_.selection
    return Form(kind, map_.in_channels, map_.out_channels, gather=gather)


def _blocks(map_: AffineConv) -> tuple[Ints | None, int, Ints | None]:
    """(inputs to gather, groups, output order): see the module docstring."""
    incidence, inputs, outputs = map_.incidence, map_.in_channels, map_.out_channels
    if not map_.axes:
        return None, 1, None  # a Linear has no groups
    sizes = np.bincount(incidence.classes, minlength=len(incidence.sets))
    flat = incidence.sets.reshape(-1)
    disjoint = (incidence.sizes == incidence.width).all() and len(np.unique(flat)) == len(flat)
    if disjoint and (sizes == sizes[0]).all():
        gather = None if np.array_equal(flat, np.arange(inputs)) else flat
        order = np.argsort(incidence.classes, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(outputs)
        return gather, len(incidence.sets), None if np.array_equal(place, np.arange(outputs)) else place
    if incidence.is_depthwise and (incidence.sizes == 1).all():
        return incidence.firsts, outputs, None
    reads = incidence.reads
    used = inputs if len(reads) == 0 or len(reads) == inputs else len(reads)
    rank = np.arange(inputs) if used == inputs else np.searchsorted(reads, np.arange(inputs))
    for groups in _divisors(gcd(used, outputs)):
        if _fits(map_, rank, used // groups, outputs // groups):
            return None if used == inputs else reads, groups, None
    raise AssertionError("one group always fits")


def _fits(map_: AffineConv, rank: Ints, block_in: int, block_out: int) -> bool:
    """Whether each block of outputs reads only its own block of inputs."""
    rows = map_.incidence.rows
    owner = np.arange(map_.out_channels)[:, None] // block_out
    return bool(np.all((rows < 0) | (rank[rows.clip(0)] // block_in == owner)))


def _divisors(number: int) -> list[int]:
    return [d for d in range(number, 0, -1) if number % d == 0]
