"""The few module types that a compiled graph holds beside PyTorch's own.

They are plain `nn.Module`s with weights: they can be trained, exported, copied, pickled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from repfx.decline import InputError

NORMALISING = (WeightNorm, SpectralNorm)  # torch's hooks that compute a weight from others, and do nothing else

INDEX = "_repfx_modules"


def index_modules(root: nn.Module) -> None:
    """Remember all modules of a shell by path, which is then asked for them many times."""
    root.__dict__[INDEX] = dict(root.named_modules(remove_duplicate=False))


def note_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Let `module_at` find a module that the root is given later, when its code has run."""
    root.__dict__.setdefault(INDEX, {})[path] = module


def module_at(root: nn.Module, path: str) -> nn.Module:
    """`root.get_submodule(path)`, from the index where there is one."""
    found = root.__dict__.get(INDEX, {}).get(path)
    return root.get_submodule(path) if found is None else found


class ChannelOrder(nn.Module):
    """y[:, o] = x[:, index[o]]: a permutation, slice or repetition of channels along `dim`."""

    index: Tensor

    def __init__(self, index: Tensor, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) to (B, len(index), ...), or along the last axis where dim is -1."""
        return torch.index_select(x, self.dim, self.index)

    def extra_repr(self) -> str:
        return f"{len(self.index)}, dim={self.dim}"


class ChannelSlice(nn.Module):
    """y = x[:, start:stop], a view: the channels that a branch reads, along `dim`."""

    def __init__(self, start: int, stop: int, dim: int = 1) -> None:
        super().__init__()
        self.start, self.stop, self.dim = start, stop, dim

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) to (B, stop - start, ...), or along the last axis where dim is -1."""
        return x.narrow(self.dim, self.start, self.stop - self.start)

    def extra_repr(self) -> str:
        return f"{self.start}:{self.stop}, dim={self.dim}"


class ScaleShift(nn.Module):
    """y = x * scale + shift, one value per channel along `dim`: what is left of a lone batch norm."""

    def __init__(self, scale: Tensor, shift: Tensor, axes: int) -> None:
        super().__init__()
        self.axes = axes
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *axes); with no axes, channels are last."""
        shape = (-1, *(1,) * self.axes)
        return x * self.scale.view(shape) + self.shift.view(shape)


def _version(weight: Tensor) -> object:
    return () if weight.is_cpu else object() if weight.is_inference() else (weight._version, weight.data_ptr())


def _holds(kept: Tensor, weight: Tensor) -> bool:
    """Whether the weight is still what was kept: by value where that is cheap, as `weight.data` has no version."""
    return not weight.is_cpu or torch.equal(kept, weight)


class BorderTerm(nn.Module):
    """The map that a constant before a zero-padded convolution adds: sum_t weight[t] (*) 1~.

    `1~` is one inside the image and zero outside, or one on an image that is `longer` by so many pixels on
    each axis.  The map depends on the input's size alone; along a free axis it is constant and has size one,
    so adding it is a broadcast.
    """

    longer: tuple[int, ...] = ()  # of terms pickled before there was such a thing: none is

    def __init__(
        self,
        weight: Tensor,
        before: Sequence[int],
        stride: Sequence[int],
        free: Sequence[bool],
        longer: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (O, *kernel)
        self.before = tuple(before)
        self.stride = tuple(stride)
        self.free = tuple(free)
        self.longer = tuple(longer)
        self._last: tuple[Any, Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def forward(self, inputs: Sequence[int], outputs: Sequence[int]) -> Tensor:
        """Spatial sizes of the convolution's input and output, to the map (O, *sizes or 1)."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.weight.requires_grad):
            return self._map(inputs, outputs)
        weight = self.weight
        key = (tuple(inputs), tuple(outputs), weight.dtype, weight.device, _version(weight))
        if self._last is None or self._last[0] != key or not _holds(self._last[1], weight):
            kept = weight.detach().clone() if weight.is_cpu else weight.detach()
            self._last = (key, kept, self._map(inputs, outputs))
        return self._last[2]

    def _map(self, inputs: Sequence[int], outputs: Sequence[int]) -> Tensor:
        out: Tensor = self.weight
        for axis, free in enumerate(self.free):
            if free:
                continue
            taps = torch.arange(out.shape[1 + axis], device=out.device)
            places = torch.arange(outputs[axis], device=out.device)[:, None] * self.stride[axis]
            places = places + (taps - self.before[axis])
            size = inputs[axis] + (self.longer[axis] if self.longer else 0)
            inside = ((places >= 0) & (places < size)).to(out.dtype)  # (size, kernel)
            out = torch.matmul(out.transpose(1 + axis, -1), inside.t()).transpose(1 + axis, -1)
        return out

    def extra_repr(self) -> str:
        text = f"{tuple(self.weight.shape)}, before={self.before}, stride={self.stride}, free={self.free}"
        return f"{text}, longer={self.longer}" if any(self.longer) else text


class _Extended(nn.Module):
    """A convolution with what torch's own lacks: one-sided padding or cropping, and border terms."""

    pads: tuple[tuple[int, int], ...]
    pad_mode: str
    borders: nn.ModuleList
    laps: bool = False  # circular padding that may be larger than the image

    def _setup(
        self, pads: Sequence[tuple[int, int]], pad_mode: str, borders: Sequence[BorderTerm], *, laps: bool = False
    ) -> None:
        self.pads = tuple(pads)
        self.pad_mode = pad_mode
        self.laps = laps
        self.borders = nn.ModuleList(borders)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *sizes) to (B, O, *sizes')."""
        sizes = x.shape[2:]
        if self.laps:
            x = self._wound(x)
        elif self.pads:
            flat = [p for pair in reversed(self.pads) for p in pair]
            if any(min(pair) < 0 < max(pair) for pair in self.pads):
                x = self._padded(x, [max(p, 0) for p in flat])  # first: a crop may be longer than a small image
                flat = [min(p, 0) for p in flat]
            x = self._padded(x, flat)
        y = super().forward(x)
        for border in self.borders:
            y = y + border(sizes, y.shape[2:])
        return y

    def _wound(self, x: Tensor) -> Tensor:
        """Position p of the extended image is position p mod size."""
        for axis, (before, after) in enumerate(self.pads, start=2):
            if before or after:
                places = torch.arange(-before, x.shape[axis] + after, device=x.device) % x.shape[axis]
                x = x.index_select(axis, places)
        return x

    def _padded(self, x: Tensor, flat: list[int]) -> Tensor:
        """Cropping is the same in every mode."""
        plain = self.pad_mode == "zeros" or max(flat) <= 0
        return F.pad(x, flat) if plain else F.pad(x, flat, mode=self.pad_mode)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return f"{text}, pads={self.pads}" if self.pads else text


class ExtendedConv1d(_Extended, nn.Conv1d):
    """`nn.Conv1d` with one-sided padding and border terms."""


class ExtendedConv2d(_Extended, nn.Conv2d):
    """`nn.Conv2d` with one-sided padding and border terms."""


class ExtendedConv3d(_Extended, nn.Conv3d):
    """`nn.Conv3d` with one-sided padding and border terms."""


EXTENDED: dict[int, type[_Extended]] = {1: ExtendedConv1d, 2: ExtendedConv2d, 3: ExtendedConv3d}
PLAIN: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
TRANSPOSED: dict[int, type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class CustomFunction(nn.Module):
    """y = function.apply(x, ...): a call of an autograd function, which keeps the backward that it defines."""

    def __init__(self, function: type[torch.autograd.Function], parts: int | None = None) -> None:
        """`parts`: how many values it returns; None: one, not in a tuple."""
        super().__init__()
        self.function, self.parts = function, parts

    def forward(self, *args: Any) -> Any:
        """As the function's."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        return self.function.__name__


class _Open:
    """An argument that is a value of the graph."""

    def __repr__(self) -> str:
        return "OPEN"

    def __reduce__(self) -> str:
        return "OPEN"


OPEN = _Open()


class Guard(nn.Module):
    """A check that returns nothing; removing it as dead code would remove the check."""

    _is_impure = True  # torch.fx asks


class ArgumentGuard(Guard):
    """Raises `InputError` for arguments other than those that were compiled in."""

    def __init__(self, model: str, expected: Mapping[str, Any], starred: Collection[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.expected = dict(expected)
        self.starred = frozenset(starred)  # `*args` and `**kwargs`, for which exporters hand over an empty list

    def forward(self, **given: Any) -> None:
        """The arguments by name."""
        for name, wanted in self.expected.items():
            nothing = name in self.starred and not wanted and not given[name]
            if not nothing and not _matches(given[name], wanted):
                raise InputError(_argument_message(self.model, name, given[name], wanted))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.expected.items())


def _matches(given: Any, wanted: Any) -> bool:
    if wanted is OPEN:
        return given is not None
    if isinstance(wanted, tuple | list):
        return (
            isinstance(given, type(wanted))
            and len(given) == len(wanted)
            and all(_matches(a, b) for a, b in zip(given, wanted))
        )
    if isinstance(wanted, dict):
        return (
            isinstance(given, dict)
            and given.keys() == wanted.keys()
            and all(_matches(given[key], wanted[key]) for key in wanted)
        )
    if wanted is None or isinstance(given, Tensor):
        return given is wanted
    return isinstance(given, type(wanted)) and bool(given == wanted)


def _argument_message(model: str, name: str, given: Any, wanted: Any) -> str:
    what = "a tensor" if isinstance(given, Tensor) else repr(given)[:60]
    compiled = "as given, so it cannot be None" if wanted is OPEN else f"for {wanted!r}"
    return (
        f"argument {name} of {model} is {what}, and repfx compiled the model {compiled}; compile it with "
        f"example_inputs (or example_kwargs) that pass {name} as you need it, or exclude what reads it"
    )


class SizeGuard(Guard):
    """Raises `InputError` where a decision that the trace took from example sizes would fall otherwise.

    `kind` is what was asked of the value: its "truth", "value" or "length".
    """

    def __init__(self, kind: str, wanted: Any, place: str, shapes: str) -> None:
        super().__init__()
        self.kind, self.wanted, self.place, self.shapes = kind, wanted, place, shapes

    def forward(self, value: Any) -> None:
        """What the sizes say now."""
        found = bool(value) if self.kind == "truth" else len(value) if self.kind == "length" else value
        if found != self.wanted:
            if not self.shapes:
                raise InputError(f"{self.place} was compiled for a value of {self.wanted} axes, and is given {found}")
            raise InputError(
                f"an input of this shape takes another way at {self.place} than the example of shape {self.shapes} "
                "that the model was compiled with; compile it with an example of this shape, or without "
                "example_inputs, which leaves that module as it is"
            )

    def extra_repr(self) -> str:
        return f"{self.kind} {self.wanted!r} at {self.place}"


EMITTED = (ChannelOrder, ChannelSlice, ScaleShift, BorderTerm, _Extended, Guard, CustomFunction)
