"""compose: accepted if and only if exact, against brute force over all small sizes (EXACTNESS, "Serial")."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repfx.algebra import AffineConv, compose
from repfx.algebra.constructors import crop, pad_constant, pixel_unshuffle
from repfx.decline import Decline, Reason
from tests import twins
from tests.twins import LENGTHS, Twin, applied, assert_computes, chained, disagreement

Chain = tuple[int, int, int, int, int, int, int]  # k1, s1, p1, d1, k2, s2, p2


def grid(first: int, stride: int) -> Iterator[Chain]:
    for p1, d1, k2, s2, p2 in product((0, 1, 2), (1, 2), (1, 2, 3), (1, 2), (0, 1, 2)):
        if first > 1 or d1 == 1:
            yield first, stride, p1, d1, k2, s2, p2


def pair(chain: Chain, *, bias: bool) -> tuple[Twin, Twin]:
    k1, s1, p1, d1, k2, s2, p2 = chain
    inner = twins.conv(1, 2, (k1,), stride=s1, before=p1, dilation=d1, bias=bias, seed=1)
    return inner, twins.conv(2, 2, (k2,), stride=s2, before=p2, bias=bias, seed=2)


def brute_force(inner: Twin, outer: Twin, chain: Chain) -> Any:
    """The only candidate: the true convolution of the two kernels, by the formulas of EXACTNESS.md."""
    _, s1, p1, _, k2, s2, p2 = chain
    w1, w2 = inner.map.values().planes, outer.map.values().planes  # dilation written out
    kernel = torch.zeros(2, 1, (k2 - 1) * s1 + w1.shape[-1], dtype=torch.float64)
    for tap in range(k2):
        kernel[:, :, tap * s1 : tap * s1 + w1.shape[-1]] += torch.einsum("om,mik->oik", w2[:, :, tap], w1)
    return lambda x: F.conv1d(x, kernel, None, s1 * s2, p1 + s1 * p2)


@pytest.mark.parametrize("first", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_accepted_iff_the_merged_kernel_is_right_at_every_size(first: int, stride: int) -> None:
    accepted = declined = 0
    for chain in grid(first, stride):
        inner, outer = pair(chain, bias=False)
        merged = compose(outer.map, inner.map)
        if isinstance(merged, AffineConv):
            accepted += 1
            assert_computes(merged, chained(inner, outer), LENGTHS, chain)
            continue
        declined += 1
        assert merged.reason is Reason.NOT_EXACT, chain
        assert "differ on the frame" in merged.fact, chain
        _, wrong = disagreement(chained(inner, outer), brute_force(inner, outer, chain), 1, LENGTHS)
        assert "relative error" in wrong, f"{chain} is exact, and was declined"
    assert accepted
    assert (declined == 0) == (first == 1), "one tap sees nothing outside; every larger kernel does for some padding"


@pytest.mark.parametrize("first", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_constants_are_exact_wherever_they_are_accepted(first: int, stride: int) -> None:
    accepted = 0
    for chain in grid(first, stride):
        inner, outer = pair(chain, bias=True)
        merged = compose(outer.map, inner.map)
        if isinstance(merged, AffineConv):
            accepted += 1
            assert_computes(merged, chained(inner, outer), LENGTHS, chain)
            continue
        linear = compose(pair(chain, bias=False)[1].map, pair(chain, bias=False)[0].map)
        assert isinstance(linear, Decline), f"{chain}: refused for its constant, which is a border term"
        assert "differ on the frame" in merged.fact, chain
    assert accepted


def test_a_constant_never_decides_a_chain_of_two() -> None:
    """Random chains with one-sided pads and crops: a bias is always a border term on some plane of ones."""
    random = Random(0)
    exact = 0
    for _ in range(288):
        kernels, strides = random.choices((1, 2, 3, 4, 5), k=2), random.choices((1, 2, 3), k=2)
        dilation, pads = random.choice((1, 2)), random.choices((-1, 0, 1, 2, 3), k=4)
        results = []
        for bias in (False, True):
            inner = twins.conv(
                1, 2, kernels[:1], stride=strides[:1], before=pads[:1], after=pads[1:2], dilation=dilation, bias=bias
            )
            outer = twins.conv(
                2, 2, kernels[1:], stride=strides[1:], before=pads[2:3], after=pads[3:], bias=bias, seed=1
            )
            results.append(compose(outer.map, inner.map))
        linear, biased = results
        assert isinstance(linear, AffineConv) == isinstance(biased, AffineConv), (kernels, strides, dilation, pads)
        if isinstance(biased, AffineConv):
            exact += 1
            _, wrong = disagreement(chained(inner, outer), applied(biased), 1, LENGTHS)
            assert not wrong, (kernels, strides, dilation, pads, wrong)
    assert exact > 100


def test_a_border_term_seen_outside_the_middle_map_is_declined() -> None:
    """The second map crops, so its border term still sees ones where the third one pads with zeros."""
    a = twins.conv(1, 2, (1,), before=1, after=1, seed=0)
    b = twins.conv(2, 2, (1,), before=1, after=-1, seed=1)
    inner = compose(b.map, a.map)
    assert isinstance(inner, AffineConv)
    assert [border.longer for border in inner.borders] == [(2,)]
    refused = compose(twins.conv(2, 2, (1,), stride=3, before=-1, after=3).map, inner)
    assert isinstance(refused, Decline)
    assert "differ on the frame" in refused.fact
    unpadded = twins.conv(2, 2, (1,), stride=3, before=-1, after=0)
    assert_computes(compose(unpadded.map, inner), chained(a, b, unpadded), LENGTHS)


@pytest.mark.parametrize("innermost_first", [True, False])
def test_planes_of_ones_through_three_maps(innermost_first: bool) -> None:
    """Border terms on enlarged and cut planes go through strides and further pads, in either order."""
    random = Random(1)
    accepted = 0
    for _ in range(400):
        parts = []
        for i in range(3):
            kernel, stride = random.choice((1, 1, 2, 3)), random.choice((1, 1, 2, 3))
            before, after = random.choices((-1, 0, 0, 1, 2), k=2)
            parts.append(twins.conv(min(i, 1) + 1, 2, (kernel,), stride=stride, before=before, after=after, seed=i))
        a, b, c = (part.map for part in parts)
        first = compose(b, a) if innermost_first else compose(c, b)
        if isinstance(first, Decline):
            continue
        merged = compose(c, first) if innermost_first else compose(first, a)
        if isinstance(merged, Decline):
            assert "differ on the frame" in merged.fact
            continue
        accepted += len(merged.borders) > 0
        _, wrong = disagreement(chained(*parts), applied(merged), 1, LENGTHS[:12])
        assert not wrong, ([(m.kernel, m.stride, m.before, m.after) for m in (a, b, c)], wrong)
    assert accepted > 50


def test_one_sided_padding_and_cropping() -> None:
    accepted = 0
    for k1, s1, b1, a1, k2, b2, a2 in product((1, 2, 3), (1, 2), (-1, 0, 2), (0, 1), (1, 3), (0, 1), (-1, 0, 2)):
        inner = twins.conv(1, 2, (k1,), stride=s1, before=b1, after=a1, seed=1)
        outer = twins.conv(2, 2, (k2,), before=b2, after=a2, seed=2)
        merged = compose(outer.map, inner.map)
        if isinstance(merged, AffineConv):
            accepted += 1
            assert_computes(merged, chained(inner, outer), LENGTHS[4::2], (k1, s1, b1, a1, k2, b2, a2))
    assert accepted > 100


@pytest.mark.parametrize("groups", list(product((1, 2, 4), (1, 2, 4))), ids=str)
def test_groups_merge_on_the_incidence(groups: tuple[int, int]) -> None:
    inner = twins.conv(4, 8, (3, 2), before=(1, 0), groups=groups[0], seed=3)
    outer = twins.conv(8, 4, (2, 3), stride=(1, 2), groups=groups[1], seed=4)
    merged = compose(outer.map, inner.map)
    assert_computes(merged, chained(inner, outer))
    assert isinstance(merged, AffineConv)
    assert len(merged.incidence.sets) == min(groups), "the merged map reads more channels than it needs"


def test_depthwise_then_depthwise_stays_depthwise() -> None:
    inner = twins.conv(6, 6, (1, 5), before=(0, 2), groups=6, seed=1)
    outer = twins.conv(6, 6, (5, 1), before=(2, 0), groups=6, seed=2)
    merged = compose(outer.map, inner.map)
    assert_computes(merged, chained(inner, outer))
    assert isinstance(merged, AffineConv)
    assert merged.incidence.is_depthwise


# --- one accepting and one declining case per line of EXACTNESS -----------------------------------

SAME = {"stride": 1, "before": 1}
ACCEPTED = {
    "1xk pad then kx1 pad": (twins.conv(2, 2, (1, 5), before=(0, 2)), twins.conv(2, 2, (5, 1), before=(2, 0))),
    "1x1 then 3x3 p1": (twins.conv(2, 3, (1, 1)), twins.conv(3, 2, (3, 3), before=1)),
    "3x3 p2 then valid 3x3": (twins.conv(2, 2, (3, 3), before=2), twins.conv(2, 2, (3, 3))),
    "3x3 p2 then 3x3 p1": (twins.conv(2, 2, (3, 3), before=2, bias=False), twins.conv(2, 2, (3, 3), before=1)),
    "biased 3x3 p2 then 3x3 p1": (twins.conv(2, 2, (3, 3), before=2), twins.conv(2, 2, (3, 3), before=1)),
    "biased 1x1 p1 then 3x3 p1": (twins.conv(2, 2, (1, 1), before=1), twins.conv(2, 2, (3, 3), before=1)),
    "biased 1x1 s2 p1 then 3x3 p1": (
        twins.conv(2, 2, (1, 1), stride=2, before=1),
        twins.conv(2, 2, (3, 3), before=1),
    ),
    "biased valid 1x3 then 3x1 p1": (twins.conv(2, 2, (1, 3)), twins.conv(2, 2, (3, 1), before=(1, 0))),
    "3x3 p1 then 1x1": (twins.conv(2, 2, (3, 3), before=1), twins.conv(2, 3, (1, 1))),
    "3x3 s2 p1 then valid 3x3": (twins.conv(2, 2, (3, 3), stride=2, before=1), twins.conv(2, 2, (3, 3))),
    "circular then 1x1": (twins.conv(2, 2, (3, 3), before=1, mode="circular"), twins.conv(2, 2, (1, 1))),
    "norm then reflect": (twins.norm(2, 2), twins.conv(2, 2, (3, 3), before=1, mode="reflect")),
    "norm then replicate": (twins.norm(2, 2), twins.conv(2, 2, (3, 3), before=1, mode="replicate")),
    "norm then circular": (twins.norm(2, 2), twins.conv(2, 2, (3, 3), before=1, mode="circular")),
    "circular then circular": (
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        twins.conv(2, 2, (3, 5), stride=2, before=(1, 2), mode="circular"),
    ),
    "one-sided circular twice": (
        twins.conv(2, 2, (2, 2), before=(1, 0), after=(0, 1), mode="circular"),
        twins.conv(2, 2, (4, 2), before=(0, 1), after=(2, 1), mode="circular"),
    ),
    "1xk then kx1, reflecting": (
        twins.conv(2, 2, (1, 3), before=(0, 1), mode="reflect"),
        twins.conv(2, 2, (3, 1), before=(1, 0), mode="reflect"),
    ),
    "1xk then kx1, replicating": (
        twins.conv(2, 2, (1, 3), before=(0, 1), mode="replicate"),
        twins.conv(2, 2, (3, 1), before=(1, 0), mode="replicate"),
    ),
    "valid 1xk then kx1, replicating": (
        twins.conv(2, 2, (1, 3)),
        twins.conv(2, 2, (3, 1), before=(1, 0), mode="replicate"),
    ),
    "norm then linear": (twins.norm(3, 0), twins.conv(3, 2, ())),
    "linear then linear": (twins.conv(3, 5, ()), twins.conv(5, 2, ())),
    "norm then 3d": (twins.norm(2, 3), twins.conv(2, 2, (1, 2, 3), before=(0, 1, 1))),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_exact(name: str) -> None:
    inner, outer = ACCEPTED[name]
    sizes = {0: ((),), 2: twins.PLANES, 3: ((1, 1, 2), (2, 3, 4))}[inner.map.axes]
    assert_computes(compose(outer.map, inner.map), chained(inner, outer), sizes, name)


DECLINED = {
    "3x3 p1 then 3x3 p1": (twins.conv(2, 2, (3, 3), before=1), twins.conv(2, 2, (3, 3), before=1), "on the frame"),
    "3x3 s2 p1 then 3x3 p1": (
        twins.conv(2, 2, (3, 3), stride=2, before=1),
        twins.conv(2, 2, (3, 3), before=1),
        "on the frame",
    ),
    "1xk pad then 1xk pad": (
        twins.conv(2, 2, (1, 3), before=(0, 1)),
        twins.conv(2, 2, (1, 3), before=(0, 1)),
        "on the frame",
    ),
    "reflect then reflect": (
        twins.conv(2, 2, (3, 3), before=1, mode="reflect"),
        twins.conv(2, 2, (3, 3), before=1, mode="reflect"),
        "reflect-pads a map that is not per-pixel",
    ),
    "3x3 p1 then circular": (
        twins.conv(2, 2, (3, 3), before=1),
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        "circular-pads a zeros-padded map",
    ),
    "circular with a stride, then circular": (
        twins.conv(2, 2, (3, 3), stride=2, before=1, mode="circular"),
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        "circular-pads a map that is not per-pixel",
    ),
    "circular that grows, then circular": (
        twins.conv(2, 2, (3, 3), before=1, after=2, mode="circular"),
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        "circular-pads a map that is not per-pixel",
    ),
    "circular that shrinks, then circular": (
        twins.conv(2, 2, (3, 3), before=1, after=0, mode="circular"),
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        "circular-pads a map that is not per-pixel",
    ),
    "valid, then circular": (
        twins.conv(2, 2, (3, 3)),
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        "circular-pads a map that is not per-pixel",
    ),
    "1xk zeros, then kx1 reflecting": (
        twins.conv(2, 2, (1, 3), before=(0, 1)),
        twins.conv(2, 2, (3, 1), before=(1, 0), mode="reflect"),
        "reflect-pads a zeros-padded map",
    ),
    "replicate then replicate": (
        twins.conv(2, 2, (3, 3), before=1, mode="replicate"),
        twins.conv(2, 2, (3, 3), before=1, mode="replicate"),
        "replicate-pads a map that is not per-pixel",
    ),
    "constants that fade, then circular": (
        twins.Twin(pad_constant(2, (-1, 0), (0, -1), 2.0), lambda x: x),
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        "whose constants fade at its own border",
    ),
    "circular then 3x3 p1": (
        twins.conv(2, 2, (3, 3), before=1, mode="circular"),
        twins.conv(2, 2, (3, 3), before=1),
        "zero-pads the output of a circular-padded map",
    ),
    "channel counts": (twins.conv(2, 3, (1, 1)), twins.conv(2, 2, (1, 1)), "reads 2 channels where 3 are produced"),
    "axes": (twins.conv(2, 2, (1,)), twins.conv(2, 2, (1, 1)), "1 and 2 spatial axes"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_not_exact(name: str) -> None:
    inner, outer, fact = DECLINED[name]
    refused = compose(outer.map, inner.map)
    assert isinstance(refused, Decline)
    assert refused.reason is Reason.NOT_EXACT
    assert fact in refused.fact


def test_strided_then_padded_is_right_for_odd_sizes_only() -> None:
    """3x3 s2 p1 then 3x3 p1: one test size hides that no single convolution does it."""
    inner = twins.conv(1, 2, (3,), stride=2, before=1, bias=False, seed=1)
    outer = twins.conv(2, 2, (3,), before=1, bias=False, seed=2)
    merged = brute_force(inner, outer, (3, 2, 1, 1, 3, 1, 1))
    odd, even = LENGTHS[2::2], LENGTHS[3::2]
    assert "on the frame" in str(compose(outer.map, inner.map))
    # after the last window of an odd map the stride steps over the image; before the first one nothing is outside
    verdicts = [bool(disagreement(chained(inner, outer), merged, 1, (size,))[1]) for size in (*odd, *even)]
    assert verdicts == [False] * len(odd) + [True] * len(even)


@pytest.mark.parametrize(("size", "kernel"), [(14, 11), (7, 11)])
def test_the_border_term_is_what_makes_it_right(size: int, kernel: int) -> None:
    """Dropping the inner bias into the outer one is wrong on the share of rows that EXACTNESS gives."""
    pad = kernel // 2
    inner = twins.conv(2, 2, (1, kernel), before=(0, pad), groups=2, seed=1)
    outer = twins.conv(2, 2, (kernel, 1), before=(pad, 0), groups=2, seed=2)
    merged = compose(outer.map, inner.map)
    assert isinstance(merged, AffineConv)
    values = merged.values()
    naive_bias = values.bias + values.ones[0].sum(tuple(range(1, values.ones[0].dim())))
    x = torch.randn(1, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = chained(inner, outer)(x)
    assert torch.allclose(applied(merged)(x), want, rtol=0, atol=1e-10 * float(want.abs().max()))
    naive = F.conv2d(x, values.planes, naive_bias, padding=pad, groups=2)
    rows = ((naive - want).abs() > 1e-9).any(3).any(1)[0]
    assert float(rows.double().mean()) == pytest.approx(10 / 14 if size == 14 else 1.0)


def test_pixel_unshuffle_then_conv3_is_conv6_stride_2() -> None:
    outer = twins.conv(8, 3, (3, 3), before=1)
    merged = compose(outer.map, pixel_unshuffle(2, 2))
    assert isinstance(merged, AffineConv)
    assert (merged.kernel, merged.stride, merged.before, merged.after) == ((6, 6), (2, 2), (2, 2), (2, 2))
    assert merged.multiple == (2, 2)
    assert_computes(merged, lambda x: outer.run(F.pixel_unshuffle(x, 2)), ((2, 2), (4, 6), (8, 2)))


def test_strided_slice_then_conv() -> None:
    sliced = crop(2, (1, 0), (2, 3), (-2, -1))

    def run(x: Tensor) -> Tensor:
        return x[:, :, 1::2, ::3]

    outer = twins.conv(2, 3, (3, 2))
    assert_computes(compose(outer.map, sliced), lambda x: outer.run(run(x)), ((7, 7), (8, 9), (9, 5)))
    padded = twins.conv(2, 3, (3, 3), before=1, bias=False)
    assert_computes(compose(padded.map, sliced), lambda x: padded.run(run(x)), ((5, 7), (8, 9), (6, 4)))
