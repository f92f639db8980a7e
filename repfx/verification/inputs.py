"""Inputs for a model that came without an example: derived, small, and seen to run.

The shape of an argument follows from what reads it first: a convolution tells its rank and channels, a Linear its
last axis, an Embedding the range of its numbers.  Configurations of timm tell the size that a model insists on.
Sizes are tried from the smallest; what the model's own code accepts is an input.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.graph import argument, attribute, modules_of, name_of

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
        resized = functools.partial(_resized, old=old, new=new, generator=generator)
        yield tuple(map(resized, args)), {name: resized(value) for name, value in kwargs.items()}


def _resized(x: Any, old: tuple[int, ...], new: tuple[int, ...], generator: torch.Generator) -> Any:
    """Noise of the new sizes for a tensor of the old ones; anything else as it is."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 3 or tuple(x.shape[2:]) != old:
        return x
    noise = torch.randn((*x.shape[:2], *new), generator=generator, dtype=torch.float64)
    return noise.to(x.device, x.dtype)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """The parameters of a forward; none where it does not tell."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _required(model: nn.Module) -> list[str]:
    """The arguments that a forward asks for; its first where it asks for none."""
    parameters = _parameters(model)
    asked = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if any(p.kind is p.KEYWORD_ONLY for p in asked):
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [p.name for p in asked or positional[:1]]


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
                return replace(spec, order=order)
            if user in seen or node not in user.args[:1]:
                continue
            permuted = _permutation(user) if order is None else None
            if permuted is not None or _passes(user):
                seen.add(user)
                work.append((user, permuted or order))
    return None


def _passes(node: fx.Node) -> bool:
    """Whether an operation asks for no channels, and leaves the axes where they are."""
    return node.op == "call_module" or name_of(node) in _SAME


def _permutation(node: fx.Node) -> tuple[int, ...] | None:
    """The order in which an operation puts the axes, where it does just that."""
    order = tuple(axis for axis in node.args[1:] if isinstance(axis, int))
    plain = name_of(node) == "permute" and len(order) == len(node.args) - 1
    return order if plain else None


def _asked(node: fx.Node, root: nn.Module) -> Spec | None:
    if node.op == "call_module":
        return _of_module(root.get_submodule(str(node.target)))
    weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    name, held = name_of(node), attribute(root, str(weight.target))
    if name == "linear":
        return Spec(held.shape[1], 1, last=True)
    axes, groups = _FUNCTIONS.get(name), argument(node, 6, "groups", 1)
    return None if axes is None or not isinstance(groups, int) else Spec(held.shape[1] * groups, axes)


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
    for kinds, spec_of in _ASKING:
        if isinstance(module, kinds):
            return spec_of(module)
    return None


def _of_layer_norm(module: Any) -> Spec | None:
    """Of several axes it says nothing about channels."""
    return Spec(module.normalized_shape[0], 1, last=True) if len(module.normalized_shape) == 1 else None


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ASKING: tuple[tuple[type | tuple[type, ...], Callable[[Any], Spec | None]], ...] = (
    (_CONVOLUTIONS, lambda module: Spec(module.in_channels, len(module.kernel_size))),
    (nn.Linear, lambda module: Spec(module.in_features, 1, last=True)),
    (nn.Embedding, lambda module: Spec(1, 1, below=module.num_embeddings)),
    ((nn.LSTM, nn.GRU, nn.RNN), lambda module: Spec(module.input_size, 1, last=True)),
    (nn.LayerNorm, _of_layer_norm),
    (nn.GroupNorm, lambda module: Spec(module.num_channels, 2)),
    (nn.BatchNorm1d, lambda module: Spec(module.num_features, 1)),
    (nn.BatchNorm2d, lambda module: Spec(module.num_features, 2)),
    (nn.BatchNorm3d, lambda module: Spec(module.num_features, 3)),
)
