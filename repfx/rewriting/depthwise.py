"""float64 depthwise convolutions of small images, 1.5 to 30 times faster than torch's on a CPU: what probing waits for.

torch computes one channel after another; here the channels lie side by side, and every tap of the kernel is one
product with all of them.  Pays where an image has few pixels for its channels, whatever the kernel; elsewhere, and for
everything else, torch computes as always.  It takes the place of torch's on both sides of a comparison, which have
different kernels.  Entered as a mode below the counting of operations, so counts do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PIXELS = 256  # of a whole batch; measured: up to 200 it gains with every kernel, from 800 on it loses


class FastDepthwise(TorchDispatchMode):
    """While it is open, two-dimensional float64 depthwise convolutions of small images take the fast way."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default and not kwargs and applies(*args):
            return _depthwise(*args[:6])
        return func(*args, **(kwargs or {}))


def applies(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: object, padding: object, dilation: object,
    transposed: bool, output_padding: object, groups: int,
) -> bool:  # fmt: skip
    """Whether the fast way is one for a convolution, and is faster."""
    if transposed or groups == 1 or x.dim() != 4 or weight.shape[1] != 1:
        return False
    if x.dtype != torch.float64 or x.device.type != "cpu":
        return False
    batch, _, height, width = x.shape
    return batch * height * width <= _PIXELS


def _depthwise(
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,  # (C m, 1, kh, kw)
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    channels, kernel = weight.shape[0], weight.shape[2:]
    stride, padding, dilation = (_pair(numbers) for numbers in (stride, padding, dilation))
    vertical, horizontal = padding
    padded = F.pad(x, (horizontal, horizontal, vertical, vertical)).repeat_interleave(channels // x.shape[1], 1)
    padded = padded.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C m)
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    rows, columns = ((n - e) // s + 1 for n, e, s in zip(padded.shape[1:3], extent, stride))
    if min(rows, columns) < 1:
        raise RuntimeError("the kernel is larger than the padded input")
    out = x.new_zeros(x.shape[0], rows, columns, channels)
    taps = weight.flatten(1).t().contiguous()  # (kh kw, C m)
    for tap, (row, column) in zip(taps, product(*map(range, kernel))):
        top, left = row * dilation[0], column * dilation[1]
        window = padded[:, top :: stride[0], left :: stride[1]][:, :rows, :columns]
        out.addcmul_(window, tap)
    if bias is not None:
        out.add_(bias)
    return out.permute(0, 3, 1, 2).contiguous()


def _pair(numbers: Sequence[int]) -> tuple[int, ...]:
    """One number for each axis, of which torch gives a single one where both are the same."""
    return tuple(numbers) * 2 if len(numbers) == 1 else tuple(numbers)
