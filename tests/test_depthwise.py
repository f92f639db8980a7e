"""The fast float64 depthwise convolution: computes what torch's does, refuses what torch's refuses, and is taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from repfx.rewriting import FastDepthwise, depthwise

CASES = list(itertools.product((2, 3), (1, 3), ((3, 3), (2, 5), (1, 1)), (1, (2, 1)), (0, (2, 1)), (1, 2)))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images that took the fast way."""
    shapes: list[tuple[int, ...]] = []
    fast: Callable[..., Tensor] = depthwise._depthwise

    def noted(x: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return fast(x, *rest)

    monkeypatch.setattr(depthwise, "_depthwise", noted)
    return shapes


def drawn(*shape: int) -> Tensor:
    """Random float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_like_torch(taken: list[tuple[int, ...]], case: tuple[int, int, tuple[int, int], Any, Any, int]) -> None:
    groups, multiplier, kernel, stride, padding, dilation = case
    x, bias = drawn(2, groups, 11, 10), drawn(groups * multiplier)
    weight = drawn(groups * multiplier, 1, *kernel)
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    with FastDepthwise():
        found = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    assert taken == [(2, groups, 11, 10)]
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    assert float((found - expected).abs().max()) <= 1e-13 * float(expected.abs().max())


def test_an_image_that_is_smaller_than_the_kernel_is_refused(taken: list[tuple[int, ...]]) -> None:
    x, weight = drawn(1, 4, 2, 2), drawn(4, 1, 3, 3)
    with pytest.raises(RuntimeError):
        F.conv2d(x, weight, groups=4)
    with FastDepthwise(), pytest.raises(RuntimeError):
        F.conv2d(x, weight, groups=4)
    assert len(taken) == 1


@pytest.mark.parametrize(
    "compute",
    [
        lambda: F.conv2d(drawn(1, 4, 8, 8), drawn(4, 4, 3, 3)),
        lambda: F.conv2d(drawn(1, 4, 8, 8), drawn(4, 2, 3, 3), groups=2),
        lambda: F.conv2d(drawn(1, 4, 8, 8).float(), drawn(4, 1, 3, 3).float(), groups=4),
        lambda: F.conv2d(drawn(1, 4, 40, 40), drawn(4, 1, 3, 3), groups=4),
        lambda: F.conv1d(drawn(1, 4, 8), drawn(4, 1, 3), groups=4),
        lambda: F.conv_transpose2d(drawn(1, 4, 8, 8), drawn(4, 1, 3, 3), groups=4),
    ],
    ids=["dense", "grouped", "float32", "large", "signal", "transposed"],
)
def test_anything_else_is_left_to_torch(taken: list[tuple[int, ...]], compute: Callable[[], Tensor]) -> None:
    expected = compute()
    with FastDepthwise():
        assert torch.equal(compute(), expected)
    assert taken == []


def test_probing_takes_it(taken: list[tuple[int, ...]]) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)).eval()
    repfx.reparameterize(model)
    assert taken, "the comparison of a depthwise convolution with what replaces it waits for torch's"
