"""The laws of the affine algebra, as properties: each side is held against torch's own computation.

Maps are drawn over zero to three spatial axes with hostile geometry (dilation, one-sided and negative
padding, strides, groups, large biases) and compared on a basis of the inputs, so a law that holds here
at a size holds for every input of that size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from repfx.algebra import AffineConv, add, compose, concat, identity, linear_part, restrict, scaled, take
from tests import twins
from tests.twins import Twin, applied, assert_computes, chained

LAWS = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
SIZES = {
    0: ((),),
    1: ((1,), (2,), (5,), (11,), (24,)),
    2: ((1, 1), (3, 5), (6, 2), (11, 9)),
    3: ((1, 1, 1), (5, 4, 6)),
}
AXES = st.sampled_from((1, 2, 1, 2, 0, 3))
FACTORS = st.sampled_from((-2.5, -1.0, 0.5, 3.0))


@st.composite
def geometries(draw: st.DrawFn, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(stride, extent): what maps must share to be added."""
    each = st.tuples(*[st.integers(1, 2)] * axes)
    return draw(each), draw(st.tuples(*[st.integers(-2, 1)] * axes))


@st.composite
def convs(
    draw: st.DrawFn,
    inputs: int,
    outputs: int,
    axes: int,
    geometry: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    pads: bool = True,
) -> Twin:
    """A convolution; with a geometry, one of the given stride and extent; pads=False: valid or cropped."""

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * axes))

    kernel = each(1, 3 if pads and axes < 3 else 2)
    dilation = each(1, 2 if pads and axes < 3 else 1)
    before = each(-1 if axes == 1 else 0, 2 if pads else 0)
    if geometry is None:
        stride, after = each(1, 1 if axes == 3 else 2), each(0, 2 if pads else 0)
    else:
        stride, extent = geometry
        after = tuple(e + d * (k - 1) + 1 - b for e, k, d, b in zip(extent, kernel, dilation, before))
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if inputs % g == 0 and outputs % g == 0])) if axes else 1
    return twins.conv(
        inputs,
        outputs,
        kernel,
        stride=stride,
        before=before,
        after=after,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def terms(draw: st.DrawFn, count: int, inputs: int = 2, outputs: int = 4) -> tuple[int, list[Twin]]:
    """(axes, maps that may be added)."""
    axes = draw(AXES)
    geometry = draw(geometries(axes))
    return axes, [draw(convs(inputs, outputs, axes, geometry)) for _ in range(count)]


@st.composite
def chains(draw: st.DrawFn, channels: tuple[int, ...] = (2, 4, 2, 3)) -> tuple[int, list[Twin]]:
    """(axes, maps of which each composes with the next): only the first one pads."""
    axes = draw(AXES)
    pairs = list(pairwise(channels))
    return axes, [draw(convs(i, o, axes, pads=not n)) for n, (i, o) in enumerate(pairs)]


def total(*runs: Any) -> Any:
    return lambda x: sum(run(x) for run in runs)


def joined(*runs: Any) -> Any:
    return lambda x: torch.cat([run(x) for run in runs], 1 if x.dim() > 2 else -1)


def exact(result: object) -> AffineConv:
    assert isinstance(result, AffineConv), result
    return result


@LAWS
@given(terms(2))
def test_add_commutes(drawn: tuple[int, list[Twin]]) -> None:
    axes, (a, b) = drawn
    oracle = total(a.run, b.run)
    assert_computes(add([a.map, b.map]), oracle, SIZES[axes])
    assert_computes(add([b.map, a.map]), oracle, SIZES[axes])


@LAWS
@given(terms(3))
def test_add_associates(drawn: tuple[int, list[Twin]]) -> None:
    axes, (a, b, c) = drawn
    oracle = total(a.run, b.run, c.run)
    assert_computes(add([exact(add([a.map, b.map])), c.map]), oracle, SIZES[axes])
    assert_computes(add([a.map, exact(add([b.map, c.map]))]), oracle, SIZES[axes])
    assert_computes(add([a.map, b.map, c.map]), oracle, SIZES[axes])


@LAWS
@given(terms(3))
def test_concat_associates(drawn: tuple[int, list[Twin]]) -> None:
    axes, (a, b, c) = drawn
    oracle = joined(a.run, b.run, c.run)
    assert_computes(concat([exact(concat([a.map, b.map])), c.map]), oracle, SIZES[axes])
    assert_computes(concat([a.map, exact(concat([b.map, c.map]))]), oracle, SIZES[axes])
    assert_computes(concat([a.map, b.map, c.map]), oracle, SIZES[axes])


@LAWS
@given(terms(2))
def test_concat_interchanges_with_add(drawn: tuple[int, list[Twin]]) -> None:
    axes, (a, b) = drawn
    left = exact(concat([a.map, b.map]))
    right = exact(concat([b.map, a.map]))
    oracle = joined(total(a.run, b.run), total(a.run, b.run))
    assert_computes(add([left, right]), oracle, SIZES[axes])


@LAWS
@given(chains())
def test_compose_associates(drawn: tuple[int, list[Twin]]) -> None:
    axes, (a, b, c) = drawn
    oracle = chained(a, b, c)
    assert_computes(compose(c.map, exact(compose(b.map, a.map))), oracle, SIZES[axes])
    assert_computes(compose(exact(compose(c.map, b.map)), a.map), oracle, SIZES[axes])


@LAWS
@given(terms(1))
def test_identity_is_neutral(drawn: tuple[int, list[Twin]]) -> None:
    axes, (a,) = drawn
    assert_computes(compose(a.map, identity(2, axes)), a.run, SIZES[axes])
    assert_computes(compose(identity(4, axes), a.map), a.run, SIZES[axes])


@LAWS
@given(terms(2), FACTORS)
def test_scale_distributes_over_add(drawn: tuple[int, list[Twin]], factor: float) -> None:
    axes, (a, b) = drawn
    oracle = lambda x: factor * a.run(x) + factor * b.run(x)  # noqa: E731
    assert_computes(scaled(exact(add([a.map, b.map])), factor), oracle, SIZES[axes])
    assert_computes(add([scaled(a.map, factor), scaled(b.map, factor)]), oracle, SIZES[axes])


@LAWS
@given(chains((2, 4, 3)), FACTORS)
def test_scale_passes_through_compose(drawn: tuple[int, list[Twin]], factor: float) -> None:
    axes, (a, b) = drawn
    outside = lambda x: factor * b.run(a.run(x))  # noqa: E731
    inside = lambda x: b.run(factor * a.run(x))  # noqa: E731
    assert_computes(scaled(exact(compose(b.map, a.map)), factor), outside, SIZES[axes])
    assert_computes(compose(scaled(b.map, factor), a.map), outside, SIZES[axes])
    assert_computes(compose(b.map, scaled(a.map, factor)), inside, SIZES[axes])


@LAWS
@given(st.data(), FACTORS)
def test_compose_distributes_over_add(data: st.DataObject, factor: float) -> None:
    axes, (a, b) = data.draw(terms(2))
    outer = data.draw(convs(4, 2, axes, pads=False))
    merged = compose(outer.map, exact(add([a.map, scaled(b.map, factor)])))
    assert_computes(merged, lambda x: outer.run(a.run(x) + factor * b.run(x)), SIZES[axes])
    first = exact(compose(outer.map, a.map))
    second = exact(compose(linear_part(outer.map), scaled(b.map, factor)))
    assert_computes(add([first, second]), lambda x: outer.run(a.run(x) + factor * b.run(x)), SIZES[axes])


@LAWS
@given(st.data())
def test_compose_over_concat_is_the_sum_of_restrictions(data: st.DataObject) -> None:
    axes, (a, b) = data.draw(terms(2))
    outer = data.draw(convs(8, 2, axes, pads=False))
    oracle = lambda x: outer.run(joined(a.run, b.run)(x))  # noqa: E731
    assert_computes(compose(outer.map, exact(concat([a.map, b.map]))), oracle, SIZES[axes])
    first = exact(compose(restrict(outer.map, 0, 4), a.map))
    second = exact(compose(linear_part(restrict(outer.map, 4, 8)), b.map))
    assert_computes(add([first, second]), oracle, SIZES[axes])


@LAWS
@given(terms(1), st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_take_picks_outputs(drawn: tuple[int, list[Twin]], indices: list[int]) -> None:
    axes, (a,) = drawn
    picked = twins.select(4, indices, axes)
    assert_computes(take(a.map, np.array(indices)), chained(a, picked), SIZES[axes])
    assert_computes(compose(picked.map, a.map), chained(a, picked), SIZES[axes])


@LAWS
@given(terms(1, inputs=2), st.lists(st.integers(0, 4), min_size=2, max_size=2))
def test_selected_inputs(drawn: tuple[int, list[Twin]], indices: list[int]) -> None:
    axes, (a,) = drawn
    picked = twins.select(5, indices, axes)
    assert_computes(compose(a.map, picked.map), chained(picked, a), SIZES[axes])


@LAWS
@given(terms(2), st.integers(0, 7), st.integers(1, 8))
def test_take_of_concat_is_concat_of_takes(drawn: tuple[int, list[Twin]], start: int, length: int) -> None:
    axes, (a, b) = drawn
    rows = np.arange(start, min(start + length, 8))
    dim = 1 if axes else -1
    oracle = lambda x: joined(a.run, b.run)(x).index_select(dim, torch.from_numpy(rows))  # noqa: E731
    assert_computes(take(exact(concat([a.map, b.map])), rows), oracle, SIZES[axes])


@LAWS
@given(terms(1, inputs=6), st.integers(0, 5), st.integers(1, 6))
def test_restriction_sees_zeros_elsewhere(drawn: tuple[int, list[Twin]], start: int, length: int) -> None:
    axes, (a,) = drawn
    stop = min(start + length, 6)

    def embedded(x: torch.Tensor) -> torch.Tensor:
        dim = 1 if axes else x.dim() - 1
        shape = list(x.shape)
        shape[dim] = 6
        full = x.new_zeros(shape)
        full.narrow(dim, start, stop - start).copy_(x)
        return a.run(full)

    assert_computes(restrict(a.map, start, stop), embedded, SIZES[axes])


@LAWS
@given(terms(1))
def test_linear_part_has_no_constants(drawn: tuple[int, list[Twin]]) -> None:
    axes, (a,) = drawn
    assert_computes(linear_part(a.map), lambda x: a.run(x) - a.run(torch.zeros_like(x)), SIZES[axes])


@LAWS
@given(terms(1), st.integers(0, 99))
def test_batch_norm_on_either_side(drawn: tuple[int, list[Twin]], seed: int) -> None:
    axes, (a,) = drawn
    after, before = twins.norm(4, axes, seed), twins.norm(2, axes, seed)
    assert_computes(compose(after.map, a.map), chained(a, after), SIZES[axes])
    assert_computes(compose(a.map, before.map), chained(before, a), SIZES[axes])


def test_the_comparison_can_fail() -> None:
    a, b = twins.conv(2, 2, (3,), before=1, seed=0), twins.conv(2, 2, (3,), before=1, seed=1)
    assert twins.disagreement(a.run, applied(b.map), 2, twins.LENGTHS)[1]
    assert twins.disagreement(a.run, applied(scaled(a.map, 1.0 + 1e-9)), 2, twins.LENGTHS)[1]
    assert not twins.disagreement(a.run, applied(a.map), 2, twins.LENGTHS)[1]
