"""Inputs for a model that came without an example: derived, small, and seen to run.

The shape of an argument follows from what reads it first: a convolution tells its rank and channels, a Linear its
last axis, an Embedding the range of its numbers.  Configurations of timm tell the size that a model insists on.
Sizes are tried from the smallest; what the model's own code accepts is an input.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.graph import modules_of

_SIDES = (8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512)
_OTHER = ((5, 8), (3, 0), (16, 32), (32, 64), (0, 32))  # added to a height and a width: odd, not square, multiples
_LENGTHS = (9, 16, 32, 128, 512, 2048, 16000)
_FRAMES = (4, 8, 16, 32)
_LARGEST = 4_000_000  # numbers in one input
_ONE_ARGUMENT = 40  # how many shapes are tried for a model of one argument


@dataclass(frozen=True)
class Spec:
    """What is known of one argument: (batch, channels, *sizes), or (batch, *sizes, channels), or whole numbers."""

    channels: int
    axes: int  # how many sizes there are
    last: bool = False  # whether the channels are the last axis
    order: tuple[int, ...] | None = None  # the model permutes its axes first
    below: int | None = None  # whole numbers below this one

    def shape(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The shape for these sizes and a batch of two."""
        if self.below is not None:
            shape: tuple[int, ...] = (2, *sizes[:1])
        else:
            shape = (2, *sizes, self.channels) if self.last else (2, self.channels, *sizes)
        if self.order is None:
            return shape
        before = [0] * len(shape)
        for place, axis in enumerate(self.order):
            before[axis] = shape[place]
        return tuple(before)


def derived(model: nn.Module, told: Mapping[str, Spec]) -> Iterator[tuple[Tensor, ...]]:
    """Positional arguments to try, the smallest first.  Empty where nothing tells what the model takes.

    `told` is what its graph tells of its arguments (`told_by_graph`), if it has one.
    """
    required = _required(model)
    if not required:
        return
    dtype = _dtype(model)
    specs = [told.get(name) for name in required]
    if all(spec is not None for spec in specs):
        yield from _drawn([spec for spec in specs if spec is not None], model, dtype)
    if len(required) == 1:
        for spec in itertools.islice(_told_by_modules(model), _ONE_ARGUMENT):
            if [spec] != specs:
                yield from _drawn([spec], model, dtype)


def other_sizes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The same call with other heights and widths, all tensors that share the first one's sizes changed alike."""
    first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() > 2), None)
    if first is None:
        return
    old = tuple(first.shape[2:])
    generator = torch.Generator().manual_seed(1)
    for step in _OTHER:
        new = tuple(n + extra for n, extra in zip(old, itertools.cycle(reversed(step)), strict=False))
        new = new[::-1] if len(new) == 2 else new

        def resized(x: Any, new: tuple[int, ...] = new) -> Any:
            if not isinstance(x, Tensor) or x.dim() < 3 or tuple(x.shape[2:]) != old or not x.is_floating_point():
                return x
            shape = (*x.shape[:2], *new)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)

        yield tuple(map(resized, args)), {name: resized(value) for name, value in kwargs.items()}


def _required(model: nn.Module) -> list[str]:
    """The arguments that a forward asks for; its first where it asks for none."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return []
    asked = [p.name for p in named if p.default is p.empty]
    return asked or [p.name for p in named[:1]]


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _drawn(specs: Sequence[Spec], model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for sizes in _sizes(specs, model):
        generator = torch.Generator().manual_seed(0)
        made = []
        for spec in specs:
            shape = spec.shape(sizes[: spec.axes] if spec.below is None else sizes)
            if spec.below is not None:
                made.append(torch.randint(0, spec.below, shape, generator=generator).to(device))
            else:
                made.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype))
        if sum(x.numel() for x in made) <= _LARGEST:
            yield tuple(made)


def _sizes(specs: Sequence[Spec], model: nn.Module) -> Iterator[tuple[int, ...]]:
    axes = max(spec.axes for spec in specs)
    stated = _stated(model)
    if axes == 2:
        yield from ((s, s) for s in _SIDES)
        if stated is not None:
            yield stated
    elif axes == 3:
        yield from ((t, s, s) for t, s in itertools.product(_FRAMES, (8, 16, 32, 64, 112, 224)))
    elif axes == 1:
        yield from ((n,) for n in _LENGTHS)
    else:
        yield ()


def _stated(model: nn.Module) -> tuple[int, int] | None:
    """The height and width that timm's configuration of a model names."""
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        if isinstance(size, tuple | list) and len(size) == 3:
            return int(size[1]), int(size[2])
    return None


# --- what reads an argument first -----------------------------------------------------------------

_SAME = {
    "relu", "add", "mul", "sub", "truediv", "float", "to", "contiguous", "clone", "pad", "dropout", "div", "detach",
    "clamp", "sigmoid", "tanh", "iadd", "imul", "type", "half", "double", "abs", "neg", "flip", "interpolate",
}  # fmt: skip
_FUNCTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


def told_by_graph(graph: fx.Graph, root: nn.Module) -> dict[str, Spec]:
    """What the readers of each argument say about it."""
    found = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            spec = _first_reader(node, root)
            if spec is not None:
                found[str(node.target).lstrip("*")] = spec
    return found


def _first_reader(value: fx.Node, root: nn.Module) -> Spec | None:
    """What the first module or function that asks for channels says, past those that ask for nothing."""
    work: list[tuple[fx.Node, tuple[int, ...] | None]] = [(value, None)]
    seen = {value}
    while work:
        node, order = work.pop(0)
        for user in node.users:
            spec = _asked(user, root)
            if spec is not None:
                return Spec(spec.channels, spec.axes, spec.last, order, spec.below)
            name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
            passes = user.op == "call_module" or name in _SAME
            permuted = name == "permute" and order is None and all(isinstance(a, int) for a in user.args[1:])
            if user not in seen and (passes or permuted) and user.args and user.args[0] is node:
                seen.add(user)
                work.append((user, tuple(user.args[1:]) if permuted else order))  # type: ignore[arg-type]
    return None


def _asked(node: fx.Node, root: nn.Module) -> Spec | None:
    if node.op == "call_module":
        return _of_module(root.get_submodule(str(node.target)))
    name = getattr(node.target, "__name__", "")
    weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    held: Any = root
    for part in str(weight.target).split("."):
        held = getattr(held, part)
    if name in _FUNCTIONS:
        groups = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
        return Spec(held.shape[1] * groups, _FUNCTIONS[name]) if isinstance(groups, int) else None
    return Spec(held.shape[1], 1, last=True) if name == "linear" else None


def _told_by_modules(model: nn.Module) -> Iterator[Spec]:
    """What the modules ask for, in the order in which they were registered, each kind once."""
    seen: set[Spec] = set()
    for _, module in modules_of(model):
        spec = _of_module(module)
        if spec is None or spec in seen:
            continue
        seen.add(spec)
        yield spec
        if spec.last and spec.axes:
            yield Spec(spec.channels, 0)
        elif spec.axes == 2:
            yield Spec(spec.channels, 2, last=True)
    yield from ()


def _of_module(module: nn.Module) -> Spec | None:
    """What a module of torch's asks for."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    norms = ((nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3))
    match module:
        case _ if isinstance(module, convolutions):
            return Spec(module.in_channels, len(module.kernel_size))
        case nn.Linear():
            return Spec(module.in_features, 1, last=True)
        case nn.Embedding():
            return Spec(1, 1, below=module.num_embeddings)
        case nn.LSTM() | nn.GRU() | nn.RNN():
            return Spec(module.input_size, 1, last=True)
        case nn.LayerNorm() if len(module.normalized_shape) == 1:
            return Spec(module.normalized_shape[0], 1, last=True)
        case nn.GroupNorm():
            return Spec(module.num_channels, 2)
        case _:
            axes = next((axes for kind, axes in norms if isinstance(module, kind)), None)
            return None if axes is None else Spec(module.num_features, axes)  # type: ignore[arg-type]
