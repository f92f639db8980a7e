"""nn.Module -> fx graph: the whole model where it traces, islands where it does not.

An island is a submodule whose code torch.fx cannot trace (or that the user excluded, or that carries
hooks).  It stays one call in the graph; its children are compiled on their own by `repfx.compiler`.
In-place operations are made functional here, so that every later layer sees values, not memory.
"""

from __future__ import annotations

import copy
import fnmatch
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.fx.proxy import ParameterProxy

from repfx.dead import remove_dead
from repfx.decline import TrainingModeError
from repfx.inplace import MutableProxy, SizedParameterProxy, functionalize
from repfx.keywords import own_keywords
from repfx.modules import EMITTED
from repfx.report import Island
from repfx.sizes import read_sizes_early
from repfx.spelling import spell_out
from repfx.state import StateTracer, attributes, remembering

Exclusion = Sequence[str | type]


@dataclass
class Capture:
    """A traced model: `root` holds the original modules, `graph` is ours to rewrite."""

    root: nn.Module
    graph: fx.Graph | None  # None: not even the outermost forward traces
    islands: list[Island] = field(default_factory=list)
    excluded: set[str] = field(default_factory=set)


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


def capture(model: nn.Module, exclude: Exclusion = ()) -> Capture:
    """Trace `model`; submodules that stop the trace become islands, the innermost first."""
    islands: dict[str, Island] = {}
    excluded = set(excluded_paths(model, exclude))
    hooked = {path for path, module in model.named_modules() if _has_hooks(module)}
    whole = set(excluded)
    for path in sorted(hooked - excluded):
        islands[path] = Island(path, "it has forward hooks, which see its own call")
        whole.add(path)
    if "" in whole:
        return Capture(model, None, list(islands.values()), excluded)
    while True:
        tracer = _Tracer(whole)
        shell = copy.copy(model)  # constants met on the way are stored on the root: not on the user's
        try:
            with unchanged(model):
                before = attributes(shell)
                graph = tracer.trace(shell)
                stateful = remembering(shell, graph, _Tracer(whole).trace, before)
        except Exception as error:  # a model's own code may raise anything under symbolic values
            path = tracer.broke_at
            while path in whole:  # the call of an island broke: its caller is to blame
                path = path.rpartition(".")[0]
            islands[path] = Island(path, _cause(error))
            if path == "":
                return Capture(model, None, list(islands.values()), excluded)
            whole.add(path)
            continue
        if stateful:
            fresh = [path for path in stateful if path not in whole] or [""]  # else written by code around it
            for path in fresh:
                islands[path] = Island(path, "its forward reads attributes that an earlier forward wrote")
            if "" in fresh:
                return Capture(model, None, list(islands.values()), excluded)
            whole.update(fresh)
            continue
        functionalize(graph, shell, whole)
        own_keywords(graph)
        spell_out(graph, shell)
        remove_guards(graph)
        read_sizes_early(graph, shell, whole)
        used = {node.target for node in graph.nodes if node.op == "call_module"}
        return Capture(shell, graph, [i for p, i in islands.items() if p in used], excluded)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what a forward under symbolic values leaves in module attributes (counters, last outputs)."""
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    caches = [
        (v, copy.copy(v)) for _, attributes in before for v in attributes.values() if type(v) in (dict, list, set)
    ]
    try:
        yield
    finally:
        for cache, content in caches:
            if isinstance(cache, dict) and cache.keys() != content.keys():
                cache.clear()
                cache.update(content)
            elif isinstance(cache, list) and len(cache) != len(content):
                cache[:] = content
            elif isinstance(cache, set):
                cache.intersection_update(content)
        for module, attributes in before:
            if module.__dict__.keys() != attributes.keys() or any(
                module.__dict__[key] is not value for key, value in attributes.items()
            ):
                module.__dict__.clear()
                module.__dict__.update(attributes)


def excluded_paths(model: nn.Module, exclude: Exclusion) -> Iterable[str]:
    """Module paths that `exclude` (paths, globs, types) names."""
    patterns = [e for e in exclude if isinstance(e, str)]
    types = tuple(e for e in exclude if isinstance(e, type))
    for path, module in model.named_modules():
        if isinstance(module, types) or any(fnmatch.fnmatchcase(path, p) for p in patterns):
            yield path


_OWN_FORWARD = (
    nn.modules.batchnorm._BatchNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


class _Tracer(StateTracer):
    """fx's tracer with our leaves, remembering the innermost module that stopped it."""

    proxy_buffer_attributes = True  # a buffer is read by name, like a parameter

    def __init__(self, whole: set[str]) -> None:
        super().__init__(autowrap_functions=(), param_shapes_constant=True)
        self.whole = whole
        self.broke_at = ""
        self._broken = False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        self.param_shapes_constant = isinstance(attr_val, nn.Parameter)
        value = super().getattr(attr, attr_val, parameter_proxy_cache)
        if type(value) is ParameterProxy:
            return SizedParameterProxy(value.tracer, value.node, value.name, value.param)
        return value

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return MutableProxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterating a split by sizes, whose number of parts is written in the code."""
        node = obj.node
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        sizes = node.args[1] if len(node.args) > 1 else node.kwargs.get("split_size_or_sections")
        if name in ("split", "split_with_sizes") and isinstance(sizes, tuple | list):
            return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(len(sizes))])
        return super().iter(obj)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.whole or isinstance(m, EMITTED):
            return True
        if any(isinstance(m, kind) and type(m).forward is kind.forward for kind in _OWN_FORWARD):
            return True  # a subclass that computes what torch's own module computes
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self._broken:
                self._broken = True
                self.broke_at = self.path_of_module(m)
            raise


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    named = [hook for table in hooks for hook in table.values()]
    return any(type(hook).__name__ not in ("WeightNorm", "SpectralNorm") for hook in named)


def _cause(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    frame, trace = None, error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/torch/" not in name and "repfx" not in name:
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
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert":
            graph.erase_node(node)
    remove_dead(graph)
