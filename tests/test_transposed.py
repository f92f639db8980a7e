"""Transposed convolutions: what folds into them, at every size, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from repfx.algebra import AffineConv, Kind, add, compose, concat, form_of
from repfx.algebra.constructors import from_transposed
from repfx.decline import Decline, Reason
from tests import hostile, twins
from tests.compiling import Net, assert_declined, compiled, conv, counted, left
from tests.test_spellings import Run, weight
from tests.twins import LENGTHS, PLANES, Twin, assert_computes, chained

TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def transposed(
    inputs: int,
    outputs: int,
    kernel: tuple[int, ...],
    *,
    stride: int = 2,
    padding: int = 0,
    more: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    seed: int = 0,
) -> Twin:
    """A transposed convolution and torch's own."""
    axes = len(kernel)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(inputs, outputs // groups, *kernel, generator=generator, dtype=torch.float64)
    shift = torch.randn(outputs, generator=generator, dtype=torch.float64) * 3 if bias else None
    map_ = from_transposed(
        lambda: values,
        None if shift is None else lambda: shift,
        shape=values.shape,
        groups=groups,
        stride=(stride,) * axes,
        padding=(padding,) * axes,
        output_padding=(more,) * axes,
        dilation=(dilation,) * axes,
    )
    return Twin(map_, lambda x: TRANSPOSE[axes](x, values, shift, stride, padding, more, groups, dilation))


def every() -> list[dict[str, int]]:
    found = []
    for kernel, stride, padding, more, dilation in product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (0, 1, 2), (1, 2)):
        if padding <= dilation * (kernel - 1) and more < max(stride, dilation) and (kernel > 1 or dilation == 1):
            found.append({"kernel": kernel, "stride": stride, "padding": padding, "more": more, "dilation": dilation})
    return found


@pytest.mark.parametrize("groups", [1, 2])
def test_read_and_written_back(groups: int) -> None:
    """Also behind a batch norm and behind a 1x1 convolution."""
    for case in every():
        kernel = case.pop("kernel")
        twin = transposed(4, 6, (kernel,), groups=groups, **case)  # type: ignore[arg-type]
        assert_computes(twin.map, twin.run, LENGTHS[:6], case)
        norm, point = twins.norm(6, 1), twins.conv(6, 3, (1,))
        assert_computes(compose(norm.map, twin.map), chained(twin, norm), LENGTHS[:6], case)
        assert_computes(compose(point.map, twin.map), chained(twin, point), LENGTHS[:6], case)


@pytest.mark.parametrize("kernel", [(2, 3), (3, 1), (1, 2, 3)])
def test_several_axes(kernel: tuple[int, ...]) -> None:
    twin = transposed(2, 3, kernel, padding=0, more=1)
    sizes = PLANES if len(kernel) == 2 else ((1, 1, 2), (2, 3, 2))
    assert_computes(twin.map, twin.run, sizes)


def test_stride_one_is_a_convolution() -> None:
    twin = transposed(2, 3, (3, 3), stride=1, padding=1)
    assert form_of(twin.map).kind is Kind.CONV
    assert_computes(twin.map, twin.run)


def test_behind_a_pointwise_map_without_a_shift() -> None:
    point = twins.conv(3, 4, (1, 1), bias=False)
    for groups in (1, 2, 4):
        twin = transposed(4, 4, (3, 3), padding=1, more=1, groups=groups)
        assert_computes(compose(twin.map, point.map), chained(point, twin))


def test_sums_and_concatenations() -> None:
    """4x4 pad 1 and 2x2 pad 0 have one output size for every input: the smaller lies inside the larger."""
    large, small = transposed(3, 2, (4, 4), padding=1, seed=1), transposed(3, 2, (2, 2), seed=2)
    odd = transposed(3, 2, (3, 3), padding=1, more=1, seed=3)
    run = lambda x: large.run(x) + small.run(x) + odd.run(x)  # noqa: E731
    assert_computes(add([large.map, small.map, odd.map]), run)
    joined = concat([odd.map, small.map])
    assert_computes(joined, lambda x: torch.cat([odd.run(x), small.run(x)], 1))


def test_before_a_convolution_that_sees_nothing_outside() -> None:
    """Unpadded, a transposed convolution's output holds all it can see; a padded 3x3 behind it is exact."""
    full, outer = transposed(2, 3, (2, 2), bias=False), twins.conv(3, 2, (3, 3), before=1)
    merged = compose(outer.map, full.map)
    assert_computes(merged, chained(full, outer))
    assert isinstance(merged, AffineConv)
    assert (merged.kernel, form_of(merged).pads) == ((4, 4), ((1, 1), (1, 1)))


DECLINED = {
    "a shift before it": (twins.norm(2, 1), transposed(2, 2, (3,)), "of a shifted value"),
    "a convolution before it": (twins.conv(2, 2, (3,), before=1, bias=False), transposed(2, 2, (3,)), "not per-pixel"),
    "twice": (transposed(2, 2, (3,), bias=False), transposed(2, 2, (3,)), "not per-pixel"),
    "cut, then a padded kernel": (
        transposed(2, 2, (3,), padding=1, bias=False), twins.conv(2, 2, (3,), before=1), "differ on the frame",
    ),
    "a stride behind it": (transposed(2, 2, (3,)), twins.conv(2, 2, (2,), stride=2), "strides over the output"),
    "padded behind it": (
        transposed(2, 2, (1,), bias=False), twins.conv(2, 2, (1,), before=1), "padded or cropped as no transposed",
    ),
    "circular behind one tap": (
        transposed(2, 2, (1,), bias=False), twins.conv(2, 2, (3,), before=1, mode="circular"),
        "circular-pads the output of a transposed convolution",
    ),
    "a bias padded behind it": (
        transposed(2, 2, (2,)), twins.conv(2, 2, (3,), before=1), "adds a border term to a transposed convolution",
    ),
    "reflected behind it": (
        transposed(2, 2, (2,)), twins.conv(2, 2, (3,), before=1, mode="reflect"), "reflect-pads a zeros-padded map"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_not_exact(name: str) -> None:
    inner, outer, fact = DECLINED[name]
    refused = compose(outer.map, inner.map)
    assert isinstance(refused, Decline)
    assert fact in refused.fact
    assert refused.reason in (Reason.NOT_EXACT, Reason.UNSUPPORTED)


@pytest.mark.parametrize(
    ("other", "fact"),
    [
        (transposed(3, 2, (3, 3), stride=3), "spread their input by 2x2 and 3x3"),
        (transposed(3, 2, (3, 3)), "output sizes differ"),
        (twins.conv(3, 2, (1, 1)), "spread their input by 2x2 and 1x1"),
    ],
)
def test_not_summable(other: Twin, fact: str) -> None:
    refused = add([transposed(3, 2, (2, 2)).map, other.map])
    assert isinstance(refused, Decline)
    assert fact in refused.fact


# --- whole networks -------------------------------------------------------------------------------

ONE = {"convolutions": 1}


@dataclass(frozen=True)
class Row:
    """A network, and what may be left of it."""

    run: Run
    parts: dict[str, Callable[[], Any]]
    left: dict[str, int] = field(default_factory=lambda: dict(ONE))
    sizes: tuple[tuple[int, ...], ...] = hostile.SIZES


def t(*arguments: Any, **options: Any) -> Callable[[], nn.ConvTranspose2d]:
    return lambda: nn.ConvTranspose2d(*arguments, **options)


def doubled() -> nn.Module:
    module = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1)
    return nn.utils.parametrizations.weight_norm(module)


ROWS = {
    "norm behind": Row(lambda s, x: s.n(s.a(x)), {"a": t(4, 6, 3, 2, 1, 1), "n": lambda: nn.BatchNorm2d(6)}),
    "grouped, dilated, norm behind": Row(
        lambda s, x: s.n(s.a(x)), {"a": t(4, 6, (3, 2), (2, 3), 1, (1, 0), 2, False, 2), "n": lambda: nn.BatchNorm2d(6)}
    ),
    "depthwise, norm behind": Row(
        lambda s, x: s.n(s.a(x)), {"a": t(4, 4, 2, 2, groups=4), "n": lambda: nn.BatchNorm2d(4)}
    ),
    "scale and shift behind": Row(
        lambda s, x: s.a(x) * s.g + s.h, {"a": t(4, 6, 3, 2), "g": weight(6, 1, 1), "h": weight(1, 6, 1, 1)}
    ),
    "scale before": Row(lambda s, x: s.a(x * s.g), {"a": t(4, 6, 3, 2), "g": weight(4, 1, 1)}),
    "1x1 before": Row(
        lambda s, x: s.a(s.b(x)), {"a": t(4, 2, 2, 2), "b": lambda: conv(4, 4, 1, bias=False)}
    ),
    "1x1 behind": Row(lambda s, x: s.b(s.a(x)), {"a": t(4, 6, 2, 2), "b": lambda: conv(6, 3, 1)}),
    "1x1 and norm behind": Row(
        lambda s, x: s.n(s.b(s.a(x))),
        {"a": t(4, 6, 2, 2), "b": lambda: conv(6, 3, 1), "n": lambda: nn.BatchNorm2d(3)},
    ),
    "two branches": Row(
        lambda s, x: s.n(s.a(x)) + s.m(s.b(x)),
        {"a": t(4, 3, 4, 2, 1), "b": t(4, 3, 2, 2), "n": lambda: nn.BatchNorm2d(3), "m": lambda: nn.BatchNorm2d(3)},
    ),
    "concatenated": Row(lambda s, x: torch.cat([s.a(x), s.b(x)], 1), {"a": t(4, 3, 2, 2), "b": t(4, 2, 2, 2)}),
    "functional": Row(
        lambda s, x: s.n(F.conv_transpose2d(x, s.w, s.h, 2, 1, output_padding=1)),
        {"w": weight(4, 6, 3, 3), "h": weight(6), "n": lambda: nn.BatchNorm2d(6)},
    ),
    "functional with groups": Row(
        lambda s, x: s.n(F.conv_transpose2d(input=x, weight=s.w * 2, stride=(2, 1), groups=2)),
        {"w": weight(4, 3, 3, 3), "n": lambda: nn.BatchNorm2d(6)},
    ),
    "one axis": Row(
        lambda s, x: s.n(s.a(x)), {"a": lambda: nn.ConvTranspose1d(4, 6, 3, 2), "n": lambda: nn.BatchNorm1d(6)},
        sizes=((1,), (5,)),
    ),
    "three axes": Row(
        lambda s, x: s.n(s.a(x)), {"a": lambda: nn.ConvTranspose3d(4, 6, 2, 2), "n": lambda: nn.BatchNorm3d(6)},
        sizes=((1, 2, 3),),
    ),
    "weight norm": Row(lambda s, x: s.n(s.a(x)), {"a": doubled, "n": lambda: nn.BatchNorm2d(6)}),
    "cropped": Row(lambda s, x: s.n(s.a(x)[:, :, 1:, 1:-1]), {"a": t(4, 6, 4, 2), "n": lambda: nn.BatchNorm2d(6)}),
    "split, each part scaled": Row(
        lambda s, x: torch.cat([s.n(p) for p in _pair(s.a(x).chunk(2, 1))], 1),
        {"a": t(4, 6, 2, 2), "n": lambda: nn.BatchNorm2d(3)},
    ),
    "stride one and a norm before": Row(
        lambda s, x: s.a(s.n(x)), {"a": t(4, 3, 3, 1, 1), "n": lambda: nn.BatchNorm2d(4)}, ONE | {"border_terms": 1}
    ),
}  # fmt: skip


def _pair(parts: Any) -> tuple[Tensor, Tensor]:
    return parts[0], parts[1]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("verify", [False, True])
def test_folds(name: str, verify: bool) -> None:
    row = ROWS[name]
    network = Net(row.run, **{part: make() for part, make in row.parts.items()})
    if verify:
        fused = repfx.reparameterize(hostile.prepared(network, 0))
        assert not [d for d in repfx.report(fused).declines if d.reason is Reason.VERIFICATION]
        return
    _, fused = compiled(network, 4, row.sizes)
    found = counted(left(fused, 4, row.sizes[0]))
    assert found == row.left
    assert any(
        isinstance(m, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) for m in fused.modules()
    ) or (name == "stride one and a norm before")


STAYS = {
    "norm before": (
        lambda s, x: s.a(s.n(x)), {"a": t(4, 3, 3, 2), "n": lambda: nn.BatchNorm2d(4)},
        Reason.NOT_EXACT, "a", "of a shifted value", {"convolutions": 1, "batch_norms": 1},
    ),
    "told its output size": (
        lambda s, x: s.n(s.a(x, output_size=(16, 16))), {"a": t(4, 3, 2, 2), "n": lambda: nn.BatchNorm2d(3)},
        Reason.NOT_EXACT, "a", "is told its output size", {"convolutions": 1, "batch_norms": 1},
    ),
    "weight that depends on the input": (
        lambda s, x: s.n(F.conv_transpose2d(x, s.w * x.mean(), stride=2)),
        {"w": weight(4, 3, 3, 3), "n": lambda: nn.BatchNorm2d(3)},
        Reason.NOT_EXACT, "conv_transpose2d", "its weight depends on the input", {"convolutions": 1, "batch_norms": 1},
    ),
    "wide 1x1 behind": (
        lambda s, x: s.b(s.a(x)), {"a": t(4, 6, 4, 2, 1), "b": lambda: conv(6, 32, 1)},
        Reason.COST, "b", "a dense convolution would grow", {"convolutions": 2},
    ),
    "padded kernel behind": (
        lambda s, x: s.b(s.a(x)), {"a": t(4, 4, 4, 2, 1, groups=4), "b": lambda: conv(4, 4, groups=4)},
        Reason.NOT_EXACT, "b", "differ on the frame", {"convolutions": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    run, parts, reason, place, fact, kept = STAYS[name]
    network = Net(run, **{part: make() for part, make in parts.items()})  # type: ignore[attr-defined]
    _, fused = compiled(network, 4, ((8, 8),))
    assert_declined(fused, reason, place, fact)
    found = counted(left(fused, 4))
    assert {kind: found.get(kind, 0) for kind in kept} == kept
