"""An affine map becomes an `nn.Module`: the only place where folded weights are cast and stored.

One form is written as one or more modules in a row (`gather`, the convolution, `order`).  Weights are
computed in float64 and cast once; a value that leaves the range of the target dtype is an error that
names the channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from repfx.algebra import ZEROS, AffineConv, Form, Incidence, Ints, Kind, Rows, Values, contiguous, form_of, gathered
from repfx.errors import UserError
from repfx.layers import EXTENDED, PLAIN, TRANSPOSED, BorderTerm, ChannelOrder, ChannelSlice, ScaleShift

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Target:
    """What the emitted weights look like: those of the modules they replace."""

    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    requires_grad: bool = True
    channels_last: bool = False


def emit(map_: AffineConv, target: Target, path: str = "") -> list[tuple[str, nn.Module]]:
    """Modules, in order of execution, each with a suffix for its name ("" for the main one).

    Raises UserError where a weight overflows `target.dtype`.  What is stored has no history, so none is recorded.
    """
    with torch.no_grad():
        return _emit(map_, target, path)


def _emit(map_: AffineConv, target: Target, path: str) -> list[tuple[str, nn.Module]]:
    form = form_of(map_)
    dim = 1 if map_.axes else -1
    if form.kind is Kind.IDENTITY:
        return []
    if form.kind is Kind.COPY:
        assert form.gather is not None
        return [("", _copy(form.gather, target, dim))]
    values = map_.values()
    if form.kind is Kind.SCALE:
        scale = _cast(values.planes.reshape(-1), target, path, "scale")
        shift = _cast(values.bias, target, path, "shift") if form.biased else None
        module: nn.Module = ScaleShift(scale, shift, map_.axes)
    else:
        module = _convolution(map_, form, values, target, path)
    if not target.requires_grad:
        module.requires_grad_(False)
    row = [("", module.eval())]
    if form.gather is not None:
        row.insert(0, ("_gather", _copy(form.gather, target, dim)))
    if form.order is not None:
        row.append(("_order", ChannelOrder(_index(form.order, target), dim)))
    return row


def _copy(indices: Ints, target: Target, dim: int) -> nn.Module:
    if contiguous(indices):
        return ChannelSlice(int(indices[0]), int(indices[-1]) + 1, dim)
    return ChannelOrder(_index(indices, target), dim)


def _convolution(map_: AffineConv, form: Form, values: Values, target: Target, path: str) -> nn.Module:
    # rows of the emitted weight: convolution output j computes map output source[j]
    source = np.arange(form.out_channels) if form.order is None else np.argsort(form.order)
    weight = _grouped_weight(map_, form, values, source)
    bias = values.bias if form.order is None else gathered(values.bias, source)
    if form.kind is Kind.LINEAR:
        linear = _unfilled(nn.Linear, in_features=form.in_channels, out_features=form.out_channels, bias=form.biased)
        return _filled(linear, weight, bias, target, path)
    if form.kind is Kind.TRANSPOSED:
        return _transposed(map_, form, weight, bias, target, path)
    borders = _borders(map_, form, values, source, target, path)
    apart = form.padded_apart
    arguments = {
        "in_channels": form.in_channels,
        "out_channels": form.out_channels,
        "kernel_size": form.kernel,
        "stride": form.stride,
        "padding": tuple(0 if apart else before for before, _ in form.pads),
        "dilation": form.dilation,
        "groups": form.groups,
        "bias": form.biased,
        "padding_mode": ZEROS if apart else form.padding_mode,
    }
    if not apart and not borders:
        return _filled(_unfilled(PLAIN[map_.axes], **arguments), weight, bias, target, path)
    conv = _unfilled(EXTENDED[map_.axes], **arguments)
    conv._setup(form.pads if apart else (), form.padding_mode, borders, laps=form.laps)
    return _filled(conv, weight, bias, target, path)


def _borders(map_: AffineConv, form: Form, values: Values, source: Ints, target: Target, path: str) -> list[BorderTerm]:
    """The border terms, their channels in the order of the emitted rows."""
    borders = []
    for border, ones in zip(map_.borders, values.ones):
        rows = ones if form.order is None else gathered(ones, source)
        own = _cast(rows, target, path, "border")
        borders.append(BorderTerm(own, border.before, map_.stride, border.free, border.longer))
    return borders


def _transposed(
    map_: AffineConv, form: Form, weight: Tensor | Rows, bias: Tensor, target: Target, path: str
) -> nn.Module:
    """The kernel is flipped back, and torch stores it by input channel: (C, O/groups, *kernel)."""
    whole = weight if isinstance(weight, Tensor) else weight.read(slice(None))
    blocks = whole.flip(tuple(range(2, whole.dim()))).unflatten(0, (form.groups, -1)).transpose(1, 2)
    module = _unfilled(
        TRANSPOSED[map_.axes],
        in_channels=form.in_channels,
        out_channels=form.out_channels,
        kernel_size=form.kernel,
        stride=form.stride,
        padding=tuple(p for p, _ in form.pads),
        output_padding=form.output_padding,
        groups=form.groups,
        bias=form.biased,
        dilation=form.dilation,
    )
    return _filled(module, blocks.flatten(0, 1), bias, target, path)


def _grouped_weight(map_: AffineConv, form: Form, values: Values, source: Ints) -> Tensor | Rows:
    """Weight (O, C/groups, *kernel) from planes (O, K, *window), rows in emitted order."""
    window = tuple(slice(f, f + d * (k - 1) + 1, d) for f, d, k in zip(form.first, form.dilation, form.kernel))
    cut = (slice(None), slice(None), *window)
    as_is = form.gather is None and form.order is None
    if as_is and map_.incidence == Incidence.grouped(map_.in_channels, map_.out_channels, form.groups):
        return values.cut(window)
    planes = values.planes[cut]
    rows = map_.incidence.rows[source]  # (O, K) input channels
    if form.gather is not None:
        rank = np.full(map_.in_channels, -1, dtype=np.int64)
        rank[form.gather] = np.arange(len(form.gather))
        if form.groups == form.out_channels and form.in_channels == form.out_channels:
            local = np.zeros_like(rows)  # depthwise over gathered, possibly repeated, inputs
        else:
            local = rank[rows.clip(0)]
    else:
        local = rows.copy()
    width = form.in_channels // form.groups
    local = np.where(rows < 0, -1, local % width)
    index = torch.as_tensor(source, device=planes.device)
    chosen = planes[index]
    if local.shape[1] == width and np.array_equal(local, np.broadcast_to(np.arange(width), local.shape)):
        return chosen
    out = chosen.new_zeros(len(source), width, *form.kernel)
    where = torch.as_tensor(local, device=planes.device)
    valid = where >= 0
    row = torch.arange(len(source), device=planes.device)[:, None].expand_as(where)[valid]
    return out.index_put((row, where[valid]), chosen[valid])


def _unfilled(kind: type[_Module], **arguments: object) -> _Module:
    """A module whose weights are to be set: it has none that hold numbers, and draws no random ones."""
    module: _Module = _undrawn(kind)(device="meta", **arguments)  # type: ignore[arg-type]
    module.__class__ = kind
    return module


@cache
def _undrawn(kind: type[nn.Module]) -> Any:
    """The same module, which does not initialise its weights."""
    return type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})


def _filled(module: nn.Module, weight: Tensor | Rows, bias: Tensor, target: Target, path: str) -> nn.Module:
    module.weight = nn.Parameter(_cast(weight, target, path, "weight"))
    if module.bias is not None:
        module.bias = nn.Parameter(_cast(bias, target, path, "bias"))
    return module


def _cast(values: Tensor | Rows, target: Target, path: str, what: str) -> Tensor:
    """float64 values in the target's dtype; rows are computed and cast a few at a time."""
    last = target.channels_last and len(values.shape) == 4
    layout = torch.channels_last if last else torch.contiguous_format
    if values.device.type == "meta":
        return torch.empty(values.shape, dtype=target.dtype, device="meta").contiguous(memory_format=layout)
    out = torch.empty(tuple(values.shape), dtype=target.dtype, device=target.device, memory_format=layout)
    pieces = [(slice(None), values.detach())] if isinstance(values, Tensor) else values.pieces()
    for part, piece in pieces:
        own = out[part] if values.shape else out
        own.copy_(piece)
        if path and not bool(torch.isfinite(own.sum())):  # rarely: a half-precision sum may overflow by itself
            _refuse_infinite(piece, own, target, path, what, part.start or 0)
    return out


def _refuse_infinite(given: Tensor, cast: Tensor, target: Target, path: str, what: str, start: int) -> None:
    """An error that names the first output channel whose value is NaN, or is infinite only as it is stored.

    An infinity of the model's own stays one: scores are masked with it.
    """
    lost = ~torch.isfinite(cast) & ~torch.isinf(given.to(cast.device))
    if not bool(lost.any()):
        return
    row = int(lost.nonzero()[0][0]) if lost.dim() else 0
    value = given[row] if given.dim() else given
    where = f"{path}: the folded {what} of output channel {start + row}"
    if bool(torch.isfinite(value).all()):
        raise UserError(
            f"{where} is {float(value.abs().max()):.3g} and overflows {target.dtype}; "
            "convert the model to float32 before fusing"
        )
    raise UserError(
        f"{where} is no number; look for NaN and infinities in the weights that go into it, and for a negative "
        "running variance"
    )


def _index(indices: Ints | Sequence[int], target: Target) -> Tensor:
    return torch.as_tensor(np.asarray(indices), dtype=torch.int64).to(target.device)
