"""The border term: a constant before a zero-padded convolution, exact for every input size, cheap, trainable."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from repfx.algebra import AffineConv, add, compose, form_of, pointwise
from repfx.algebra.constructors import pad_constant, pixel_unshuffle
from repfx.emission import emit
from repfx.layers import BorderTerm
from repfx.layers.convolution import ExtendedConv2d
from repfx.verification.equivalence import FLOAT64_BOUND
from tests import hostile, twins
from tests.twins import DOUBLE, assert_computes, chained


def merged(*twins_in_order: twins.Twin) -> AffineConv:
    map_ = twins_in_order[0].map
    for twin in twins_in_order[1:]:
        result = compose(twin.map, map_)
        assert isinstance(result, AffineConv), result
        map_ = result
    return map_


PLACES = {
    "biased 1x11 then 11x1": (
        twins.conv(3, 3, (1, 11), before=(0, 5), groups=3),
        twins.conv(3, 3, (11, 1), before=(5, 0), groups=3),
    ),
    "norm then padded 3x3": (twins.norm(3, 2), twins.conv(3, 2, (3, 3), before=1)),
    "1x1, norm, padded 3x3": (
        twins.conv(3, 4, (1, 1)),
        twins.norm(4, 2),
        twins.conv(4, 2, (3, 3), before=1),
    ),
    "norm then padded stem": (twins.norm(3, 2), twins.conv(3, 4, (7, 7), stride=2, before=3)),
    "norm then strided 1x1 with pad": (twins.norm(3, 2), twins.conv(3, 4, (1, 1), stride=3, before=2)),
    "norm then one-sided": (twins.norm(3, 2), twins.conv(3, 2, (2, 4), before=(1, 0), after=(0, 3))),
    "norm then dilated": (twins.norm(3, 2), twins.conv(3, 2, (3, 3), before=2, dilation=2)),
    "norm then 1d": (twins.norm(3, 1), twins.conv(3, 2, (5,), before=2)),
    "norm then 3d": (twins.norm(2, 3), twins.conv(2, 2, (3, 1, 2), before=(1, 0, 1))),
    "two borders": (
        twins.norm(2, 2),
        twins.conv(2, 2, (1, 3), before=(0, 1)),
        twins.norm(2, 2, seed=5),
        twins.conv(2, 2, (3, 1), before=(1, 0), seed=6),
    ),
}
SIZES = {
    1: twins.LENGTHS,
    2: ((1, 1), (1, 7), (4, 3), (7, 8), (12, 2)),
    3: ((1, 1, 1), (2, 3, 2), (4, 2, 3)),
}


@pytest.mark.parametrize("name", PLACES)
def test_exact_at_every_size(name: str) -> None:
    parts = PLACES[name]
    map_ = merged(*parts)
    assert map_.borders, "the case has no border term"
    assert_computes(map_, chained(*parts), SIZES[map_.axes], name)


STRIDED = {
    "1x1 stride 2": (twins.conv(3, 3, (1, 1), stride=2, bias=False), SIZES[2]),
    "1x1 stride 3": (twins.conv(3, 3, (1, 1), stride=(3, 1)), SIZES[2]),
    "2x2 stride 2 on even sizes": (
        twins.Twin(pixel_unshuffle(3, 2), lambda x: F.pixel_unshuffle(x, 2)),
        ((2, 2), (4, 6), (8, 2)),
    ),
}


@pytest.mark.parametrize("name", STRIDED)
def test_an_outer_border_term_is_seen_on_the_input_grid(name: str) -> None:
    """The outer map has a border term of its own: its taps are spread by the inner stride."""
    inner, sizes = STRIDED[name]
    channels = inner.map.out_channels
    norm, conv = twins.norm(channels, 2), twins.conv(channels, 2, (3, 5), before=(1, 2))
    outer = merged(norm, conv)
    assert outer.borders
    assert_computes(compose(outer, inner.map), chained(inner, norm, conv), sizes, name)


@pytest.mark.parametrize("name", PLACES)
def test_dropping_it_is_wrong(name: str) -> None:
    parts = PLACES[name]
    map_ = merged(*parts)
    for module in (modules := [m for _, m in emit(map_, DOUBLE)]):
        for part in module.modules():
            if isinstance(part, BorderTerm):
                part.weight.zero_()

    def run(x: Tensor) -> Tensor:
        for module in modules:
            x = module(x)
        return x

    _, wrong = twins.disagreement(chained(*parts), run, map_.in_channels, SIZES[map_.axes])
    assert "relative error" in wrong


RESIZED = {
    "padded too far, then padded": (
        twins.conv(3, 3, (3, 3), before=2), twins.conv(3, 2, (3, 3), before=1), (2, 2),
    ),
    "padded by an operation of its own": (
        twins.norm(3, 2), twins.Twin(pad_constant(3, (1, 1), (1, 1), 0.0), lambda x: F.pad(x, (1, 1, 1, 1))),
        twins.norm(3, 2, seed=4), twins.conv(3, 2, (3, 3), before=1), (2, 2),
    ),
    "cropped behind, shifted, padded before": (
        twins.Twin(pad_constant(3, (0, 0), (-1, -1), 0.0), lambda x: F.pad(x, (0, -1, 0, -1))),
        twins.norm(3, 2), twins.conv(3, 2, (3, 5), before=(1, 2), after=0), (-1, -1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIZED)
def test_a_plane_of_ones_is_as_large_as_the_map_in_between(name: str) -> None:
    *parts, longer = RESIZED[name]
    map_ = merged(*parts)  # type: ignore[arg-type]
    assert longer in {border.longer for border in map_.borders}
    assert_computes(map_, chained(*parts), twins.PLANES, name)  # type: ignore[arg-type]


class Resized(nn.Module):
    """A biased convolution that enlarges the map, and a padded one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 4, 3, padding=2, groups=4)
        self.narrow = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x))


def test_an_enlarged_plane_survives_compiling_again_and_exporting() -> None:
    original = hostile.prepared(Resized(), 0)
    fused = repfx.reparameterize(original)
    again = repfx.reparameterize(fused)
    (term,) = (m for m in again.modules() if isinstance(m, BorderTerm))
    assert term.longer == (2, 2)
    assert "longer=(2, 2)" in repr(term)
    assert sum(isinstance(m, nn.Conv2d) for m in again.modules()) == 1
    generator = torch.Generator().manual_seed(0)
    for compiled in (fused, again, pickle.loads(pickle.dumps(fused))):
        assert hostile.assert_same_everywhere(original, compiled, 4, hostile.SIZES, generator) == len(hostile.SIZES)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    size = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(fused, (torch.randn(1, 4, 9, 12).double(),), dynamic_shapes=(size,)).module()
    x = torch.randn(1, 4, 5, 14).double()
    with torch.no_grad():
        assert hostile.relative_error(original(x), program(x)) <= hostile.TOLERANCE


def test_a_term_pickled_before_planes_had_sizes_still_loads() -> None:
    term = BorderTerm(torch.randn(2, 3, 3), (1, 1), (1, 1), (False, False))
    want = term((5, 4), (5, 4))
    state = pickle.dumps(term)
    del term.__dict__["longer"]
    old = pickle.loads(pickle.dumps(term))
    assert torch.equal(old((5, 4), (5, 4)), want)
    assert torch.equal(pickle.loads(state)((5, 4), (5, 4)), want)
    assert list(old.state_dict()) == ["weight"]


def test_terms_on_different_planes_stay_apart() -> None:
    """A sum holds one term per plane of ones: they cannot be added tap by tap."""
    one = merged(twins.conv(2, 2, (3, 3), before=2, seed=1), twins.conv(2, 2, (3, 3), before=1, seed=2))
    other = merged(twins.norm(2, 2), twins.conv(2, 2, (5, 5), before=3, seed=3))
    total = add([one, other])
    assert isinstance(total, AffineConv)
    assert sorted(border.longer for border in total.borders) == [(0, 0), (2, 2)]
    first = chained(twins.conv(2, 2, (3, 3), before=2, seed=1), twins.conv(2, 2, (3, 3), before=1, seed=2))
    second = chained(twins.norm(2, 2), twins.conv(2, 2, (5, 5), before=3, seed=3))
    assert_computes(total, lambda x: first(x) + second(x), SIZES[2])


VANISHES = {
    "norm then valid 3x3": (twins.norm(3, 2), twins.conv(3, 2, (3, 3))),
    "padded 3x3 then norm": (twins.conv(3, 2, (3, 3), before=1), twins.norm(2, 2)),
    "norm then cropped": (twins.norm(3, 2), twins.conv(3, 2, (1, 1), before=-1)),
    "norm then reflect": (twins.norm(3, 2), twins.conv(3, 2, (3, 3), before=1, mode="reflect")),
    "unbiased 1xk then kx1": (
        twins.conv(3, 2, (1, 3), before=(0, 1), bias=False),
        twins.conv(2, 2, (3, 1), before=(1, 0)),
    ),
    "norm then linear": (twins.norm(3, 0), twins.conv(3, 2, ())),
}


@pytest.mark.parametrize("name", VANISHES)
def test_vanishes_where_nothing_is_padded(name: str) -> None:
    parts = VANISHES[name]
    map_ = merged(*parts)
    assert not map_.borders
    assert_computes(map_, chained(*parts), SIZES.get(map_.axes, ((),)), name)


def test_unpadded_axes_are_free() -> None:
    """A 1xk convolution pads along one axis only: the map is a row, and adding it a broadcast."""
    map_ = merged(twins.norm(3, 2), twins.conv(3, 2, (1, 5), before=(0, 2)))
    (border,) = map_.borders
    assert border.free == (True, False)
    assert border.kernel == (1, 5)
    ((_, module),) = emit(map_, DOUBLE)
    assert isinstance(module, ExtendedConv2d)
    (term,) = module.borders
    assert term((9, 7), (9, 7)).shape == (2, 1, 7)


@pytest.mark.parametrize("value", [-1.5, 0.0, 2.0])
def test_constant_padding_is_a_border_term(value: float) -> None:
    conv = twins.conv(3, 2, (3, 3))
    padded = pad_constant(3, (1, 2), (0, 1), value)
    oracle = lambda x: conv.run(F.pad(x, (2, 1, 1, 0), value=value))  # noqa: E731
    map_ = compose(conv.map, padded)
    assert_computes(map_, oracle, SIZES[2][1:])
    assert isinstance(map_, AffineConv)
    assert bool(map_.borders) == (value != 0)


def test_pad_value_equal_to_the_shift_needs_no_constant_at_the_border() -> None:
    """EXACTNESS, "Constant padding": shift by c, then pad with c, then a valid convolution."""
    conv = twins.conv(2, 2, (3, 3))
    shift = pointwise(2, 2, None, lambda: torch.tensor(1.25, dtype=torch.float64))
    inner = compose(pad_constant(2, (1, 1), (1, 1), 1.25), shift)
    assert isinstance(inner, AffineConv)
    map_ = compose(conv.map, inner)
    assert_computes(map_, lambda x: conv.run(F.pad(x + 1.25, (1, 1, 1, 1), value=1.25)), SIZES[2])
    assert isinstance(map_, AffineConv)
    for one in map_.values().ones:
        assert float(one.abs().max()) < FLOAT64_BOUND


# --- the emitted module ---------------------------------------------------------------------------


def module() -> ExtendedConv2d:
    map_ = merged(twins.norm(3, 2), twins.conv(3, 2, (3, 3), before=1))
    ((_, emitted),) = emit(map_, DOUBLE)
    assert isinstance(emitted, ExtendedConv2d)
    return emitted


def test_the_kept_map_follows_size_and_weight() -> None:
    conv, x, y = module(), torch.randn(1, 3, 6, 5).double(), torch.randn(2, 3, 2, 9).double()
    with torch.no_grad():
        first, other = conv(x), conv(y)
        assert torch.equal(conv(x), first)
        assert torch.equal(conv(y), other)
        conv.borders[0].weight.mul_(2.0)
        doubled = conv(x)
    plain = first - conv.borders[0]((6, 5), (6, 5)) / 2
    assert torch.allclose(doubled - plain, 2 * (first - plain))
    assert not torch.allclose(doubled, first)


def test_trains_with_the_rest() -> None:
    conv = module().train()
    for parameter in conv.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        conv(torch.randn(1, 3, 5, 5).double())  # a map kept from inference must not be used for training
    conv(torch.randn(1, 3, 5, 5).double()).sum().backward()
    for name, parameter in conv.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_copied_and_pickled_without_the_kept_map() -> None:
    conv, x = module(), torch.randn(1, 3, 6, 5).double()
    with torch.no_grad():
        want = conv(x)
        for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            assert other.borders[0]._last is None
            assert torch.equal(other(x), want)


class Biased(nn.Module):
    """RepNeXt's largest branch: a biased 1x11 followed by a padded 11x1, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 4, (1, 11), padding=(0, 5), groups=4)
        self.tall = nn.Conv2d(4, 4, (11, 1), padding=(5, 0), groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.tall(self.wide(x))


def test_compiles_once_and_survives_compiling_again() -> None:
    original = hostile.prepared(Biased(), 0)
    fused = repfx.reparameterize(original, verify=False)
    again = repfx.reparameterize(fused, verify=False)
    generator = torch.Generator().manual_seed(0)
    assert hostile.assert_same_everywhere(original, fused, 4, hostile.SIZES, generator) == len(hostile.SIZES)
    assert hostile.assert_same_everywhere(original, again, 4, hostile.SIZES, generator) == len(hostile.SIZES)
    assert sum(isinstance(m, BorderTerm) for m in again.modules()) == 1
    assert sum(isinstance(m, nn.Conv2d) for m in again.modules()) == 1


class Then(nn.Module):
    """A compiled network with something more behind it."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))


def test_a_border_term_is_read_back_and_scaled() -> None:
    """A batch norm behind an emitted convolution with a border term scales the border term too."""
    fused = repfx.reparameterize(hostile.prepared(Biased(), 0), verify=False)
    original = hostile.prepared(Then(fused), 1)
    merged_again = repfx.reparameterize(original, verify=False)
    generator = torch.Generator().manual_seed(0)
    hostile.assert_same_everywhere(original, merged_again, 4, hostile.SIZES, generator)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged_again.modules())
    assert sum(isinstance(m, BorderTerm) for m in merged_again.modules()) == 1


def test_exported_with_a_dynamic_size() -> None:
    original = hostile.prepared(Biased(), 0)
    fused = repfx.reparameterize(original, verify=False)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    size = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(fused, (torch.randn(1, 4, 9, 12).double(),), dynamic_shapes=(size,)).module()
    for h, w in ((9, 12), (5, 30), (14, 3)):
        x = torch.randn(1, 4, h, w).double()
        with torch.no_grad():
            assert hostile.relative_error(original(x), program(x)) <= hostile.TOLERANCE


def test_form_counts_the_border_term() -> None:
    form = form_of(merged(twins.norm(3, 2), twins.conv(3, 2, (3, 3), before=1)))
    assert form.borders == 1
    assert form.border_parameters == 2 * 9
    assert form.parameters == 2 * 3 * 9 + 2 + 2 * 9
    assert str(form) == "conv 3->2 3x3 + border term"
