"""Operations counted in a real forward, as they reach the dispatcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from repfx.graph import OPERATIONS, OpKind
from repfx.layers import BorderTerm
from repfx.reporting import OpCounts

_AS = {  # what the kinds of operations count as that a dispatcher sees
    OpKind.CONVOLUTION: "convolutions",
    OpKind.LINEAR: "linears",
    OpKind.BATCH_NORM: "batch_norms",
    OpKind.ADD: "adds",
    OpKind.MULTIPLY: "muls",
    OpKind.CONCAT: "concats",
    OpKind.SPLIT: "splits",
    OpKind.PERMUTATION: "permutations",
}
_LINEARS = ("addmm", "mm")  # what a linear is there
_BATCHED_PRODUCTS = ("bmm", "baddbmm")
_FREE = ("empty", "detach", "alias", "lift_fresh")  # no pass over memory, besides the views


def _counted_as(name: str) -> str | None:
    """What an operation of ATen's counts as; None where it is free."""
    info = OPERATIONS.named(name)
    if name in _LINEARS:
        return "linears"
    if name in _FREE or (info is not None and info.kind is OpKind.VIEW):
        return None
    return "others" if info is None else _AS.get(info.kind, "others")


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.macs = 0
        self.unseen = 0  # depth of what is not counted operation by operation

    def add(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.unseen:
            return out
        name = func.overloadpacket.__name__
        kind = _counted_as(name)
        if kind is not None and (kind != "others" or isinstance(out, Tensor | tuple)):
            self.add(kind)
            self.macs += _macs(kind, name, args, out)
        return out


def _macs(kind: str, name: str, args: Sequence[Any], out: Any) -> int:
    """The multiply-accumulates of one operation of ATen's."""
    if kind == "convolutions":
        transposed = bool(args[6]) if len(args) > 6 else False
        positions = args[0] if transposed else out
        return int(args[1][0].numel() * positions.numel())
    if kind == "linears":
        left = args[1] if name == "addmm" else args[0]
        return int(left.shape[-1] * out.numel())
    return int(args[-2].shape[-1] * out.numel()) if name in _BATCHED_PRODUCTS else 0


class _Calls(TorchFunctionMode):
    """Attention is one operation, whichever kernel runs it: some devices and dtypes execute it in pieces."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.counter.unseen:
            return func(*args, **keywords)
        self.counter.unseen += 1
        out = func(*args, **keywords)
        self.counter.unseen -= 1
        names = zip(("query", "key", "value"), range(3))
        query, key, value = (args[i] if i < len(args) else keywords[name] for name, i in names)
        self.counter.add("others")
        self.counter.macs += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return out


def count_operations(model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> OpCounts:
    """Operations executed in one forward of `model(*inputs, **keywords)`, and its multiply-accumulates.

    Counted as they reach the dispatcher, so functional calls count like modules.  Views are free; the
    broadcast add of a border term is counted apart, and its map, which depends on the size only, is not.
    """
    counter = _Counter()
    borders = 0
    handles = []

    def enter(module: nn.Module, args: Any) -> None:
        counter.unseen += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal borders
        counter.unseen -= 1
        borders += 1

    for module in model.modules():
        if isinstance(module, BorderTerm):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad(), counter, _Calls(counter):
            model(*inputs, **(keywords or {}))
    finally:
        for handle in handles:
            handle.remove()
    counts = dict(counter.counts)
    counts["adds"] = counts.get("adds", 0) - borders
    parameters = sum(p.numel() for p in model.parameters())
    return OpCounts(**counts, border_terms=borders, parameters=parameters, macs=counter.macs)
