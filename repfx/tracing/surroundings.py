"""What surrounds a forward: modes, random generators, memory that outlives it, autograd functions.

A graph holds operations on values and nothing else.  So a module is no graph, and becomes an island, whose code

- draws random numbers of a fixed shape, or seeds a generator (tracing would keep the one sample it saw),
- switches a mode (autocast, gradients, the default dtype): the graph would run in that of its surroundings,
- writes into memory that is there before and after the forward and is no value of the trace.

A function with a backward of its own is no island: it is one call in the graph, which keeps that backward.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx

from repfx.graph import draws
from repfx.tracing.lent import (
    Lender,
    asked_in_vain,
    checkpoints_passed,
    custom_functions,
    numbers_recorded,
    sizes_packed,
)
from repfx.tracing.modes import (
    DEVICES,
    RANDOM,
    current_modes,
    generators,
    modes_kept,
    same_generators,
    what_was_switched,
)
from repfx.tracing.watch import Watch, Watched

_ONE_AT_A_TIME = threading.RLock()  # torch.fx changes nn.Module while it traces, for all threads


@dataclass(frozen=True)
class World:
    """What a traced forward may find around it, and how closely it is watched."""

    gradients: bool = False  # whether it records gradients
    careful: bool = False  # whether every module call is watched for random numbers


class Surrounded(Lender, Watched, Protocol):
    """A tracer, as far as its surroundings are concerned."""

    module_stack: OrderedDict[str, tuple[str, Any]]

    def stop_in(self, path: str, what: str) -> Any:
        """Give up on the module at a path, whose code has run."""


@dataclass(frozen=True)
class Surroundings:
    """The modes and generators in which a trace began: an operation that is recorded must be in the same."""

    modes: tuple[Any, ...] = field(default_factory=current_modes)
    states: tuple[Any, ...] = field(default_factory=generators)

    def check_modes(self, tracer: Surrounded, kind: str) -> None:
        """Stop before a node of this kind is recorded, if the model's code has switched a mode."""
        now = current_modes()
        if now == self.modes:
            return
        running = [path for path, _ in tracer.module_stack.values()]
        if kind == "call_module":
            running = running[:-1]  # the module that is called has not begun to run
        tracer.stop_in(running[-1] if running else "", what_was_switched(self.modes, now))

    def check_draw(self, tracer: Surrounded, node: fx.Node) -> None:
        """Stop where a generator was seeded for what this node draws, and perhaps is put back behind it."""
        if draws(node) and not same_generators(self.states, generators()):
            tracer.stop(RANDOM)


@contextmanager
def entered(tracer: Surrounded, world: World) -> Iterator[Surroundings]:
    """A world with or without gradients.  One thread traces at a time; others go on as they were."""
    with (
        _ONE_AT_A_TIME,
        modes_kept(),
        torch.set_grad_enabled(world.gradients),
        Watch(tracer),
        custom_functions(tracer),
        checkpoints_passed(),
        sizes_packed(),
        numbers_recorded(tracer),
        asked_in_vain(tracer),
    ):
        for device in DEVICES if world.gradients else ():  # in the other world, all is switched that can be
            torch.set_autocast_enabled(device, True)
        tracer.thread = threading.get_ident()
        yield Surroundings()
