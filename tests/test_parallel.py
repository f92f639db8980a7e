"""add and concat: accepted if and only if exact, against brute force (EXACTNESS, "Parallel")."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repfx.algebra import AffineConv, add, concat, form_of, identity, scaled
from repfx.algebra.constructors import pool_average
from repfx.decline import Decline, Reason
from tests import twins
from tests.twins import LENGTHS, PLANES, Twin, assert_computes, value


def total(*runs: Any) -> Any:
    return lambda x: sum(run(x) for run in runs)


def joined(*runs: Any) -> Any:
    return lambda x: torch.cat([run(x) for run in runs], 1)


def geometries() -> list[tuple[tuple[int, ...], Twin]]:
    """All small one-axis branches: kernel, stride, padding before and after, dilation."""
    found: list[tuple[tuple[int, ...], Twin]] = []
    for k, s, b, a, d in product((1, 2, 3), (1, 2), (-1, 0, 1), (0, 1), (1, 2)):
        if k > 1 or d == 1:
            map_ = twins.conv(2, 2, (k,), stride=s, before=b, after=a, dilation=d, seed=len(found))
            found.append(((k, s, b, a, d), map_))
    return found


def sizes_always_agree(a: Twin, b: Twin) -> bool:
    """Ground truth: wherever torch computes both, the outputs have one size."""
    for (length,) in LENGTHS:
        x = torch.zeros(1, 2, length, dtype=torch.float64)
        left, right = value(a.run, x), value(b.run, x)
        if left is not None and right is not None and left.shape != right.shape:
            return False
    return True


@pytest.mark.parametrize("combine", [add, concat])
def test_accepted_iff_output_sizes_agree_at_every_size(combine: Any) -> None:
    oracle = total if combine is add else joined
    accepted = declined = 0
    for (first, a), (second, b) in list(combinations(geometries(), 2))[::3]:
        merged = combine([a.map, b.map])
        if isinstance(merged, AffineConv):
            accepted += 1
            assert_computes(merged, oracle(a.run, b.run), LENGTHS[3::4], (first, second))
            continue
        declined += 1
        assert merged.reason is Reason.NOT_EXACT
        assert not sizes_always_agree(a, b), f"{first} and {second} always have one size, and were declined"
    assert accepted > 20
    assert declined > 20


BRANCHES = {
    "kx1 + 1xk + kxk": [
        twins.conv(2, 3, (5, 1), before=(2, 0), seed=1),
        twins.conv(2, 3, (1, 5), before=(0, 2), seed=2),
        twins.conv(2, 3, (5, 5), before=2, seed=3),
    ],
    "2x2 d2 p1 inside 3x3 p1": [
        twins.conv(2, 3, (2, 2), before=1, dilation=2, seed=1),
        twins.conv(2, 3, (3, 3), before=1, seed=2),
    ],
    "even kernels, asymmetric pads": [
        twins.conv(2, 3, (2, 4), before=(0, 1), after=(1, 2), seed=1),
        twins.conv(2, 3, (4, 2), before=(2, 0), after=(1, 1), seed=2),
    ],
    "cropped branch (negative pad)": [
        twins.conv(2, 3, (1, 1), before=-1, seed=1),
        twins.conv(2, 3, (3, 3), seed=2),
        twins.conv(2, 3, (5, 5), before=1, seed=3),
    ],
    "strided": [
        twins.conv(2, 3, (3, 3), stride=2, before=1, seed=1),
        twins.conv(2, 3, (1, 1), stride=2, seed=2),
        twins.conv(2, 3, (1, 3), stride=2, before=(0, 1), seed=3),
    ],
    "circular and 1x1": [
        twins.conv(2, 3, (3, 3), before=1, mode="circular", seed=1),
        twins.conv(2, 3, (1, 1), seed=2),
    ],
}


@pytest.mark.parametrize("name", BRANCHES)
def test_summable(name: str) -> None:
    parts = BRANCHES[name]
    assert_computes(add([p.map for p in parts]), total(*(p.run for p in parts)), about=name)
    assert_computes(concat([p.map for p in parts]), joined(*(p.run for p in parts)), about=name)


CLASHES = {
    "stride": (twins.conv(2, 3, (3, 3), before=1), twins.conv(2, 3, (3, 3), stride=2, before=1), "of stride"),
    "output sizes": (twins.conv(2, 3, (3, 3), before=1), twins.conv(2, 3, (3, 3)), "output sizes differ"),
    "one-sided": (
        twins.conv(2, 3, (2, 1), before=(1, 0), after=(0, 0)),
        twins.conv(2, 3, (2, 1)),
        "output sizes differ",
    ),
    "padding mode": (
        twins.conv(2, 3, (3, 3), before=1, mode="circular"),
        twins.conv(2, 3, (3, 3), before=1),
        "padding modes circular and zeros",
    ),
    "inputs": (twins.conv(2, 3, (1, 1)), twins.conv(4, 3, (1, 1)), "differently shaped inputs"),
    "strided identity": (
        Twin(identity(3, 2), lambda x: x),
        twins.conv(3, 3, (3, 3), stride=2, before=1),
        "of stride",
    ),
}


@pytest.mark.parametrize("name", CLASHES)
def test_not_summable(name: str) -> None:
    a, b, fact = CLASHES[name]
    for refused in (add([a.map, b.map]), concat([a.map, b.map])):
        assert isinstance(refused, Decline)
        assert refused.reason is Reason.NOT_EXACT
        assert fact in refused.fact


def test_broadcast_channels_are_not_added() -> None:
    refused = add([twins.conv(2, 1, (1, 1)).map, twins.conv(2, 3, (1, 1)).map])
    assert isinstance(refused, Decline)
    assert refused.reason is Reason.NOT_EXACT
    assert "broadcasting" in refused.fact


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_identity_norm_and_scale_join_any_groups(groups: int) -> None:
    conv = twins.conv(4, 4, (3, 3), before=1, groups=groups)
    norm = twins.norm(4, 2)
    merged = add([conv.map, norm.map, identity(4, 2), scaled(identity(4, 2), -0.7)])
    assert_computes(merged, lambda x: conv.run(x) + norm.run(x) + x - 0.7 * x)
    assert isinstance(merged, AffineConv)
    assert form_of(merged).groups == groups, "a grouped identity stays inside its group"


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 4), (4, 1), (2, 3)])
def test_different_groups_are_block_embedded(first: int, second: int) -> None:
    a = twins.conv(12, 12, (3, 3), before=1, groups=first, seed=1)
    b = twins.conv(12, 12, (1, 1), groups=second, seed=2)
    assert_computes(add([a.map, b.map]), total(a.run, b.run), ((3, 4),))


def test_concat_of_split_branches_is_block_diagonal() -> None:
    """chunk, per-part maps, cat: identity, reordered, dropped and duplicated parts are all fine."""
    parts = [(4, 6), (0, 2), (0, 2), (2, 4)]
    branches = [twins.conv(2, 2, (3, 3), before=1, seed=i) for i in range(3)]
    runs = [*(b.run for b in branches), lambda x: x]
    maps = [*(b.map for b in branches), identity(2, 2)]
    pieces = [_composed(map_, twins.select(6, range(start, stop), 2).map) for map_, (start, stop) in zip(maps, parts)]
    oracle = lambda x: torch.cat([run(x[:, a:b]) for run, (a, b) in zip(runs, parts)], 1)  # noqa: E731
    assert_computes(concat(pieces), oracle, ((5, 7), (1, 2)))


def _composed(outer: AffineConv, inner: AffineConv) -> AffineConv:
    from repfx.algebra import compose

    merged = compose(outer, inner)
    assert isinstance(merged, AffineConv)
    return merged


def test_cloned_depthwise_branches_are_no_multiplier_two_convolution() -> None:
    """Shapes agree, channel order does not: the form carries an order, and dropping it is wrong."""
    a = twins.conv(3, 3, (3, 3), before=1, groups=3, seed=1)
    b = twins.conv(3, 3, (3, 3), before=1, groups=3, seed=2)
    merged = concat([a.map, b.map])
    assert_computes(merged, joined(a.run, b.run))
    assert isinstance(merged, AffineConv)
    form = form_of(merged)
    assert form.groups == 3
    assert form.order is not None
    assert form.order.tolist() == [0, 2, 4, 1, 3, 5]
    interleaved = [twins.select(6, [0, 3, 1, 4, 2, 5], 2)]
    assert form_of(_composed(interleaved[0].map, merged)).order is None
    assert_computes(
        _composed(interleaved[0].map, merged), lambda x: interleaved[0].run(torch.cat([a.run(x), b.run(x)], 1))
    )


def test_average_pool_that_counts_its_padding_joins_a_sum() -> None:
    conv = twins.conv(3, 3, (3, 3), before=1, groups=3)
    pool = pool_average(3, (3, 3), (1, 1), (1, 1), None)
    counted = lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1)  # noqa: E731
    assert_computes(add([conv.map, pool]), total(conv.run, counted))
    divided = pool_average(3, (3, 3), (1, 1), (1, 1), 7)
    override = lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, divisor_override=7)  # noqa: E731
    assert_computes(add([conv.map, divided]), total(conv.run, override))


def test_many_depthwise_channels_stay_narrow() -> None:
    """640 channels at 11x11 with twelve branches: no plane but its own, and the sum takes no time."""
    branches = [twins.conv(640, 640, (11, 11), before=5, groups=640, seed=i) for i in range(12)]
    merged = add([b.map for b in branches])
    assert isinstance(merged, AffineConv)
    assert merged.values().planes.shape == (640, 1, 11, 11)


def test_support_is_the_union_of_offsets() -> None:
    corners = twins.conv(2, 2, (2, 2), before=1, dilation=2, seed=1)
    centre = twins.conv(2, 2, (1, 1), seed=2)
    alone, both = corners.map, add([corners.map, centre.map])
    assert isinstance(both, AffineConv)
    assert alone.support.tolist() == [[True, False, True], [False] * 3, [True, False, True]]
    assert both.support.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert (form_of(alone).kernel, form_of(alone).dilation) == ((2, 2), (2, 2))
    assert (form_of(both).kernel, form_of(both).dilation) == ((3, 3), (1, 1))


def test_duplicates_and_order_of_parts() -> None:
    a, b = twins.conv(2, 3, (1, 3), before=(0, 1), seed=1), twins.conv(2, 2, (3, 1), before=(1, 0), seed=2)

    def oracle(x: Tensor) -> Tensor:
        return torch.cat([b.run(x), a.run(x), b.run(x)], 1)

    merged = concat([b.map, a.map, b.map])
    assert_computes(merged, oracle, PLANES)
    assert isinstance(merged, AffineConv)
    assert np.array_equal(merged.incidence.sizes, [2])
