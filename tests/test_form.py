"""The executed form: groups, dilation, padding, gathers and orders are recovered, and cost no more than written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from repfx.algebra import AffineConv, Kind, add, compose, concat, form_of, identity, select, take
from repfx.algebra.constructors import crop, from_conv, pad_by, pixel_unshuffle, pool_average
from repfx.emission import Target, emit
from repfx.errors import UserError
from repfx.layers import ChannelOrder, ChannelSlice, ScaleShift
from repfx.layers.convolution import ExtendedConv2d
from repfx.rewriting.cost import cost_of_map
from repfx.verification.equivalence import tolerance
from tests import twins
from tests.hostile import relative_error
from tests.twins import DOUBLE, applied, assert_computes, chained

ROUND = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


Pair = tuple[int, int]


def exact(result: object) -> AffineConv:
    assert isinstance(result, AffineConv), result
    return result


@ROUND
@given(
    groups=st.sampled_from((1, 2, 3, 6)),
    multiplier=st.sampled_from((1, 2)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
)
def test_a_convolution_is_written_back_as_it_was(
    groups: int, multiplier: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, bias: bool
) -> None:
    twin = twins.conv(
        6, 6 * multiplier, kernel, stride=stride, before=padding, dilation=dilation, groups=groups, bias=bias
    )
    form = form_of(twin.map)
    if form.kind is Kind.SCALE:
        assert groups == 6
        assert kernel == (1, 1)
        return
    assert (form.groups, form.kernel, form.stride) == (groups, kernel, stride)
    assert form.dilation == tuple(d if k > 1 else 1 for k, d in zip(kernel, dilation))
    assert form.pads == tuple((p, p) for p in padding)
    assert form.gather is None
    assert form.order is None
    assert not form.padded_apart
    weight = 6 * multiplier * (6 // groups) * kernel[0] * kernel[1]
    assert form.macs == weight
    assert form.parameters == weight + (6 * multiplier if bias else 0)
    ((name, module),) = emit(twin.map, DOUBLE)
    assert name == ""
    assert type(module) is nn.Conv2d
    assert torch.equal(
        module.weight, twin.map.values().planes.reshape(-1)[_kept(twin.map)].reshape(module.weight.shape)
    )


def _kept(map_: AffineConv) -> torch.Tensor:
    """Places of a dilated kernel's own taps in its written-out planes."""
    support = torch.from_numpy(map_.support)
    return support.expand(map_.out_channels, map_.incidence.width, *map_.kernel).reshape(-1).nonzero().reshape(-1)


SIMPLE = {
    "identity": (identity(4, 2), Kind.IDENTITY, []),
    "slice": (select(6, np.arange(2, 5), 2), Kind.COPY, [ChannelSlice]),
    "permutation": (select(4, np.array([2, 0, 3, 1]), 2), Kind.COPY, [ChannelOrder]),
    "duplicates": (select(3, np.array([1, 1, 2]), 0), Kind.COPY, [ChannelOrder]),
    "norm": (twins.norm(4, 2).map, Kind.SCALE, [ScaleShift]),
    "norm of a vector": (twins.norm(4, 0).map, Kind.SCALE, [ScaleShift]),
    "linear": (twins.conv(3, 5, ()).map, Kind.LINEAR, [nn.Linear]),
    "conv1d": (twins.conv(3, 5, (3,), before=1).map, Kind.CONV, [nn.Conv1d]),
    "conv3d": (twins.conv(3, 5, (1, 2, 3)).map, Kind.CONV, [nn.Conv3d]),
    "one-sided": (twins.conv(3, 5, (2, 2), before=1, after=0).map, Kind.CONV, [ExtendedConv2d]),
    "cropped": (twins.conv(3, 5, (3, 3), before=-1).map, Kind.CONV, [ExtendedConv2d]),
    "circular": (twins.conv(3, 5, (3, 3), before=1, mode="circular").map, Kind.CONV, [nn.Conv2d]),
    "one-sided reflect": (
        exact(compose(twins.conv(3, 2, (2, 2)).map, pad_by(3, (1, 0), (0, 1), "reflect"))),
        Kind.CONV,
        [ExtendedConv2d],
    ),
    "pool": (pool_average(3, (2, 2), (2, 2), (0, 0), None), Kind.CONV, [nn.Conv2d]),
    "unshuffle": (pixel_unshuffle(3, 2), Kind.CONV, [nn.Conv2d]),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_kind_and_modules(name: str) -> None:
    map_, kind, modules = SIMPLE[name]
    assert form_of(map_).kind is kind
    assert [type(module) for _, module in emit(map_, DOUBLE)] == modules


def test_sliced_inputs_are_a_view_and_cost_nothing() -> None:
    conv, part = twins.conv(2, 3, (3, 3), before=1), twins.select(6, [2, 3], 2)
    map_ = exact(compose(conv.map, part.map))
    assert_computes(map_, chained(part, conv))
    form = form_of(map_)
    assert form.gather is not None
    assert not form.gathers
    assert (form.in_channels, form.macs) == (2, 2 * 3 * 9)
    assert [type(m) for _, m in emit(map_, DOUBLE)] == [ChannelSlice, nn.Conv2d]
    assert cost_of_map(map_).light == 0


def test_scattered_inputs_are_gathered() -> None:
    conv, part = twins.conv(2, 3, (3, 3), before=1), twins.select(6, [0, 4], 2)
    map_ = exact(compose(conv.map, part.map))
    assert_computes(map_, chained(part, conv))
    assert form_of(map_).gathers
    assert [name for name, _ in emit(map_, DOUBLE)] == ["_gather", ""]
    assert cost_of_map(map_).light == 1


def test_a_permutation_of_inputs_needs_no_gather_in_a_dense_convolution() -> None:
    conv, order = twins.conv(4, 3, (3, 3), before=1), twins.select(4, [3, 1, 0, 2], 2)
    map_ = exact(compose(conv.map, order.map))
    assert_computes(map_, chained(order, conv))
    assert form_of(map_).gather is None


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_groups_are_found_again(seed: int) -> None:
    """A grouped convolution between two random permutations: groups kept, order written as an index."""
    generator = torch.Generator().manual_seed(seed)
    first = twins.select(8, torch.randperm(8, generator=generator).tolist(), 2)
    last = twins.select(12, torch.randperm(12, generator=generator).tolist(), 2)
    conv = twins.conv(8, 12, (3, 3), before=1, groups=4, seed=seed)
    map_ = exact(compose(last.map, exact(compose(conv.map, first.map))))
    assert form_of(map_).groups == 4
    assert_computes(map_, chained(first, conv, last))


def test_unequal_blocks_use_the_next_coarser_groups() -> None:
    a, b = twins.conv(4, 4, (1, 1), seed=1), twins.conv(2, 2, (3, 3), before=1, seed=2)
    parts = [
        exact(compose(a.map, select(8, np.arange(4), 2))),
        exact(compose(b.map, select(8, np.arange(4, 6), 2))),
        exact(compose(b.map, select(8, np.arange(6, 8), 2))),
    ]
    map_ = exact(concat(parts))
    oracle = lambda x: torch.cat([a.run(x[:, :4]), b.run(x[:, 4:6]), b.run(x[:, 6:])], 1)  # noqa: E731
    assert_computes(map_, oracle)
    assert form_of(map_).groups == 2


def test_unread_inputs_are_left_out() -> None:
    conv = twins.conv(6, 4, (3, 3), before=1, groups=2)
    map_ = take(conv.map, np.array([2, 3]))
    assert_computes(map_, lambda x: conv.run(x)[:, 2:])
    assert form_of(map_).in_channels == 3


def test_dilation_is_recovered_after_folding() -> None:
    """DBB-like chain: a dilated kernel stays dilated through a 1x1 and a batch norm, and a sum ends it."""
    dilated = twins.conv(2, 2, (3, 3), before=2, dilation=2)
    map_ = exact(compose(twins.norm(2, 2).map, exact(compose(dilated.map, twins.conv(2, 2, (1, 1), bias=False).map))))
    assert (form_of(map_).kernel, form_of(map_).dilation) == ((3, 3), (2, 2))
    summed = exact(add([map_, identity(2, 2)]))
    assert (form_of(summed).kernel, form_of(summed).dilation) == ((3, 3), (2, 2)), "the centre tap is on the grid"
    wide = exact(add([map_, twins.conv(2, 2, (3, 3), before=1).map]))
    assert (form_of(wide).kernel, form_of(wide).dilation) == ((5, 5), (1, 1))


def test_crop_alone_counts_no_weights_of_its_own_when_merged() -> None:
    sliced = crop(2, (1, 1), (2, 2), (-2, -2))
    assert_computes(sliced, lambda x: x[:, :, 1::2, 1::2], ((2, 2), (5, 7), (8, 4)))


# --- the one cast ---------------------------------------------------------------------------------


def test_values_are_cast_once_at_the_end() -> None:
    """Three exact thirds: rounding each factor first would lose the last bit."""
    third = torch.full((2, 2, 1, 1), 1 / 3, dtype=torch.float64)
    conv = from_conv(
        lambda: third, None, shape=third.shape, stride=(1, 1), before=(0, 0), after=(0, 0), dilation=(1, 1)
    )
    map_ = exact(compose(conv, exact(compose(conv, conv))))
    ((_, module),) = emit(map_, Target(torch.float32))
    assert torch.equal(module.weight, torch.full_like(module.weight, float(4 / 27)))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_overflow_names_module_and_channel(dtype: torch.dtype) -> None:
    huge = torch.full((3, 2, 1, 1), 1.0, dtype=torch.float64)
    huge[1] = 1e39
    map_ = from_conv(lambda: huge, None, shape=huge.shape, stride=(1, 1), before=(0, 0), after=(0, 0), dilation=(1, 1))
    with pytest.raises(UserError, match=r"stem\.conv: the folded weight of output channel 1 is 1e\+39 and overflows"):
        emit(map_, Target(dtype), "stem.conv")
    ((_, fine),) = emit(twins.conv(2, 3, (1, 1)).map, Target(dtype), "stem.conv")
    assert fine.weight.dtype is dtype


def test_target_is_kept() -> None:
    twin = twins.conv(4, 4, (3, 3), before=1)
    ((_, module),) = emit(twin.map, Target(torch.float32, requires_grad=False, channels_last=True))
    assert module.weight.dtype is torch.float32
    assert not module.weight.requires_grad
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert not module.training
    x = torch.randn(1, 4, 5, 5)
    assert relative_error(applied(twin.map)(x.double()), module(x).double()) <= tolerance(module, torch.float32)
