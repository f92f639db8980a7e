"""One trace of a model, and proof that the same code does the same when it is run again and in another world.

A forward is run twice under traced values: without gradients, and with gradients and other random numbers.  What
is no function of the inputs shows: the two graphs differ, or the second run fails.  What one run leaves behind, in
attributes, globals, caches or generators, is looked at, and put back before the next.  The first module that is
no function of its inputs is a `Fault`, and becomes an island.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repfx.graph import INDEX
from repfx.introspection import place_of_error
from repfx.state import Kept, Unread, counts, depends_on_values, is_met, retraced, shallow, take_back
from repfx.tracing.signature import UnknownArgumentError
from repfx.tracing.surroundings import RANDOM, generators, same_generators, set_generators, types_told
from repfx.tracing.tracer import Tracer

MakeTracer = Callable[[], Tracer]


class Fault(Exception):  # noqa: N818 - it is a finding about the model, and no error
    """A module whose forward is no graph, and why."""

    def __init__(self, paths: list[str], cause: str, refused: bool = False) -> None:
        super().__init__(cause)
        self.paths, self.cause = paths, cause
        self.refused = refused  # whether the trace stopped, so that knowing more might help


class Traced:
    """A shell of the model that holds what the trace added, the graph, and the tracer that made it."""

    def __init__(self, shell: nn.Module, graph: fx.Graph, tracer: Tracer) -> None:
        self.shell, self.graph, self.tracer = shell, graph, tracer


Agree = Callable[[Traced, Traced, str], bool]


def traced(
    model: nn.Module, kept: Kept, make: MakeTracer, check: Callable[[Tracer], None], agree: Agree | None = None
) -> Traced:
    """The trace of a model that is the same in both worlds.  Raises `Fault`.

    `agree` says of two traces whether a module that goes two ways computes the same on both.
    """
    states = generators()
    with types_told(kept.namespaces), _generators_kept(states):
        first = _once(model, kept, make, check)
        _draw_others()
        second = _once(model, kept, _with_gradients(make), None)
    agreed: set[str] = set()
    while (where := first_difference(first, second, agreed)) is not None:
        if agree is None or where in agreed or not agree(first, second, where):
            why = "its forward goes another way when gradients are recorded, or is not the same twice"
            raise Fault([where], why)
        agreed.add(where)
    return first


@contextmanager
def _generators_kept(states: tuple[Any, ...]) -> Iterator[None]:
    try:
        yield
    finally:
        set_generators(states)


def _with_gradients(make: MakeTracer) -> MakeTracer:
    def made() -> Tracer:
        tracer = make()
        tracer.gradients = True
        return tracer

    return made


def _draw_others() -> None:
    """Move the generators that belong to nobody somewhere else."""
    random.seed(random.getrandbits(32) ^ 0x5EED)
    np.random.seed(random.getrandbits(32))
    torch.random.default_generator.manual_seed(random.getrandbits(32))


def _once(model: nn.Module, kept: Kept, make: MakeTracer, check: Callable[[Tracer], None] | None) -> Traced:
    """One trace, after which everything is as it was.  Raises `Fault`."""
    before = generators()
    tracer, shell = make(), shell_of(model, kept.modules)
    fault: Fault | None = None
    left: Fault | None = None
    tracer.unread = Unread(kept, tracer.whole, shell, tracer.stop)
    with restored(kept) as counting:
        held = shell.__dict__.copy()
        try:
            graph = tracer.trace(shell)
            if tracer.refusal is not None:
                raise tracer.refusal  # the model's own code caught it, and went on elsewhere
            if check is not None:
                check(tracer)
        except Exception as error:  # a model's own code may raise anything under symbolic values
            fault = Fault([tracer.broke_at], cause_of(error), refused=True)
        tracer.refusal = None
        if fault is None and check is not None:
            counting += [shell] if counts(shell, model.__dict__) else []
            left = _left_behind(kept, shell, held, graph, tracer, make)
        if fault is None and (kept.drew() or not same_generators(before, generators())):
            fault = Fault([_who_draws(shell_of(model), make)], f"its forward {RANDOM}")
    _clean(shell, held)
    kept_by_others = take_back(tracer.made)
    if fault is None and counting:
        why = "its forward changes a number that it keeps, so one call is not like another"
        fault = Fault(["" if shell in counting else next(p for p, m in kept.modules if m in counting)], why)
    fault = fault or left
    leaving = next((node for node in kept_by_others if depends_on_values(node)), None)
    if fault is None and leaving is not None:
        fault = Fault([owner(leaving)], "its forward keeps a value where the next one finds it")
    if fault is not None:
        raise fault
    return Traced(shell, graph, tracer)


def _clean(shell: nn.Module, held: dict[str, Any]) -> None:
    """Give the shell the attributes that it had, but for the constants that the trace met."""
    own = shell.__dict__
    for name in [name for name in own if name not in held and not is_met(name)]:
        del own[name]
    own.update(held)


def _left_behind(
    kept: Kept, shell: nn.Module, held: dict[str, Any], graph: fx.Graph, tracer: Tracer, make: MakeTracer
) -> Fault | None:
    """What a trace has left that changes the next one, if anything."""
    rebuilt = kept.rebuilt(shell, tracer.added)
    if rebuilt:
        return Fault(rebuilt, "its forward makes parts or hooks anew")
    changed = kept.changed(shell, held)
    if not changed and not kept.changed_outside():
        return None

    met: list[nn.Module] = []  # what the second trace adds, on an object of its own
    once, twice = kept.numbers(shell), {}

    def trace_again(other: nn.Module) -> fx.Graph:
        """Trace the same object, which its code may know by its identity."""
        fresh, own = make(), shell.__dict__.copy()
        shell.__dict__.clear()
        shell.__dict__.update(shell_of(other).__dict__)
        try:
            fresh.unread = Unread(kept, fresh.whole, shell, fresh.stop)
            return fresh.trace(shell)
        finally:
            twice.update(kept.numbers(shell))
            met.append(shallow(shell))
            shell.__dict__.clear()
            shell.__dict__.update(own)

    again = retraced(shell, tracer.added, graph, trace_again)
    if again is None:
        return Fault(changed or [""], "its forward reads what an earlier forward wrote")
    if any(twice[place] != value for place, value in once.items() if place in twice):
        return Fault(changed or [""], "its forward counts: it reads what an earlier forward wrote")
    other = Traced(met[0], again, tracer)
    where = first_difference(Traced(shell, graph, tracer), other)
    if where is None:
        return None
    return Fault(changed or [where], "its forward reads what an earlier forward wrote")


def _who_draws(shell: nn.Module, make: MakeTracer) -> str:
    """The innermost module that moves a random generator."""
    tracer = make()
    tracer.careful = True
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


def shell_of(model: nn.Module, modules: Sequence[tuple[str, nn.Module]] = ()) -> nn.Module:
    """A module like the user's to hold what the trace adds: constants met on the way, guards.

    `modules` are all of the model's by path, so that they are found quickly.
    """
    shell = shallow(model)
    shell.__dict__["_modules"] = dict(model._modules)
    shell.__dict__[INDEX] = dict(modules[1:])
    return shell


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


# --- are two graphs the same? ---------------------------------------------------------------------


def owner(node: fx.Node) -> str:
    """Path of the module whose forward a node stands in; a call of a module stands in the forward that calls it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack and isinstance(stack[-1], tuple) else str(stack[-1]) if stack else ""
    return path.rpartition(".")[0] if node.op == "call_module" and path == node.target else path


def first_difference(first: Traced, second: Traced, agreed: Collection[str] = ()) -> str | None:
    """Path of the module in whose forward two graphs begin to differ; None if they do not.

    Calls of the modules in `agreed` may be made of other operations.
    """
    ours, theirs = _told(first.graph), _told(second.graph)
    same: dict[fx.Node, fx.Node] = {}
    for path in agreed:
        one, other = calls_of(first.graph, path), calls_of(second.graph, path)
        same |= {_made(other[key]): _made(one[key]) for key in one}
        inside = {node for calls in (one, other) for nodes in calls.values() for node in nodes}
        ours, theirs = [n for n in ours if n not in inside], [n for n in theirs if n not in inside]
    for mine, its in zip(ours, theirs):
        if not _alike(mine, its, same, first.shell, second.shell):
            return _common(owner(mine), owner(its))
        same[its] = mine
    if len(ours) != len(theirs):
        longer = ours if len(ours) > len(theirs) else theirs
        return owner(longer[min(len(ours), len(theirs))])
    return None


def calls_of(graph: fx.Graph, path: str) -> dict[str, list[fx.Node]]:
    """The nodes of each call of a module, by the call; reading a weight belongs to none."""
    found: dict[str, list[fx.Node]] = {}
    for node in _told(graph):
        stack = node.meta.get("nn_module_stack", {})
        key = next((key for key, entry in stack.items() if entry[0] == path), None)
        if key is not None and node.op != "get_attr":
            found.setdefault(key, []).append(node)
    return found


def _made(call: list[fx.Node]) -> fx.Node:
    """What a call returns."""
    inside = set(call)
    return next(node for node in call if any(user not in inside for user in node.users))


def _told(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that compute something; a weight is known by its name, and may be read anywhere."""
    return [node for node in graph.nodes if not node.meta.get("guard") and not _is_weight(node)]


def _is_weight(node: fx.Node) -> bool:
    return node.op == "get_attr" and not is_met(str(node.target))


def _alike(one: fx.Node, other: fx.Node, same: dict[fx.Node, fx.Node], ours: nn.Module, theirs: nn.Module) -> bool:
    if one.op != other.op or owner(one) != owner(other):
        return False
    if one.op == "get_attr":
        return _equal(getattr(ours, str(one.target)), getattr(theirs, str(other.target), None))
    if one.target is not other.target and _called(one.target) != _called(other.target):
        return False
    return _written(one, {}) == _written(other, same)


def _written(node: fx.Node, same: dict[fx.Node, fx.Node]) -> str:
    """The arguments as text, with the values of the other graph called as in this one."""

    def called(given: fx.Node) -> Any:
        return f"@{given.target}" if _is_weight(given) else same.get(given, given).name

    return repr(fx.node.map_arg((node.args, node.kwargs), called))


def _called(target: Any) -> Any:
    """What tells two functions apart that were made anew for each trace."""
    if isinstance(target, str):
        return target
    return getattr(target, "__module__", None), getattr(target, "__qualname__", id(target))


def _equal(a: Any, b: Any) -> bool:
    if a is b or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype or a.device.type == "meta":
        return a.shape == b.shape and a.dtype == b.dtype
    return bool(torch.equal(a.nan_to_num(), b.nan_to_num())) if a.is_floating_point() else bool(torch.equal(a, b))


def _common(a: str, b: str) -> str:
    """The module that holds both."""
    shared = []
    for x, y in zip(a.split("."), b.split(".")):
        if x != y:
            break
        shared.append(x)
    return ".".join(shared)
