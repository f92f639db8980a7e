"""What happens to real tensors during a trace: those are computed with once, and never again."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.overrides import has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repfx.state import memory_of
from repfx.tracing.modes import RANDOM


class Watched(Protocol):
    """What a watch asks of the tracer."""

    root: nn.Module
    is_computing: bool  # whether the tracer itself computes something at the moment

    def rank_of(self, value: fx.Proxy) -> int:
        """How many dimensions a traced tensor has, for the choice between forms of a function of torch's.

        `torch.pow(y, 2)` takes a number or a tensor in either place, and asks a tensor whether it is as good as a
        number.  Whatever is chosen, the call is recorded as it was written.
        """

    def stop(self, what: str) -> Any:
        """Give up on the module whose code runs."""


class Watch(TorchDispatchMode):
    """Sees every operation on real tensors, and stops where a graph would not do it again."""

    def __init__(self, tracer: Watched) -> None:
        super().__init__()
        self.tracer = tracer
        self._made: set[int] = set()
        self._held: set[int] | None = None  # the memory of all weights, once it is asked for

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tracer.is_computing:
            return func(*args, **kwargs)
        if any(issubclass(kind, fx.Proxy) for kind in types):
            if func is torch.ops.aten.dim.default and has_torch_function(args):
                return self.tracer.rank_of(args[0])  # a call that is about to be recorded: is this a number?
            return func(*args, **kwargs)  # a traced value refuses by itself
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.tracer.stop(RANDOM)
        if func._schema.is_mutable:
            self._check_written(func, args, kwargs)
        self._check_read(args, kwargs)
        made = func(*args, **kwargs)
        self._made |= _memories(made) - _memories((args, kwargs))
        return made

    def _check_read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop before the numbers of a weight are computed with past the trace: they are another thing later."""
        if self._held is None:
            root = self.tracer.root
            self._held = {memory_of(t) for t in (*root.parameters(), *root.buffers()) if t.numel()}
        if not self._held.isdisjoint(_memories((args, kwargs))):
            self.tracer.stop("reads the numbers of a weight past the trace, as in a copy of a module")

    def _check_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop before something is written that was there before the trace."""
        for position, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            value = kwargs.get(argument.name) if position >= len(args) else args[position]
            if written and isinstance(value, Tensor) and memory_of(value) not in self._made:
                self.tracer.stop("writes into a tensor that outlives the forward")


def _memories(values: Any) -> set[int]:
    """The memory of all tensors in there."""
    return {memory_of(value) for value in tree_leaves(values) if isinstance(value, Tensor)}
