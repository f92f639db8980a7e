"""What of a model's own attributes the compiled module keeps: plain data, such as `num_classes`.

A graph has one entry point, the forward.  Other methods (`forward_features`) are not in it; what they
compute is compiled by itself from a copy of the model whose `forward` is that method.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn

_PRESERVED = "_user_preserved_attributes"  # of GraphModule.meta: deepcopy and export keep these
_CODE = (ModuleType, nn.Module, Tensor, fx.Proxy)
_DEPTH = 4


def carry_attributes(model: nn.Module, fused: nn.Module, **own: Any) -> None:
    """Copy the plain data of `model` to a compiled graph, and set what is `own`; copies of it keep both."""
    kept = dict(own)
    if isinstance(fused, fx.GraphModule):
        earlier = vars(model).get("meta", {}).get(_PRESERVED, {})  # of torchvision's graphs, which have no meta
        kept = {**dict(plain_attributes(model, fused)), **earlier, **own}
        fused.meta[_PRESERVED] = {**fused.meta.get(_PRESERVED, {}), **kept}
    for name, value in kept.items():
        fused.__dict__[name] = value


def plain_attributes(model: nn.Module, fused: nn.Module) -> Iterator[tuple[str, Any]]:
    """The public attributes that hold no code and no weights, copied."""
    for name, value in vars(model).items():
        if name.startswith("_") or hasattr(fused, name) or not _is_data(value, _DEPTH):
            continue
        try:
            yield name, copy.deepcopy(value)
        except Exception:  # whatever an object's own copying raises
            continue


def _is_data(value: Any, depth: int) -> bool:
    if isinstance(value, _CODE) or callable(value) or depth == 0:
        return False
    if isinstance(value, dict):
        return all(_is_data(item, depth - 1) for item in value.values())
    if isinstance(value, list | tuple | set):
        return all(_is_data(item, depth - 1) for item in value)
    return all(_is_data(item, depth - 1) for item in getattr(value, "__dict__", {}).values())
