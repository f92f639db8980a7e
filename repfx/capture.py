"""nn.Module -> fx graph: the whole model where it traces, islands where it does not.

An island is a submodule whose code torch.fx cannot trace (or that the user excluded, or that carries
hooks).  It stays one call in the graph; its children are compiled on their own by `repfx.compiler`.
In-place operations are made functional here, so that every later layer sees values, not memory.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from repfx.arguments import EMPTY, Example, Passed, UnknownArgumentError
from repfx.dead import remove_dead
from repfx.decline import TrainingModeError, UserError
from repfx.inplace import functionalize
from repfx.keywords import own_keywords
from repfx.modules import index_modules
from repfx.questions import is_user_code
from repfx.report import Island
from repfx.sizes import read_sizes_early
from repfx.spelling import spell_out
from repfx.state import Kept, counts, remembering
from repfx.tracing import COMPUTING, SizedTracer, Tracer, has_own_call
from repfx.walking import modules_of

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
    """The module inside data-parallel, `torch.compile` and weight-averaging wrappers.

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
            return model


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
    model: nn.Module, exclude: Exclusion = (), example: Example | None = None, passed: Passed | None = None
) -> Capture:
    """Trace `model`; submodules that stop the trace become islands, the innermost first.

    With an `example`, what its sizes decide is decided, and checked at run time.  `passed` is what the
    callers of an inner module pass to it.
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
    sized = False
    kept = Kept(model, modules)
    while True:
        seen = example if sized else None
        another = partial(Tracer, whole, example, passed) if seen is None else partial(SizedTracer, whole, seen)
        tracer = another()
        shell = _shell(model)
        try:
            with restored(kept) as counting:
                before = shell.__dict__.copy()
                graph = tracer.trace(shell)
                counting += [shell] if counts(shell, model.__dict__) else []
                if tracer.refusal is not None:
                    raise tracer.refusal  # the model's own code caught it, and went on elsewhere
                _check_none(tracer, model)
                rebuilt = kept.rebuilt(shell, tracer.added)
                stateful = remembering(shell, graph, partial(_traced_by, another), kept.changed(shell, before))
        except Exception as error:  # a model's own code may raise anything under symbolic values
            if example is not None and not sized:
                sized = True
                continue
            path = tracer.broke_at
            while path in whole:  # the call of an island broke: its caller is to blame
                path = path.rpartition(".")[0]
            islands[path] = Island(path, _cause(error))
            if path == "":
                return Capture(model, None, list(islands.values()), excluded)
            whole.add(path)
            continue
        if counting:
            path = "" if shell in counting else next(p for p, m in modules if m in counting)
            islands[path] = Island(path, "its forward changes a number that it keeps, so one call is not like another")
            if path == "":
                return Capture(model, None, list(islands.values()), excluded)
            whole.add(path)
            continue
        if rebuilt or stateful:
            why = "makes parts or hooks anew" if rebuilt else "reads attributes that an earlier forward wrote"
            fresh = [path for path in rebuilt or stateful if path not in whole]
            fresh = fresh or [""]  # else written by code around it
            for path in fresh:
                islands[path] = Island(path, f"its forward {why}")
            if "" in fresh:
                return Capture(model, None, list(islands.values()), excluded)
            whole.update(fresh)
            continue
        index_modules(shell)
        functionalize(graph, shell, whole)
        own_keywords(graph)
        spell_out(graph, shell)
        remove_guards(graph)
        read_sizes_early(graph, shell, whole)
        used = {node.target for node in graph.nodes if node.op == "call_module"}
        conditions = list(dict.fromkeys(tracer.decisions.values())) if isinstance(tracer, SizedTracer) else []
        return Capture(shell, graph, [i for p, i in islands.items() if p in used], excluded, conditions)


def _traced_by(tracer: Callable[[], Tracer], model: nn.Module) -> fx.Graph:
    """The graph that a new tracer makes of a model."""
    return tracer().trace(_shell(model))


def _shell(model: nn.Module) -> nn.Module:
    """A module like the user's to hold what the trace adds: constants met on the way, guards."""
    shell = copy.copy(model)
    shell.__dict__["_modules"] = dict(model._modules)
    return shell


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


def _check_none(tracer: Tracer, model: nn.Module) -> None:
    """Raise where an inner module may be given None for an argument that the trace has taken for a value."""
    if tracer.passed is None or isinstance(model, fx.GraphModule):
        return
    required = [p.name for p in inspect.signature(model.forward).parameters.values() if p.default is EMPTY]
    for name in required[1:]:
        other = Tracer(tracer.whole, None, tracer.passed)
        other.compiled_in = {name: None}
        try:
            other.trace(_shell(model))
        except Exception:  # then the original would not run either
            continue
        raise UnknownArgumentError(f"its caller passes {name}, which may be None")


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what a forward leaves in module attributes (counters, last outputs)."""
    with restored(Kept(model, modules_of(model))):
        yield


@contextmanager
def restored(kept: Kept) -> Iterator[list[nn.Module]]:
    """Undo what a forward under symbolic values leaves in module attributes.

    Yields a list that holds, at the end, the modules whose numbers the forward has changed.
    """
    counting: list[nn.Module] = []
    try:
        yield counting
    finally:
        counting += kept.restore()


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
    return any(type(hook).__name__ not in ("WeightNorm", "SpectralNorm") for hook in named)


def _cause(error: Exception) -> str:
    if isinstance(error, UnknownArgumentError):
        return str(error)
    text = str(error).strip().split("\n")[0]
    frame, trace = None, error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if is_user_code(name):
            frame = trace
        trace = trace.tb_next
    place = ""
    if frame is not None:
        code = frame.tb_frame.f_code
        place = f" at {code.co_qualname}, line {frame.tb_lineno}"
    return f"{type(error).__name__}{place}: {text}"


def remove_guards(graph: fx.Graph) -> None:
    """Drop assertions on shapes and whatever only they read; a guard is no reader of a value."""
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") in ("_assert", "assert_fn"):
            graph.erase_node(node)
    remove_dead(graph)


_SAME_SIZE = (nn.modules.batchnorm._BatchNorm, nn.Identity, nn.Dropout)
