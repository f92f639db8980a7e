"""The fast float64 convolution with groups computes what torch's does, and refuses what torch's refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from repfx.rewriting import FastDepthwise

CASES = list(itertools.product((2, 3), (1, 2), ((3, 3), (2, 5), (1, 1)), (1, 2), (0, 2), (1, 2)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_like_torch(case: tuple[int, int, tuple[int, int], int, int, int]) -> None:
    groups, width, kernel, stride, padding, dilation = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, groups * width, 11, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(groups * 3, width, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(groups * 3, generator=generator, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    with FastDepthwise():
        found = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-13 * float(expected.abs().max())


def test_an_image_that_is_smaller_than_the_kernel_is_refused() -> None:
    x, weight = torch.randn(1, 4, 2, 2, dtype=torch.float64), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        F.conv2d(x, weight, groups=4)
    with FastDepthwise(), pytest.raises(RuntimeError):
        F.conv2d(x, weight, groups=4)
