"""One attempt to trace a model, and proof that the same code does the same again and in another world.

A forward is run twice under traced values: without gradients, and with gradients and other random numbers.  What
is no function of the inputs shows: the two graphs differ, or the second run fails.  What one run leaves behind, in
attributes, globals, caches or generators, is looked at, and put back before the next.  The first module that is
no function of its inputs is `Refused`, and becomes an island.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from repfx.introspection import place_of_error
from repfx.state import Kept, Unread, counts, depends_on_values, is_met, shell_of, take_back
from repfx.tracing.differences import first_difference, owner
from repfx.tracing.left_behind import refuse_left_behind
from repfx.tracing.lent import types_told
from repfx.tracing.modes import RANDOM, generators, same_generators, set_generators
from repfx.tracing.outcome import Refused, Traced
from repfx.tracing.signature import UnknownArgumentError
from repfx.tracing.surroundings import World
from repfx.tracing.tracer import Tracer

MakeTracer = Callable[[World], Tracer]
Check = Callable[[Tracer], None]
Agree = Callable[[Traced, Traced, str], bool]

FIRST = World(gradients=False)
OTHER = World(gradients=True)


def attempt(
    model: nn.Module, kept: Kept, make: MakeTracer, check: Check, agree: Agree | None = None
) -> Traced | Refused:
    """The trace of a model that is the same in both worlds.

    `check` raises where an argument of the first trace may be something else.
    `agree` says of two traces whether a module that goes two ways computes the same on both.
    """
    with types_told(kept.namespaces), _generators_kept(generators()):
        first = _trace_once(model, kept, make, FIRST, check)
        if isinstance(first, Refused):
            return first
        _draw_others()
        second = _trace_once(model, kept, make, OTHER, None)
        if isinstance(second, Refused):
            return second
    return _refuse_difference(first, second, agree) or first


def _refuse_difference(first: Traced, second: Traced, agree: Agree | None) -> Refused | None:
    """The first module that goes two ways which are not the same map."""
    agreed: set[str] = set()
    while (where := first_difference(first, second, agreed)) is not None:
        if agree is None or where in agreed or not agree(first, second, where):
            why = "its forward goes another way when gradients are recorded, or is not the same twice"
            return Refused([where], why)
        agreed.add(where)
    return None


@contextmanager
def _generators_kept(states: tuple[Any, ...]) -> Iterator[None]:
    try:
        yield
    finally:
        set_generators(states)


def _draw_others() -> None:
    """Move the generators that belong to nobody somewhere else."""
    random.seed(random.getrandbits(32) ^ 0x5EED)
    np.random.seed(random.getrandbits(32))
    torch.random.default_generator.manual_seed(random.getrandbits(32))


# --- one trace --------------------------------------------------------------------------------------


def _trace_once(model: nn.Module, kept: Kept, make: MakeTracer, world: World, check: Check | None) -> Traced | Refused:
    """One trace, after which everything is as it was; with a `check`, what it has left is looked at too."""
    before = generators()
    tracer, shell = make(world), shell_of(model, kept.modules)
    tracer.unread = Unread(kept, tracer.whole, shell, tracer.stop)
    left: Refused | None = None
    with restored(kept) as counting:
        held = shell.__dict__.copy()
        outcome = _run(tracer, shell, check)
        if isinstance(outcome, Traced) and check is not None:
            if counts(shell, model.__dict__):
                counting.append(shell)
            left = refuse_left_behind(kept, outcome, held, partial(make, world))
        if isinstance(outcome, Traced) and _drew(kept, before):
            who = _who_draws(shell_of(model), make(replace(world, careful=True)))
            outcome = Refused([who], f"its forward {RANDOM}")
    _clean(shell, held)
    kept_by_others = take_back(tracer.made)
    if isinstance(outcome, Refused):
        return outcome
    return _refuse_counting(counting, shell, kept) or left or _refuse_leaving(kept_by_others) or outcome


def _run(tracer: Tracer, shell: nn.Module, check: Check | None) -> Traced | Refused:
    """The trace itself."""
    try:
        graph = tracer.trace(shell)
        if tracer.refusal is not None:
            raise tracer.refusal  # the model's own code caught it, and went on elsewhere
        if check is not None:
            check(tracer)
    except Exception as error:  # a model's own code may raise anything under symbolic values
        return Refused([tracer.broke_at], cause_of(error), stopped=True)
    finally:
        tracer.refusal = None  # it leads to the frames of the trace, and they to all values
    return Traced(shell, graph, tracer)


def _drew(kept: Kept, before: tuple[Any, ...]) -> bool:
    """Whether a random generator has moved, the model's own or one that belongs to nobody."""
    return kept.drew() or not same_generators(before, generators())


def _refuse_counting(counting: list[nn.Module], shell: nn.Module, kept: Kept) -> Refused | None:
    """The first module whose numbers a trace has changed."""
    if not counting:
        return None
    is_root = shell in counting
    path = "" if is_root else next(path for path, module in kept.modules if module in counting)
    return Refused([path], "its forward changes a number that it keeps, so one call is not like another")


def _refuse_leaving(kept_by_others: list[fx.Node]) -> Refused | None:
    """Whose value lay where the next forward finds it, and is not the same for every input."""
    leaving = next((node for node in kept_by_others if depends_on_values(node)), None)
    if leaving is None:
        return None
    return Refused([owner(leaving)], "its forward keeps a value where the next one finds it")


def _clean(shell: nn.Module, held: dict[str, Any]) -> None:
    """Give the shell the attributes that it had, but for the constants that the trace met."""
    own = shell.__dict__
    for name in [name for name in own if name not in held and not is_met(name)]:
        del own[name]
    own.update(held)


def _who_draws(shell: nn.Module, tracer: Tracer) -> str:
    """The innermost module that moves a random generator, which this tracer watches for."""
    try:
        tracer.trace(shell)
    except Exception:
        return tracer.broke_at
    return ""


@contextmanager
def restored(kept: Kept) -> Iterator[list[nn.Module]]:
    """Undo what a forward under symbolic values leaves in attributes, globals and generators.

    Yields a list that holds, at the end, the modules whose numbers the forward has changed.
    """
    counting: list[nn.Module] = []
    try:
        yield counting
    finally:
        counting += kept.restore()


def cause_of(error: Exception) -> str:
    """An exception of a trace in one line: what happened, and at which line of the user's code."""
    if isinstance(error, UnknownArgumentError):
        return str(error)
    place = place_of_error(error)
    try:
        text = str(error).strip().split("\n")[0]
    except Exception:  # the text of a KeyError is that of its key, which may be a traced value
        text = "of a value that is known at run time only"
    return f"{type(error).__name__}{f' at {place}' if place else ''}: {text}"
