"""The numbers behind an affine map: lazy, large ones some rows at a time.

Everything is float64 and made of torch operations on weights only, so gradients can flow through a
fold.  `evaluate` runs a lazily built expression once per shared node, without recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor


class Probe:
    """Random numbers in the place of weights: the same ones for the same weight, whenever it is read."""

    def __init__(self) -> None:
        self.read: set[int] = set()  # the weights that were read, by identity
        self._seeds: dict[int, tuple[object, int]] = {}  # in the order in which they were first read

    def numbers(self, tensor: Tensor, owner: object) -> Tensor:
        """What stands for a weight.  An index says where, and is no number of the network."""
        self.read.add(id(owner))
        _, seed = self._seeds.setdefault(id(owner), (owner, len(self._seeds)))
        if not tensor.is_floating_point():
            return tensor
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5


class Names(Probe):
    """Which weights are read, at the least cost: all numbers are one."""

    def numbers(self, tensor: Tensor, owner: object) -> Tensor:
        """Ones in the place of a weight."""
        self.read.add(id(owner))
        return torch.ones((), dtype=torch.float64).expand(tensor.shape) if tensor.is_floating_point() else tensor


_PROBE: ContextVar[Probe | None] = ContextVar("probe", default=None)


def leaf(tensor: Tensor, owner: object = None) -> Tensor:
    """A parameter or buffer as the algebra reads it; under `probing`, random numbers in its place.

    A weight that is computed anew at every reading is known by its `owner`.
    """
    probe = _PROBE.get()
    return tensor if probe is None else probe.numbers(tensor, tensor if owner is None else owner)


@contextmanager
def probing(probe: Probe | None = None) -> Iterator[Probe]:
    """Evaluate expressions at random parameter values: a fact that holds there is one of structure."""
    probe = Probe() if probe is None else probe
    token = _PROBE.set(probe)
    try:
        yield probe
    finally:
        _PROBE.reset(token)


_LARGE = 1 << 16  # planes of more numbers than this are not written down before they are needed
_AT_ONCE = {"cpu": 1 << 17}  # numbers of large planes computed at a time: a megabyte, which stays in the cache
_ELSEWHERE = 1 << 22  # the same where a step costs more than the numbers in it


Part = slice | Tensor  # some outputs: a range of them, or an index


@dataclass(frozen=True)
class Rows:
    """Planes (O, K, *kernel) that are computed some outputs at a time.

    `write(part, out)` computes the planes of the outputs `part` into `out`, float64 of any content before.  A folded
    weight then never exists in float64 as a whole, which saves most of the time and the memory.  What is written
    are the taps without the zeros that the dilation puts between them.
    """

    shape: tuple[int, ...]  # with the zeros
    device: torch.device
    write: Callable[[Part, Tensor], object]
    dilation: tuple[int, ...]

    def __post_init__(self) -> None:
        spread = tuple(d if k > 1 else 1 for k, d in zip(self.shape[2:], self.dilation))
        object.__setattr__(self, "dilation", spread)

    @cached_property
    def taps(self) -> tuple[int, ...]:
        """Kernel without the zeros."""
        return tuple((k - 1) // d + 1 for k, d in zip(self.shape[2:], self.dilation))

    def read(self, part: Part) -> Tensor:
        """The planes of some outputs, without the zeros: a tensor that is the caller's to change."""
        out = self._room(len(part) if isinstance(part, Tensor) else len(range(*part.indices(self.shape[0]))))
        self.write(part, out)
        return out

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """All planes without the zeros, some at a time; each piece is gone when the next one is asked for."""
        size = _AT_ONCE.get(self.device.type, _ELSEWHERE)
        step = max(1, size // max(1, self.shape[1] * prod(self.taps)))
        room = None if torch.is_grad_enabled() else self._room(min(step, self.shape[0]))
        for start in range(0, self.shape[0], step):
            part = slice(start, min(start + step, self.shape[0]))
            if room is None:
                yield part, self.read(part)
                continue
            out = room[: part.stop - part.start]
            self.write(part, out)
            yield part, out

    def _room(self, count: int) -> Tensor:
        return torch.empty((count, self.shape[1], *self.taps), dtype=torch.float64, device=self.device)


@dataclass(frozen=True)
class Values:
    """planes (O, K, *kernel), bias (O,), one (O, *kernel_i) per border term; all float64.

    The planes are given as they are or as `Rows`; `planes` writes them down, `write` only a part of them.  Tensors
    may be the user's weights and may be shared: nothing changes them.
    """

    given: Tensor | Rows
    bias: Tensor
    ones: tuple[Tensor, ...] = ()

    @cached_property
    def planes(self) -> Tensor:
        """All planes, (O, K, *kernel)."""
        return written(self.given)

    @property
    def _known(self) -> Tensor | Rows:
        return self.__dict__.get("planes", self.given)

    def rows(self, part: Part) -> Tensor:
        """The planes of some outputs, to be read."""
        known = self._known
        return known[part] if isinstance(known, Tensor) else dilated(known.read(part), known.dilation, 2)

    def write(self, part: Part, out: Tensor) -> None:
        """Compute the planes of some outputs into a tensor."""
        known = self._known
        if isinstance(known, Tensor):
            out.copy_(known[part])
        elif all(d == 1 for d in known.dilation):
            known.write(part, out)
        else:
            known.write(part, out.zero_()[trailing(slice(None, None, d) for d in known.dilation)])

    def cut(self, window: Sequence[slice]) -> Tensor | Rows:
        """The planes in a window of taps; cheap where that is all, or takes the dilation's zeros out."""
        place = (slice(None), slice(None), *window)
        given = self.given
        if isinstance(given, Tensor):
            return given[place]
        ends = zip(given.shape[2:], window, given.dilation)
        if all((w.start, w.stop, w.step) == (0, k, d) for k, w, d in ends):
            return Rows((*given.shape[:2], *given.taps), given.device, given.write, (1,) * len(window))
        kept = tuple(len(range(*w.indices(k))) for k, w in zip(given.shape[2:], window))
        shape = (*given.shape[:2], *kept)
        return Rows(shape, given.device, lambda part, out: out.copy_(self.rows(part)[place]), (1,) * len(window))

    def weighted(self, read: Tensor) -> Tensor:
        """What the planes make of one number per read, (O or 1, K): their sum over the reads, (O, *kernel)."""
        known = self._known
        if isinstance(known, Tensor):
            return _weighted(known, read)
        each = len(read) == known.shape[0]
        sums = [_weighted(piece, read[part] if each else read) for part, piece in known.pieces()]
        return dilated(torch.cat(sums), known.dilation, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the planes."""
        return tuple(self.given.shape)

    @property
    def device(self) -> torch.device:
        """Where the planes are."""
        return self.given.device


def _weighted(planes: Tensor, read: Tensor) -> Tensor:
    if planes.shape[1] == 1:
        return planes[:, 0] * read.reshape(-1, *(1 for _ in planes.shape[2:]))
    if len(read) == 1 and prod(planes.shape[2:]) == 1:
        return (planes.flatten(1) @ read[0]).reshape(len(planes), *planes.shape[2:])
    flat = planes.flatten(2) if planes.dim() > 2 else planes[:, :, None]
    return (read[:, None] @ flat).reshape(len(planes), *planes.shape[2:])


def written(planes: Tensor | Rows) -> Tensor:
    """All planes, written down."""
    return planes if isinstance(planes, Tensor) else dilated(planes.read(slice(None)), planes.dilation, 2)


def multiplied(planes: Tensor | Rows, factor: Tensor | float) -> Tensor | Rows:
    """Planes times a number, or (O or 1, K or 1, 1 ...) numbers."""
    if isinstance(planes, Tensor):
        return planes * factor
    each = isinstance(factor, Tensor) and len(factor) == planes.shape[0]

    def write(part: Part, out: Tensor) -> None:
        planes.write(part, out)
        out.mul_(factor[part] if each else factor)  # type: ignore[index]

    return replace(planes, write=write)


def spread_out(planes: Tensor | Rows, stride: Sequence[int]) -> Tensor | Rows:
    """Planes whose taps stand `stride` times as far apart."""
    if isinstance(planes, Tensor):
        return dilated(planes, stride, 2)
    kernel = ((k - 1) * s + 1 for k, s in zip(planes.shape[2:], stride))
    dilation = tuple(d * s for d, s in zip(planes.dilation, stride))
    return replace(planes, shape=(*planes.shape[:2], *kernel), dilation=dilation)


def is_large(shape: Sequence[int]) -> bool:
    """Whether planes of this shape are computed as `Rows`."""
    return prod(shape) > _LARGE


def row_wise(shape: Sequence[int], device: torch.device, write: Callable[[Part, Tensor], object]) -> Tensor | Rows:
    """Planes as rows where they are large, written down where they are small."""
    rows = Rows(tuple(shape), device, write, (1,) * (len(shape) - 2))
    return rows if is_large(shape) else rows.read(slice(None))


class Expression(Protocol):
    """A node of the lazy evaluation: `rule` applied to the values of `inputs`."""

    @property
    def inputs(self) -> Sequence[Expression]: ...

    @property
    def rule(self) -> Callable[[Sequence[Values]], Values]: ...


def evaluate(root: Expression) -> Values:
    """Values of `root`; every shared input is computed once and dropped after its last use."""
    remaining = _uses(root)
    done: dict[int, Values] = {}
    work: list[tuple[Expression, bool]] = [(root, False)]
    while work:
        node, ready = work.pop()
        if id(node) in done:
            continue
        if not ready:
            work.append((node, True))
            work.extend((child, False) for child in node.inputs if id(child) not in done)
            continue
        done[id(node)] = node.rule([done[id(child)] for child in node.inputs])
        for child in node.inputs:
            remaining[id(child)] -= 1
            if remaining[id(child)] == 0:
                del done[id(child)]
    return done[id(root)]


def _uses(root: Expression) -> dict[int, int]:
    """How many times each input is read on the way to `root`, by identity."""
    uses: dict[int, int] = {}
    stack = [root]
    while stack:
        for child in stack.pop().inputs:
            if id(child) not in uses:
                uses[id(child)] = 0
                stack.append(child)
            uses[id(child)] += 1
    return uses


def trailing(items: Iterable[int | slice]) -> Any:
    """An index of the last axes: [..., *items]."""
    return (..., *items)


def dilated(kernel: Tensor, dilation: Sequence[int], lead: int) -> Tensor:
    """Write dilation out: zeros between the taps of the trailing axes after `lead` leading ones."""
    if all(d == 1 or k == 1 for d, k in zip(dilation, kernel.shape[lead:])):
        return kernel
    shape = [d * (k - 1) + 1 for k, d in zip(kernel.shape[lead:], dilation)]
    out = kernel.new_zeros(*kernel.shape[:lead], *shape)
    out[trailing(slice(None, None, d) for d in dilation)] = kernel
    return out
