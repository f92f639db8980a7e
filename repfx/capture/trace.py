"""nn.Module -> fx graph: the whole model where it traces, islands where it does not.

An island is a submodule whose code torch.fx cannot trace (or that the user excluded, or that carries
hooks).  It stays one call in the graph; its children are compiled on their own by `repfx.compiler`.
One attempt is one value, a graph or a refusal; the search tries again with more that is known, or with more
that stays whole, until an attempt is a graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from torch import fx, nn

from repfx.capture.canonicalize import canonicalize
from repfx.capture.exclusion import Exclusion, excluded_paths
from repfx.errors import UserError
from repfx.graph import NORMALISING, modules_of
from repfx.reporting import Island
from repfx.state import Kept, shell_of
from repfx.tracing import (
    AS_TEXT,
    EMPTY,
    Agree,
    Example,
    Knowledge,
    Passed,
    Refused,
    Traced,
    Tracer,
    UnknownArgumentError,
    World,
    attempt,
    computes_otherwise,
    has_own_call,
    restored,
)


@dataclass
class Capture:
    """A traced model: `root` holds the original modules, `graph` is ours to rewrite."""

    root: nn.Module
    graph: fx.Graph | None  # None: not even the outermost forward traces
    islands: list[Island] = field(default_factory=list)
    excluded: set[str] = field(default_factory=set)
    conditions: list[str] = field(default_factory=list)  # what the example's sizes decided


def capture(
    model: nn.Module,
    exclude: Exclusion = (),
    example: Example | None = None,
    passed: Passed | None = None,
    agree: Agree | None = None,
) -> Capture:
    """Trace `model`; submodules that stop the trace become islands, the innermost first.

    With an `example`, what its sizes decide is decided, and checked at run time.  `passed` is what the
    callers of an inner module pass to it; `agree` is for `repfx.tracing.worlds.attempt`.
    """
    modules = modules_of(model)
    excluded = excluded_paths(modules, exclude)
    if example is not None:
        _check_fits(model, example)
    islands = {island.path: island for island in _islands_from_the_start(model, modules, excluded)}
    search = _Search(model, islands, excluded | islands.keys(), example, passed)
    found = search.run(modules, agree)
    if found is None:
        return Capture(model, None, list(islands.values()), excluded)
    canonicalize(found.graph, found.shell, search.whole)
    called = {node.target for node in found.graph.nodes if node.op == "call_module"}
    used = [island for path, island in islands.items() if path in called]
    return Capture(found.shell, found.graph, used, excluded, found.tracer.answers.conditions)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what a forward leaves in module attributes (counters, last outputs)."""
    with restored(Kept(model, modules_of(model))):
        yield


# --- what is an island before any trace -------------------------------------------------------------


def _islands_from_the_start(
    model: nn.Module, modules: Sequence[tuple[str, nn.Module]], excluded: set[str]
) -> Iterator[Island]:
    """The modules that a graph cannot hold, whatever their code does; of two for one path the later one counts."""
    for path in sorted(path for path, module in modules if _has_hooks(module)):
        if path not in excluded:
            yield Island(path, "it has forward hooks, which see its own call")
    for path, module in modules:
        is_torchs = type(module).__module__.startswith("torch.nn")
        if path and is_torchs and computes_otherwise(module):
            yield Island(path, "its forward was replaced on the object, so it is not what its class says")
    if has_own_call(model):
        yield Island("", "its class does more in a call than its forward")


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    if not any(hooks):
        return False
    registered = [hook for table in hooks for hook in table.values()]
    return not all(type(hook) in NORMALISING for hook in registered)


# --- the search over attempts -----------------------------------------------------------------------


@dataclass
class _Search:
    """How the model is traced: what is left whole, and what the tracer knows.

    It ends: every refusal makes the tracer know more, which happens twice at most, or leaves one more module whole.
    """

    model: nn.Module
    islands: dict[str, Island]
    whole: set[str]
    example: Example | None
    passed: Passed | None
    knowledge: Knowledge = Knowledge.STRUCTURE

    def run(self, modules: Sequence[tuple[str, nn.Module]], agree: Agree | None) -> Traced | None:
        """The first attempt that is a graph; None where the outermost module stays whole."""
        if "" in self.whole:
            return None
        kept = Kept(self.model, modules)
        while "" not in self.whole:
            outcome = attempt(self.model, kept, self.make_tracer, partial(_check_none, self.model), agree)
            match outcome:
                case Traced():
                    return outcome
                case Refused():
                    if not self.learn(outcome):
                        self.leave_whole(outcome)
                case _:
                    assert_never(outcome)
        return None

    def make_tracer(self, world: World) -> Tracer:
        """A tracer that goes by what is known so far."""
        return Tracer(self.whole, self.example, self.passed, world, self.knowledge)

    def learn(self, refused: Refused) -> bool:
        """Whether the trace is tried once more, with more that is known."""
        if not refused.stopped or self.example is None:
            return False
        match self.knowledge:
            case Knowledge.STRUCTURE:
                self.knowledge = Knowledge.SIZES
                return True
            case Knowledge.SIZES if AS_TEXT in refused.cause:
                self.knowledge = Knowledge.TEXTS
                return True
            case _:
                return False

    def leave_whole(self, refused: Refused) -> None:
        """Make islands of the modules that are to blame."""
        for path in self.blame(refused):
            self.islands[path] = Island(path, refused.cause)
            self.whole.add(path)

    def blame(self, refused: Refused) -> list[str]:
        """The modules that stay as they are.  The call of an island broke: then its caller is to blame."""
        if not refused.stopped:
            return [path for path in refused.paths if path not in self.whole] or [""]
        path = refused.paths[0]
        while path in self.whole:
            path = path.rpartition(".")[0]
        return [path]


# --- what is checked of arguments -------------------------------------------------------------------


def _check_fits(model: nn.Module, example: Example) -> None:
    """Raise `UserError` where the example is no call of the model."""
    try:
        signature = inspect.signature(model.forward)
        signature.bind(*example.args, **example.kwargs)
    except TypeError as error:
        raise UserError(
            f"example_inputs do not fit {type(model).__name__}.forward{signature}: {error}; pass the positional "
            "arguments as a tuple and the others as example_kwargs"
        ) from error


def _check_none(model: nn.Module, tracer: Tracer) -> None:
    """Raise where an inner module may be given None for an argument that the trace has taken for a value."""
    if tracer.passed is None or isinstance(model, fx.GraphModule):
        return
    required = [p.name for p in inspect.signature(model.forward).parameters.values() if p.default is EMPTY]
    for name in required[1:]:
        other = Tracer(tracer.whole, None, tracer.passed)
        other.compiled_in = {name: None}
        try:
            other.trace(shell_of(model))
        except Exception:  # then the original would not run either
            continue
        raise UnknownArgumentError(f"its caller passes {name}, which may be None")
