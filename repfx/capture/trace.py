"""nn.Module -> fx graph: the whole model where it traces, islands where it does not.

An island is a submodule whose code torch.fx cannot trace (or that the user excluded, or that carries
hooks).  It stays one call in the graph; its children are compiled on their own by `repfx.compiler`.
In-place operations are made functional here, so that every later layer sees values, not memory.
"""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from repfx.capture.early_sizes import read_sizes_early
from repfx.capture.exported_program import is_exported, plain_graph
from repfx.capture.in_place import functionalize
from repfx.capture.keywords import own_keywords
from repfx.capture.spelling import spell_out
from repfx.errors import TrainingModeError, UserError
from repfx.graph import NORMALISING, index_modules, modules_of, remove_dead
from repfx.reporting import Island
from repfx.state import Kept
from repfx.tracing import (
    AS_TEXT,
    COMPUTING,
    EMPTY,
    Agree,
    Example,
    Fault,
    Passed,
    SizedTracer,
    Tracer,
    UnknownArgumentError,
    has_own_call,
    is_assertion,
    restored,
    shell_of,
    traced,
)

Exclusion = Sequence[str | type]


@dataclass
class Capture:
    """A traced model: `root` holds the original modules, `graph` is ours to rewrite."""

    root: nn.Module
    graph: fx.Graph | None  # None: not even the outermost forward traces
    islands: list[Island] = field(default_factory=list)
    excluded: set[str] = field(default_factory=set)
    conditions: list[str] = field(default_factory=list)  # what the example's sizes decided


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside data-parallel, `torch.compile` and weight-averaging wrappers; the graph of an exported one.

    Raises `UserError` for a TorchScript module, whose code is not Python any more.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise UserError(
                f"{model.original_name} is a TorchScript module, whose code torch.fx cannot read; "
                "pass the module that it was made from, and script the result"
            )
        compiled = sys.modules.get("torch._dynamo.eval_frame")  # a slow import, and loaded where it is used
        if compiled is not None and isinstance(model, compiled.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        else:
            return plain_graph(model) if isinstance(model, fx.GraphModule) and is_exported(model) else model


def check_mode(model: nn.Module) -> None:
    """Raise TrainingModeError if the model is in training mode and that matters."""
    if not model.training:
        return
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise TrainingModeError(
                f"{path or type(module).__name__} is a batch norm in training mode, whose output depends on the "
                "batch; call model.eval() first"
            )
    raise TrainingModeError(f"{type(model).__name__} is in training mode; call model.eval() first")


def capture(
    model: nn.Module,
    exclude: Exclusion = (),
    example: Example | None = None,
    passed: Passed | None = None,
    agree: Agree | None = None,
) -> Capture:
    """Trace `model`; submodules that stop the trace become islands, the innermost first.

    With an `example`, what its sizes decide is decided, and checked at run time.  `passed` is what the
    callers of an inner module pass to it; `agree` is for `repfx.tracing.worlds.traced`.
    """
    islands: dict[str, Island] = {}
    modules = modules_of(model)
    excluded = set(excluded_paths(modules, exclude))
    hooked = {path for path, module in modules if _has_hooks(module)}
    whole = set(excluded)
    if example is not None:
        _check_fits(model, example)
    for path in sorted(hooked - excluded):
        islands[path] = Island(path, "it has forward hooks, which see its own call")
        whole.add(path)
    for path, module in modules:
        if path and type(module).__module__.startswith("torch.nn") and not module.__dict__.keys().isdisjoint(COMPUTING):
            islands[path] = Island(path, "its forward was replaced on the object, so it is not what its class says")
            whole.add(path)
    if has_own_call(model):
        islands[""] = Island("", "its class does more in a call than its forward")
        return Capture(model, None, list(islands.values()), excluded)
    if "" in whole:
        return Capture(model, None, list(islands.values()), excluded)
    search = _Search(model, whole, example, passed)
    kept = Kept(model, modules)
    while True:
        try:
            found = traced(model, kept, search.tracer, partial(_check_none, model), agree)
            break
        except Fault as fault:
            if search.learn(fault):
                continue
            for path in search.blame(fault):
                islands[path] = Island(path, fault.cause)
                whole.add(path)
            if "" in whole:
                return Capture(model, None, list(islands.values()), excluded)
    shell, graph = found.shell, found.graph
    index_modules(shell)
    functionalize(graph, shell, whole)
    own_keywords(graph)
    spell_out(graph, shell)
    remove_guards(graph)
    read_sizes_early(graph, shell, whole)
    used = {node.target for node in graph.nodes if node.op == "call_module"}
    conditions = found.tracer.conditions if isinstance(found.tracer, SizedTracer) else []
    return Capture(shell, graph, [i for p, i in islands.items() if p in used], excluded, conditions)


@dataclass
class _Search:
    """How the model is traced: what is left whole, and what the tracer knows."""

    model: nn.Module
    whole: set[str]
    example: Example | None
    passed: Passed | None
    sized: bool = False  # whether the sizes of the example are known
    spells: bool = False  # whether they are written out in texts

    def tracer(self) -> Tracer:
        if not self.sized or self.example is None:
            return Tracer(self.whole, self.example, self.passed)
        tracer = SizedTracer(self.whole, self.example)
        tracer.spells = self.spells
        return tracer

    def learn(self, fault: Fault) -> bool:
        """Whether the trace is tried once more, with more that is known."""
        if not fault.refused or self.example is None or (self.sized and self.spells):
            return False
        if not self.sized:
            self.sized = True
            return True
        self.spells = AS_TEXT in fault.cause
        return self.spells

    def blame(self, fault: Fault) -> list[str]:
        """The modules that stay as they are.  The call of an island broke: then its caller is to blame."""
        if fault.refused:
            path = fault.paths[0]
            while path in self.whole:
                path = path.rpartition(".")[0]
            return [path]
        return [path for path in fault.paths if path not in self.whole] or [""]


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


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what a forward leaves in module attributes (counters, last outputs)."""
    with restored(Kept(model, modules_of(model))):
        yield


def excluded_paths(modules: Sequence[tuple[str, nn.Module]], exclude: Exclusion) -> Iterable[str]:
    """Module paths that `exclude` (paths, globs, types) names."""
    if not exclude:
        return
    patterns = [e for e in exclude if isinstance(e, str)]
    types = tuple(e for e in exclude if isinstance(e, type))
    for path, module in modules:
        if isinstance(module, types) or any(fnmatch.fnmatchcase(path, p) for p in patterns):
            yield path


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    if not any(hooks):
        return False
    named = [hook for table in hooks for hook in table.values()]
    return not all(type(hook) in NORMALISING for hook in named)


def remove_guards(graph: fx.Graph) -> None:
    """Drop assertions on shapes and whatever only they read; a guard is no reader of a value."""
    for node in list(graph.nodes):
        if is_assertion(node):
            graph.erase_node(node)
    remove_dead(graph)
