"""Weights some rows at a time are the weights at once; every fast way to compose kernels is the general one.

Large planes are lazy (`repfx.algebra.values.Rows`).  Here all are, one output at a time, or none is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from repfx.algebra import (
    AffineConv,
    Incidence,
    Rows,
    Values,
    add,
    compose,
    concat,
    constructors,
    kernels,
    scaled,
    take,
    values,
)
from repfx.algebra.kernels import composed
from repfx.emission import Target, emit
from repfx.errors import UserError
from tests import twins
from tests.test_algebra_laws import exact
from tests.twins import Twin, assert_computes, chained


@pytest.fixture(params=["row by row", "at once"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """All planes are lazy and computed one output at a time, or none is."""
    lazy = request.param == "row by row"
    monkeypatch.setattr(values, "_LARGE", 0 if lazy else 1 << 60)
    monkeypatch.setitem(values._AT_ONCE, "cpu", 1)
    return request.param


def summed(*parts: Twin) -> Twin:
    return Twin(exact(add([p.map for p in parts])), lambda x: sum(p.run(x) for p in parts))  # type: ignore[arg-type, return-value]


def joined(*parts: Twin) -> Twin:
    return Twin(exact(concat([p.map for p in parts])), lambda x: torch.cat([p.run(x) for p in parts], 1))


def chain(*steps: Twin) -> Twin:
    map_ = steps[0].map
    for step in steps[1:]:
        map_ = exact(compose(step.map, map_))
    return Twin(map_, chained(*steps))


def taken(whole: Twin, outputs: tuple[int, ...]) -> Twin:
    return Twin(take(whole.map, np.array(outputs)), lambda x: whole.run(x)[:, list(outputs)])


def repvgg(channels: int, groups: int) -> Twin:
    square = twins.conv(channels, channels, (3, 3), before=1, groups=groups, bias=False, seed=1)
    one = twins.conv(channels, channels, (1, 1), groups=groups, bias=False, seed=2)
    norms = [twins.norm(channels, 2, seed) for seed in (3, 4, 5)]
    return summed(chain(one, norms[0]), chain(square, norms[1]), norms[2])


def mixer(channels: int) -> Twin:
    """Branches of RepNeXt: dilated, serial with a border term, rectangular, cut out of the channels."""

    def branch(*kernel: int, seed: int, dilation: int = 1, bias: bool = True) -> Twin:
        pads = tuple(dilation * (k - 1) // 2 for k in kernel)
        return twins.conv(
            channels, channels, kernel, before=pads, dilation=dilation, groups=channels, bias=bias, seed=seed
        )

    small = summed(branch(3, 3, seed=1), branch(1, 3, seed=2), branch(2, 2, dilation=2, seed=3))
    large = chain(branch(1, 5, seed=4), branch(5, 1, seed=5))
    every = 3 * channels
    own = [twins.select(every, range(i * channels, (i + 1) * channels), 2) for i in range(3)]
    return chain(joined(chain(own[0], small), own[1], chain(own[2], large)), twins.norm(every, 2, 6))


CASES: dict[str, Callable[[], Twin]] = {
    "convolution": lambda: twins.conv(4, 6, (3, 2), stride=(2, 1), before=(1, 0), dilation=(1, 2), groups=2),
    "norm before": lambda: chain(twins.norm(4, 2), twins.conv(4, 6, (2, 3), dilation=(2, 1))),
    "norm before, groups": lambda: chain(twins.norm(4, 2), twins.conv(4, 6, (2, 3), groups=2)),
    "norm before, padded": lambda: chain(twins.norm(4, 2), twins.conv(4, 6, (3, 3), before=(2, 0), after=(0, 1))),
    "norm after": lambda: chain(twins.conv(4, 6, (3, 1), dilation=(3, 1), groups=2), twins.norm(6, 2)),
    "norms around": lambda: chain(twins.norm(4, 2, 1), twins.conv(4, 6, (1, 1)), twins.norm(6, 2, 2)),
    "linear between norms": lambda: chain(twins.norm(4, 0, 1), twins.conv(4, 6, ()), twins.norm(6, 0, 2)),
    "strided copy before": lambda: chain(
        twins.conv(4, 4, (1, 1), stride=(2, 3), groups=4), twins.conv(4, 3, (3, 2), dilation=(1, 2))
    ),
    "permuted before": lambda: chain(twins.select(4, (2, 0, 3, 1), 2), twins.conv(4, 6, (3, 3), groups=2)),
    "permuted and scaled before": lambda: chain(
        twins.norm(4, 2), twins.select(4, (2, 0, 3, 1), 2), twins.conv(4, 6, (3, 3), before=1)
    ),
    "channel twice": lambda: chain(twins.select(3, (2, 0, 2, 1), 2), twins.conv(4, 6, (2, 2))),
    "part of the channels": lambda: chain(twins.select(6, (3, 4), 2), twins.conv(2, 2, (3, 3), groups=2)),
    "multiplier then depthwise": lambda: chain(
        twins.conv(2, 6, (1, 3), groups=2, stride=(1, 2)), twins.conv(6, 6, (3, 1), groups=6, stride=(2, 1))
    ),
    "depthwise then multiplier": lambda: chain(
        twins.conv(3, 3, (2, 1), groups=3, stride=(3, 1)), twins.conv(3, 6, (1, 2), groups=3, dilation=(1, 2))
    ),
    "square then square": lambda: chain(
        twins.conv(3, 3, (2, 3), groups=3, before=1), twins.conv(3, 3, (3, 2), groups=3)
    ),
    "dense then dense": lambda: chain(twins.conv(3, 4, (2, 3), before=1), twins.conv(4, 2, (3, 2), stride=2)),
    "border through a dense map": lambda: chain(
        twins.conv(3, 4, (3, 1), before=(1, 0)), twins.conv(4, 2, (1, 3), before=(0, 1)), twins.conv(2, 3, (1, 1))
    ),
    "sum of windows": lambda: summed(
        twins.conv(4, 4, (1, 1)),
        twins.conv(4, 4, (2, 3), before=(0, 2), after=(1, 0), dilation=1, groups=2, seed=1),
        twins.conv(4, 4, (2, 2), dilation=2, before=(1, 1), groups=4, seed=2),
    ),
    "no part fills the window": lambda: summed(
        twins.conv(4, 4, (1, 3), before=(0, 1)), twins.conv(4, 4, (3, 1), before=(1, 0), seed=1)
    ),
    "other groups": lambda: summed(twins.conv(6, 6, (3, 3), before=1, groups=2), twins.conv(6, 6, (1, 1), groups=3)),
    "concatenation": lambda: joined(
        twins.conv(4, 2, (1, 1)), twins.conv(4, 4, (3, 3), before=1, groups=4), twins.conv(4, 4, (1, 3), before=(0, 1))
    ),
    "some outputs": lambda: taken(twins.conv(4, 6, (2, 3), dilation=(2, 1), groups=2), (4, 0, 4, 5)),
    "outputs that read less": lambda: taken(
        joined(twins.conv(4, 2, (1, 2)), twins.conv(4, 4, (1, 2), groups=4)), (4, 2)
    ),
    "outputs of a sum": lambda: taken(repvgg(4, 2), (3, 0, 1, 3)),
    "outputs of a concatenation": lambda: taken(mixer(2), (5, 2, 0, 4, 2, 1)),
    "outputs of outputs": lambda: taken(taken(repvgg(4, 1), (3, 0, 1)), (2, 0)),
    "repvgg": lambda: repvgg(4, 1),
    "repvgg, groups": lambda: repvgg(4, 2),
    "mixer": lambda: mixer(2),
}


@pytest.mark.parametrize("name", CASES)
def test_computes_the_same(name: str, size: str) -> None:
    twin = CASES[name]()
    sizes = ((),) if not twin.map.axes else ((3, 5), (6, 9), (11, 7))
    assert_computes(twin.map, twin.run, sizes, f"{name}, {size}")


@pytest.mark.parametrize("name", ["repvgg", "mixer", "norm before, groups", "norm after"])
def test_times_a_number(name: str, size: str) -> None:
    twin = CASES[name]()
    assert_computes(scaled(twin.map, -2.5), lambda x: -2.5 * twin.run(x), ((7, 9),), size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["repvgg", "mixer", "norms around"])
def test_rounded_once(name: str, dtype: torch.dtype, size: str) -> None:
    """Into any dtype and either layout: the float64 weights, rounded once."""
    twin = CASES[name]()
    ((_, exactly),) = emit(twin.map, twins.DOUBLE)
    for last in (False, True):
        ((_, module),) = emit(twin.map, Target(dtype, requires_grad=False, channels_last=last))
        assert module.weight.is_contiguous(memory_format=torch.channels_last) or not last
        for given, want in zip(module.parameters(), exactly.parameters(), strict=True):
            assert torch.equal(given, want.to(dtype)), f"{name}, {size}"


@pytest.mark.parametrize("name", [n for n in CASES if n != "linear between norms"])
def test_weights_are_read_and_never_changed(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 weights are the user's own tensors."""
    given: list[Tensor] = []
    plain = torch.randn

    def randn(*args: object, **options: object) -> Tensor:
        given.append(plain(*args, **options))  # type: ignore[call-overload]
        return given[-1]

    monkeypatch.setattr(torch, "randn", randn)
    twin = CASES[name]()
    before = [tensor.clone() for tensor in given]
    emit(twin.map, twins.DOUBLE)
    emit(scaled(twin.map, 2.0), Target())
    assert given
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(given, before, strict=True))


def test_gradients_flow_through_a_fold(size: str) -> None:
    shape, grads = (4, 2, 3, 3), {"dtype": torch.float64, "requires_grad": True}
    weight, small = torch.randn(shape, **grads), torch.randn(4, 2, 1, 1, **grads)  # type: ignore[call-overload]
    scale, shift = torch.randn(4, **grads), torch.randn(4, **grads)  # type: ignore[call-overload]

    def fold(weight: Tensor, small: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        def conv(tensor: Tensor, pad: int) -> AffineConv:
            return constructors.from_conv(
                lambda: tensor, None, shape=tensor.shape, groups=2, stride=(1, 1), before=(pad, pad), after=(pad, pad),
                dilation=(1, 1),
            )  # fmt: skip

        norm = constructors.pointwise(4, 2, lambda: scale, lambda: shift)
        branches = exact(add([exact(compose(norm, conv(weight, 1))), conv(small, 0), norm]))
        read = exact(compose(conv(small, 0), exact(compose(norm, branches)))).values()
        return read.planes, read.bias

    assert torch.autograd.gradcheck(fold, (weight, small, scale, shift)), size


def test_a_window_of_taps(size: str) -> None:
    map_ = twins.conv(3, 4, (3, 2), dilation=(2, 3)).map
    written = map_.values().planes
    for window in (
        (slice(0, 5, 2), slice(0, 4, 3)),
        (slice(0, 5, 1), slice(0, 4, 1)),
        (slice(1, 4, 2), slice(0, 1, 1)),
    ):
        cut = map_.values().cut(window)
        assert isinstance(cut, Rows) == (size == "row by row")
        read = cut.read(slice(1, 3)) if isinstance(cut, Rows) else cut[1:3]
        assert torch.equal(read, written[(slice(1, 3), slice(None), *window)])


def test_overflow_is_found_in_any_piece(size: str) -> None:
    weight = torch.ones(5, 2, 1, 1, dtype=torch.float64)
    weight[3, 1] = -1e6
    one = constructors.from_conv(
        lambda: weight, None, shape=weight.shape, stride=(1, 1), before=(0, 0), after=(0, 0), dilation=(1, 1)
    )
    with pytest.raises(UserError, match="output channel 3 is 1e\\+06 and overflows"):
        emit(one, Target(torch.float16), "stem")


# --- composing kernels: every fast way against the general one ---------------------------------------

INCIDENCES: dict[str, Incidence] = {
    "dense": Incidence.grouped(4, 6, 1),
    "two groups": Incidence.grouped(4, 6, 2),
    "depthwise": Incidence.grouped(4, 4, 4),
    "multiplier": Incidence.grouped(4, 8, 4),
    "permutation": Incidence.selecting(np.array([2, 0, 3, 1])),
    "first ones": Incidence.selecting(np.array([0, 1, 2])),
    "one twice": Incidence.selecting(np.array([3, 1, 3])),
    "unequal": Incidence.build(np.array([0, 1, 0]), np.array([[0, 2, 3], [1, -1, -1]])),
}
MIDDLES: dict[str, Incidence] = {
    "depthwise": Incidence.grouped(4, 4, 4),
    "permutation": Incidence.selecting(np.array([1, 3, 0, 2])),
    "one twice": Incidence.selecting(np.array([1, 1, 0, 2])),
    "dense": Incidence.grouped(3, 4, 1),
    "two groups": Incidence.grouped(4, 4, 2),
    "unequal": Incidence.build(np.array([0, 1, 0, 1]), np.array([[0, 2, 3], [1, -1, -1]])),
}


def drawn(reads: Incidence, kernel: tuple[int, ...], seed: int) -> Values:
    """Random planes that are zero where nothing is read."""
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(reads.outputs, reads.width, *kernel, generator=generator, dtype=torch.float64)
    planes[torch.as_tensor(reads.rows < 0)] = 0
    return Values(planes, torch.zeros(reads.outputs, dtype=torch.float64))


def lazily(given: Values) -> Values:
    planes, shape = given.planes, given.shape
    rows = Rows(shape, planes.device, lambda part, out: out.copy_(planes[part]), (1,) * (len(shape) - 2))
    return Values(rows, given.bias)


def dense(planes: Tensor, reads: Incidence, inputs: int) -> Tensor:
    """Planes by input channel, (O, inputs, *kernel)."""
    out = planes.new_zeros(len(planes), inputs, *planes.shape[2:])
    for o, row in enumerate(reads.rows):
        for k, channel in enumerate(row):
            if channel >= 0:
                out[o, channel] = planes[o, k]
    return out


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("name", INCIDENCES)
def test_composed_as_by_blocks_and_as_by_hand(name: str, middle: str, lazy: bool) -> None:
    reads, via = INCIDENCES[name], MIDDLES[middle]
    out = reads.after(via)
    for k2, k1, stride in product(((1, 1), (3, 1), (2, 3)), ((1, 1), (1, 2), (3, 2)), ((1, 1), (2, 3))):
        outer, inner = drawn(reads, k2, 1), drawn(via, k1, 2)
        args = (lazily(outer), lazily(inner)) if lazy else (outer, inner)
        fast = Values(composed(args[0], reads, args[1], via, out, stride), outer.bias).planes
        slow = kernels._by_blocks(outer.planes, reads, inner.planes, via, out, stride)
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
        wide, own = dense(outer.planes, reads, 4), dense(inner.planes, via, 4)
        want = wide.new_zeros(len(wide), 4, *((a - 1) * s + b for a, s, b in zip(k2, stride, k1)))
        for i, j in np.ndindex(*k2):
            rows, columns = slice(i * stride[0], i * stride[0] + k1[0]), slice(j * stride[1], j * stride[1] + k1[1])
            want[:, :, rows, columns] += torch.einsum("om,mihw->oihw", wide[:, :, i, j], own)
        torch.testing.assert_close(dense(fast, out, 4), want, rtol=1e-12, atol=1e-12)
