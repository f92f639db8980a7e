"""nn.Module -> fx graph: the whole model where it traces, islands where it does not.

An island is a submodule whose code torch.fx cannot trace (or that the user excluded, or that carries
hooks).  It stays one call in the graph; its children are compiled on their own by `repfx.compiler`.
In-place operations are made functional here, so that every later layer sees values, not memory.
"""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from repfx.dead import remove_dead
from repfx.decline import TrainingModeError
from repfx.modules import EMITTED
from repfx.report import Island

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
        try:
            graph = tracer.trace(model)
        except Exception as error:  # a model's own code may raise anything under symbolic values
            path = tracer.broke_at
            islands[path] = Island(path, _cause(error))
            if path == "":
                return Capture(model, None, list(islands.values()), excluded)
            whole.add(path)
            continue
        remove_guards(graph)
        functionalize(graph, model)
        used = {node.target for node in graph.nodes if node.op == "call_module"}
        return Capture(model, graph, [i for p, i in islands.items() if p in used], excluded)


def excluded_paths(model: nn.Module, exclude: Exclusion) -> Iterable[str]:
    """Module paths that `exclude` (paths, globs, types) names."""
    patterns = [e for e in exclude if isinstance(e, str)]
    types = tuple(e for e in exclude if isinstance(e, type))
    for path, module in model.named_modules():
        if isinstance(module, types) or any(fnmatch.fnmatchcase(path, p) for p in patterns):
            yield path


class _Tracer(fx.Tracer):
    """fx's tracer with our leaves, remembering the innermost module that stopped it."""

    def __init__(self, whole: set[str]) -> None:
        super().__init__(autowrap_functions=())
        self.whole = whole
        self.broke_at = ""
        self._broken = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.whole or isinstance(m, EMITTED):
            return True
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


# --- in-place operations --------------------------------------------------------------------------

_VIEWS = {
    "view", "reshape", "flatten", "transpose", "permute", "contiguous", "expand", "chunk", "split", "unbind",
    "squeeze", "unsqueeze", "narrow", "getitem", "select", "view_as", "t", "expand_as", "detach", "swapaxes",
}  # fmt: skip


def functionalize(graph: fx.Graph, root: nn.Module) -> None:
    """After an in-place operation, later readers of the old name read the new value.

    `out = a; out += b; return out + a` returns 2 (a + b): `a` and `out` are one tensor.  Where views
    share the memory, nothing is rewritten; `node.meta["aliased"]` marks every value concerned, and
    the lifting leaves those alone.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        victim = _mutated(node, root)
        if victim is None:
            continue
        family = _aliases(victim, root)
        read_later = any(position[u] > position[node] for m in family - {victim} for u in m.users if u is not node)
        if victim.op in ("placeholder", "get_attr") or read_later or not _out_of_place(node):
            for member in family | {node}:
                member.meta["aliased"] = True
            continue
        for user in list(victim.users):
            if user is not node and position[user] > position[node]:
                user.replace_input_with(victim, node)


def _out_of_place(node: fx.Node) -> bool:
    """Make the operation functional; modules are switched where they are copied (`inplace`)."""
    if node.op == "call_module":
        return True
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        if not hasattr(torch.Tensor, name):
            return False
        node.target = name
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    name = getattr(node.target, "__name__", "")
    plain = getattr(operator, name[1:], None) if name.startswith("i") else getattr(torch, name.rstrip("_"), None)
    if plain is None:
        return False
    node.target = plain
    return True


def _mutated(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The value that this node overwrites, if any."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        return None
    match node.op:
        case "call_module":
            module = root.get_submodule(str(node.target))
            return first if getattr(module, "inplace", False) is True else None
        case "call_function":
            name = getattr(node.target, "__name__", "")
            in_place = name.startswith("i") and getattr(node.target, "__module__", "") == "_operator"
            in_place = in_place and name in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior")
            if in_place or node.kwargs.get("inplace") is True or (name.endswith("_") and not name.endswith("__")):
                return first
            return first if node.kwargs.get("out") is not None else None
        case "call_method":
            name = str(node.target)
            return first if name.endswith("_") and not name.endswith("__") else None
        case _:
            return None


def _aliases(node: fx.Node, root: nn.Module) -> set[fx.Node]:
    """All values that may share memory with `node`."""
    family, work = {node}, [node]
    while work:
        member = work.pop()
        near = [user for user in member.users if _is_view(user, root)]
        if _is_view(member, root):
            near += list(member.all_input_nodes[:1])
        for other in near:
            if other not in family:
                family.add(other)
                work.append(other)
    return family


def _is_view(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, nn.Identity | nn.Dropout | nn.Flatten | nn.Unflatten)
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _VIEWS
