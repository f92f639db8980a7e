"""Does what one forward leaves in its modules, and beside them, change the next one?

    trace of a shell  ->  what it left stays  ->  another trace of the same shell  ->  the same graph?

A number that goes on counting, and parts or hooks that are made anew, are told without looking at the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from repfx.state import Kept, Unread, depends_on_input, is_met, shallow, shell_of
from repfx.tracing.differences import first_difference
from repfx.tracing.outcome import Refused, Traced
from repfx.tracing.tracer import Tracer


@dataclass(frozen=True)
class _Again:
    """A trace that found what the one before it had left."""

    shell: nn.Module  # a copy, with the constants that this trace met
    graph: fx.Graph
    numbers: Mapping[Any, Any]  # what it left, by place


def refuse_left_behind(
    kept: Kept, found: Traced, held: Mapping[str, Any], make: Callable[[], Tracer]
) -> Refused | None:
    """Whether a trace has left anything that changes the next one.  `held` is what its shell held before it."""
    rebuilt = kept.rebuilt(found.shell, found.tracer.added)
    if rebuilt:
        return Refused(rebuilt, "its forward makes parts or hooks anew")
    changed = kept.changed(found.shell, held)
    if not changed and not kept.changed_outside():
        return None
    once = kept.numbers(found.shell)
    again = _trace_again(kept, found, make)
    if again is None:
        return Refused(changed or [""], "its forward reads what an earlier forward wrote")
    if _are_others(once, again.numbers):
        return Refused(changed or [""], "its forward counts: it reads what an earlier forward wrote")
    where = first_difference(found, Traced(again.shell, again.graph, found.tracer))
    if where is None:
        return None
    return Refused(changed or [where], "its forward reads what an earlier forward wrote")


def _are_others(once: Mapping[Any, Any], twice: Mapping[Any, Any]) -> bool:
    """Whether a number that both traces have left is not the same."""
    return any(once[place] != twice[place] for place in once.keys() & twice.keys())


def _trace_again(kept: Kept, found: Traced, make: Callable[[], Tracer]) -> _Again | None:
    """Another trace of the same object, which its code may know by its identity.

    None where the user's code, given what the first trace has left, fails, or goes on with a value of that trace.
    """
    shell, tracer = found.shell, make()
    own, left = shell.__dict__.copy(), _as_left(found)
    _fill(shell, left)
    try:
        tracer.unread = Unread(kept, tracer.whole, shell, tracer.stop)
        graph = tracer.trace(shell)
    except Exception:
        return None
    finally:
        numbers, met = kept.numbers(shell), shallow(shell)
        _fill(shell, own)
        _forget_readers(found.graph)
    earlier = {given for node in graph.nodes for given in node.all_input_nodes if given.graph is not graph}
    return None if any(map(depends_on_input, earlier)) else _Again(met, graph, numbers)


def _as_left(found: Traced) -> dict[str, Any]:
    """What the shell holds for the next trace: what the code has left, but nothing that the trace itself put there."""
    again = shallow(found.shell)
    children = found.shell._modules.items()
    again.__dict__["_modules"] = {name: part for name, part in children if name not in found.tracer.added}
    for name in [name for name in again.__dict__ if is_met(name)]:
        del again.__dict__[name]
    return shell_of(again).__dict__


def _fill(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Let a module have these attributes and no others."""
    module.__dict__.clear()
    module.__dict__.update(attributes)


def _forget_readers(graph: fx.Graph) -> None:
    """Take back what nodes of another graph have noted at the nodes of this one."""
    for node in graph.nodes:
        for user in [user for user in node.users if user.graph is not graph]:
            del node.users[user]
