"""The tensors of a model, as they were before it ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repfx.graph import modules_of, tensors_of
from repfx.state.reach import reach_of
from repfx.state.walking import walk

_NO_HOLDERS = {str, int, float, bool, type(None), torch.Size}


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Put back what running the model changes in its tensors: registered ones, and those that its code reaches."""
    saved = [(tensor, tensor.detach().clone()) for tensor in _tensors_reached(model) if _has_numbers(tensor)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                if not torch.equal(tensor, value):
                    tensor.data.copy_(value)


def _has_numbers(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and tensor.layout is torch.strided


def _tensors_reached(model: nn.Module) -> list[Tensor]:
    """Each tensor that is registered in a model or that its code can reach, once."""
    modules = modules_of(model)
    reach = reach_of([module for _, module in modules])
    work: list[Any] = []
    for _, module in modules:
        work += [value for value in module.__dict__.values() if type(value) not in _NO_HOLDERS]
    work += reach.contents()
    found = [*tensors_of(modules), *(value for value in walk(work) if isinstance(value, Tensor))]
    return list({id(tensor): tensor for tensor in found}.values())
