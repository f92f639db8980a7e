"""Walks over all modules of a model, and over all its tensors, in torch's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`list(model.named_modules())`, in a loop: torch's generators hand every module up through all levels."""
    found: dict[nn.Module, str] = {}
    work: list[tuple[str, nn.Module]] = [("", model)]
    while work:
        path, module = work.pop()
        if module in found:
            continue
        found[module] = path
        if module._modules:
            below = f"{path}." if path else ""
            work += [(below + name, part) for name, part in reversed(list(module._modules.items())) if part is not None]
    return [(path, module) for module, path in found.items()]


def tensors_of(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[Tensor]:
    """All parameters and buffers of these modules; one that is shared comes once for each of its owners."""
    for _, module in modules:
        for held in (module._parameters, module._buffers):
            if held:
                yield from (tensor for tensor in held.values() if tensor is not None)


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


def attribute(root: nn.Module, path: str) -> Any:
    """`root.a.b.c` by dotted path."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value
