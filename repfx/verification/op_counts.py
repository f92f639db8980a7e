"""Operations counted in a real forward, as they reach the dispatcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from repfx.layers import BorderTerm
from repfx.reporting import OpCounts

_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")


_LINEARS = ("addmm", "mm", "linear", "mkldnn_linear")


_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm",
          "_native_batch_norm_legit", "_batch_norm_no_update")  # fmt: skip


_SPLITS = ("split", "split_with_sizes", "chunk", "unbind")


_FREE = ("view", "_unsafe_view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "detach", "alias",
         "slice",         "select", "as_strided", "_reshape_alias", "lift_fresh", "empty")  # fmt: skip


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
        if name in _CONVOLUTIONS:
            self.add("convolutions")
            weight = args[1]
            transposed = bool(args[6]) if len(args) > 6 else False
            positions = args[0] if transposed else out
            self.macs += weight[0].numel() * positions.numel()
        elif name in _LINEARS:
            self.add("linears")
            left = args[1] if name == "addmm" else args[0]
            self.macs += left.shape[-1] * out.numel()
        elif name in ("bmm", "baddbmm"):
            self.add("others")
            self.macs += args[-2].shape[-1] * out.numel()
        elif name in _NORMS:
            self.add("batch_norms")
        elif name in ("add", "add_", "sub", "sub_"):
            self.add("adds")
        elif name in ("mul", "mul_", "div", "div_"):
            self.add("muls")
        elif name in ("cat", "stack"):
            self.add("concats")
        elif name in _SPLITS:
            self.add("splits")
        elif name == "index_select":
            self.add("permutations")
        elif name not in _FREE and isinstance(out, Tensor | tuple):
            self.add("others")
        return out


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
