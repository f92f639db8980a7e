"""The model that a command is about: built, loaded with weights, and seen to run."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from repfx.cli.terminal import Terminal
from repfx.errors import UserError, first_line
from repfx.io import build_model, is_registry_name, load_checkpoint

DEFAULT_SIZE = (224, 224)
LARGEST_INPUT = 2**28  # elements, 1 GiB of float32; more is a typing error


@dataclass(frozen=True)
class Request:
    """What the command line says about the model."""

    spec: str
    options: Mapping[str, object] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    input_size: tuple[int, ...] | None = None
    trust: bool = False
    weights_matter: bool = True  # whether the command's answer depends on them


@dataclass(frozen=True)
class Subject:
    """The model in evaluation mode and an input that it accepts."""

    model: nn.Module
    inputs: tuple[Tensor, ...]


def load_subject(request: Request, terminal: Terminal) -> Subject:
    """Build the model, load its checkpoint, run it once.  Raises `UserError`."""
    torch.manual_seed(0)  # a model without a checkpoint comes out the same every time
    with terminal.chatter_hidden():
        named = build_model(request.spec, options=request.options, pretrained=request.pretrained, trust=request.trust)
    if request.checkpoint is not None:
        checkpoint = load_checkpoint(named.module, request.checkpoint, key=request.checkpoint_key, trust=request.trust)
        if len(checkpoint.keys) > 0:
            terminal.note(f"{request.checkpoint}: took the weights under {'.'.join(checkpoint.keys)!r}.")
    elif request.weights_matter and is_registry_name(request.spec) and not request.pretrained:
        terminal.note("the weights are random: neither --checkpoint nor --pretrained was given.")
    size = request.input_size or _default_size(named.module, named.input_size)
    return Subject(named.module, example_for(named.module, request.spec, size))


def example_for(model: nn.Module, name: str, size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal noise (1, *size) of the model's dtype, once it is seen to pass.  Raises `UserError`."""
    if math.prod(size) > LARGEST_INPUT:
        raise UserError(f"--input-size {_shape(size)}: an input of {math.prod(size):,} values is too large.")
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    noise = torch.randn((1, *size), generator=torch.Generator().manual_seed(0))
    inputs = (noise.to(floats[0] if floats else torch.float32),)
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:  # the model's own code raises whatever it likes
        raise UserError(
            f"{name}: does not accept one input of size {_shape(size)} ({first_line(error)}); "
            "give the right one with --input-size C,H,W."
        ) from error
    return inputs


def check_patterns(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Raise `UserError` for a pattern of `--exclude` that no module path matches."""
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            close = difflib.get_close_matches(pattern, paths, n=1)
            hint = f"did you mean {close[0]}?" if close else "paths look like " + ", ".join(paths[-2:]) + "."
            raise UserError(f"--exclude {pattern!r}: no module has such a path; {hint}")


def _default_size(model: nn.Module, stated: tuple[int, ...] | None) -> tuple[int, ...]:
    """The stated size, with the channels that the first convolution really reads."""
    convs = (part for part in model.modules() if isinstance(part, nn.Conv2d))
    first = next(convs, None)
    channels = 3 if first is None else first.in_channels
    if stated is None:
        return (channels, *DEFAULT_SIZE)
    return (channels, *stated[1:]) if len(stated) == 3 and first is not None else stated


def _shape(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
