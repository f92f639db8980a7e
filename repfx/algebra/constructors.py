"""Makers: the maps that single operations are.

A convolution, a per-channel scale and shift, a copy of channels, constant padding, average pooling,
PixelUnshuffle.  Weights are passed as functions and read only when values are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repfx.algebra.affine import ZEROS, AffineConv, Border, Extension
from repfx.algebra.incidence import Incidence, Ints
from repfx.algebra.values import Rows, Values, dilated, is_large


def from_conv(
    weight: Callable[[], Tensor],
    bias: Callable[[], Tensor] | None,
    *,
    shape: Sequence[int],
    groups: int = 1,
    stride: Sequence[int] = (),
    before: Sequence[int] = (),
    after: Sequence[int] = (),
    dilation: Sequence[int] = (),
    padding_mode: str = ZEROS,
    laps: bool = False,
    terms: Sequence[tuple[Border, Tensor]] = (),
) -> AffineConv:
    """A convolution (or, with no spatial axes, a Linear).

    `shape` is the weight's: (O, C/groups, *kernel).  `weight` and `bias` are called only when values
    are wanted.  `terms` are its border terms, each with its taps (O, *kernel); `laps` as in `Extension`.
    """
    outputs, width, *taps = shape
    kernel = tuple(d * (k - 1) + 1 for k, d in zip(taps, dilation))

    def rule(_: Sequence[Values]) -> Values:
        given = weight()
        zeros = torch.zeros(outputs, dtype=torch.float64, device=given.device)
        planes: Tensor | Rows
        if is_large((outputs, width, *kernel)):
            written = tuple(dilation)
            planes = Rows((outputs, width, *kernel), given.device, lambda part, out: out.copy_(given[part]), written)
        else:
            planes = dilated(given.double(), dilation, 2)
        ones = tuple(taps.double() for _, taps in terms)
        return Values(planes, zeros if bias is None else bias().double(), ones)

    return AffineConv(
        in_channels=width * groups,
        incidence=Incidence.grouped(width * groups, outputs, groups),
        kernel=kernel,
        before=tuple(before),
        stride=tuple(stride),
        extent=tuple(b + a - k for b, a, k in zip(before, after, kernel)),
        biased=bias is not None or len(terms) > 0,
        inputs=(),
        rule=rule,
        borders=tuple(border for border, _ in terms),
        extension=Extension(padding_mode, laps),
        support=_dilated_support(taps, dilation),
    )


def from_transposed(
    weight: Callable[[], Tensor],
    bias: Callable[[], Tensor] | None,
    *,
    shape: Sequence[int],
    groups: int,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> AffineConv:
    """A transposed convolution: the flipped kernel slides over the spread input.

    `shape` is the weight's: (C, O/groups, *kernel).  Padding p of the transposed convolution leaves
    d (k - 1) - p zeros around the spread input, and `output_padding` more behind it.
    """
    inputs, width, *taps = shape
    outputs = width * groups
    kernel = tuple(d * (k - 1) + 1 for k, d in zip(taps, dilation))
    before = tuple(k - 1 - p for k, p in zip(kernel, padding))
    flipped = tuple(range(2, 2 + len(taps)))

    def rule(_: Sequence[Values]) -> Values:
        blocks = weight().double().reshape(groups, inputs // groups, width, *taps)
        planes = blocks.transpose(1, 2).reshape(outputs, inputs // groups, *taps).flip(flipped)
        planes = dilated(planes, dilation, 2)
        return Values(planes, planes.new_zeros(outputs) if bias is None else bias().double())

    return AffineConv(
        in_channels=inputs,
        incidence=Incidence.grouped(inputs, outputs, groups),
        kernel=kernel,
        before=before,
        stride=(1,) * len(taps),
        extent=tuple(2 * b + more - k for b, more, k in zip(before, output_padding, kernel)),
        biased=bias is not None,
        inputs=(),
        rule=rule,
        zoom=tuple(stride),
        support=_dilated_support(taps, dilation),
    )


def pointwise(
    channels: int, axes: int, scale: Callable[[], Tensor] | None, shift: Callable[[], Tensor] | None
) -> AffineConv:
    """y = scale x + shift, per channel; each of shape (C,) or a scalar.  None: one, respectively zero."""

    def rule(_: Sequence[Values]) -> Values:
        given = [None if read is None else read().double().reshape(-1).expand(channels) for read in (scale, shift)]
        device = next((numbers.device for numbers in given if numbers is not None), None)
        planes, bias = (
            torch.full((channels,), number, dtype=torch.float64, device=device) if numbers is None else numbers
            for number, numbers in zip((1.0, 0.0), given)
        )
        return Values(planes.reshape(channels, 1, *(1,) * axes), bias)

    return _depthwise(channels, np.arange(channels), axes, rule, biased=shift is not None)


def normalising(
    channels: int,
    axes: int,
    statistics: tuple[Callable[[], Tensor], Callable[[], Tensor]],
    affine: tuple[Callable[[], Tensor] | None, Callable[[], Tensor] | None],
    eps: float,
) -> AffineConv:
    """A batch norm of known (mean, variance) and (gamma, beta): scale = gamma / sqrt(variance + eps),
    shift = beta - mean scale.
    """
    (mean, variance), (gamma, beta) = statistics, affine

    def rule(_: Sequence[Values]) -> Values:
        scale = torch.rsqrt(variance().double() + eps)
        if gamma is not None:
            scale = gamma().double() * scale
        shift = -mean().double() * scale
        if beta is not None:
            shift = beta().double() + shift
        return Values(scale.expand(channels).reshape(channels, 1, *(1,) * axes), shift.expand(channels))

    return _depthwise(channels, np.arange(channels), axes, rule, biased=True)


def select(channels: int, indices: Ints, axes: int) -> AffineConv:
    """Copy input channel `indices[o]` to output o: slices, permutations, duplicates, identity."""

    def rule(_: Sequence[Values]) -> Values:
        planes = torch.ones(len(indices), 1, *(1,) * axes, dtype=torch.float64)
        return Values(planes, torch.zeros(len(indices), dtype=torch.float64))

    return _depthwise(channels, indices, axes, rule, biased=False, selection=np.asarray(indices))


def pad_constant(channels: int, before: Sequence[int], after: Sequence[int], value: float) -> AffineConv:
    """Extend the image by a constant: zero padding, plus `value` where there is no image."""
    constant = None if value == 0 else lambda: torch.tensor(value, dtype=torch.float64)
    return pad_values(channels, before, after, constant)


def pad_values(
    channels: int, before: Sequence[int], after: Sequence[int], values: Callable[[], Tensor] | None
) -> AffineConv:
    """Extend the image by one constant per channel, (C,) or a scalar; None: zeros."""
    axes = len(before)
    border = Border((1,) * axes, tuple(before), (False,) * axes)

    def rule(_: Sequence[Values]) -> Values:
        constant = torch.zeros(()) if values is None else values()
        bias = torch.zeros(channels, dtype=torch.float64, device=constant.device) + constant.double()
        planes = torch.ones(channels, 1, *(1,) * axes, dtype=torch.float64, device=constant.device)
        return Values(planes, bias, () if values is None else (-bias.reshape(channels, *(1,) * axes),))

    return AffineConv(
        in_channels=channels,
        incidence=Incidence.selecting(np.arange(channels)),
        kernel=(1,) * axes,
        before=tuple(before),
        stride=(1,) * axes,
        extent=tuple(b + a - 1 for b, a in zip(before, after)),
        biased=values is not None,
        inputs=(),
        rule=rule,
        borders=() if values is None else (border,),
    )


def pool_average(
    channels: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], divisor: int | None
) -> AffineConv:
    """Average pooling whose divisor counts the padding: a depthwise convolution of equal taps."""
    shape = (channels, 1, *kernel)
    value = 1.0 / (divisor or prod(kernel))
    return from_conv(
        lambda: torch.full(shape, value, dtype=torch.float64),
        None,
        shape=shape,
        groups=channels,
        stride=stride,
        before=padding,
        after=padding,
        dilation=(1,) * len(kernel),
    )


def pixel_unshuffle(channels: int, factor: int) -> AffineConv:
    """PixelUnshuffle: output c r^2 + i r + j is input c at (r h + i, r w + j); sizes are multiples of r."""
    r = factor
    outputs = channels * r * r

    def rule(_: Sequence[Values]) -> Values:
        taps = torch.eye(r * r, dtype=torch.float64).reshape(r * r, 1, r, r)
        return Values(taps.repeat(channels, 1, 1, 1), torch.zeros(outputs, dtype=torch.float64))

    return AffineConv(
        in_channels=channels,
        incidence=Incidence.selecting(np.repeat(np.arange(channels), r * r)),
        kernel=(r, r),
        before=(0, 0),
        stride=(r, r),
        extent=(-r, -r),
        biased=False,
        inputs=(),
        rule=rule,
        multiple=(r, r),
    )


def identity(channels: int, axes: int) -> AffineConv:
    """The identity on `channels` channels."""
    return select(channels, np.arange(channels), axes)


def _dilated_support(taps: Sequence[int], dilation: Sequence[int]) -> NDArray[np.bool_]:
    support = np.zeros(tuple(d * (k - 1) + 1 for k, d in zip(taps, dilation)), bool)
    support[tuple(slice(None, None, d) for d in dilation)] = True
    return support


def _depthwise(
    channels: int,
    indices: Ints,
    axes: int,
    rule: Callable[[Sequence[Values]], Values],
    *,
    biased: bool,
    selection: Ints | None = None,
) -> AffineConv:
    return AffineConv(
        in_channels=channels,
        incidence=Incidence.selecting(np.asarray(indices)),
        kernel=(1,) * axes,
        before=(0,) * axes,
        stride=(1,) * axes,
        extent=(-1,) * axes,
        biased=biased,
        inputs=(),
        rule=rule,
        selection=selection,
    )


def pad_by(channels: int, before: Sequence[int], after: Sequence[int], mode: str) -> AffineConv:
    """Extend the image by "reflect", "replicate" or "circular": one tap on the extended image."""
    plain = pad_constant(channels, before, after, 0.0)
    return replace(plain, extension=Extension(mode))


def crop(channels: int, starts: Sequence[int], strides: Sequence[int], extents: Sequence[int]) -> AffineConv:
    """Spatial slicing x[..., start : stop : stride]; `extent` is stop - start - 1, stop counted from the end."""
    axes = len(starts)
    plain = pad_constant(channels, [-s for s in starts], (0,) * axes, 0.0)
    return replace(plain, stride=tuple(strides), extent=tuple(extents))
