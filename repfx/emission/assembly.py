"""A rewritten graph becomes a module: names, weights, and copies of what was left as it is."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.algebra import form_of
from repfx.capture import works_in_place
from repfx.emission.modules import Target, emit
from repfx.emission.naming import Names
from repfx.graph import Call, LiftedGraph, Record, attribute, remove_dead
from repfx.reporting import Merge
from repfx.state import copied
from repfx.tracing import Example, SignatureTracer


def emit_all(
    lifted: LiftedGraph, model: nn.Module, dtype: torch.dtype | None, shared: Mapping[fx.Node, fx.Node]
) -> tuple[list[Merge], dict[str, nn.Module]]:
    """Write the module of every rewritten value and point its node at it.

    `shared` says whose modules a value is computed by, where those are not its own.
    """
    names, merges = Names(lifted), []
    emitted: dict[str, nn.Module] = {}
    written: dict[fx.Node, list[str]] = {}  # the modules of each value, in order
    for node in lifted.nodes():
        record = lifted.records.get(node)
        if record is None:
            continue
        if node in shared:
            written[node] = written[shared[node]]
        else:
            path = names.choose(record, node)
            modules = emit(record.map, _target(record, model, dtype), path)
            written[node] = [path + suffix for suffix, _ in modules]
            emitted.update((path + suffix, module) for suffix, module in modules)
            if record.kinds:
                merges.append(_merge(record, path))
        _call_in_a_row(lifted.graph, node, written[node])
        del lifted.records[node]
    merges += [_called(call) for call in lifted.calls.values()]
    remove_dead(lifted.graph)
    return merges, emitted


def _call_in_a_row(graph: fx.Graph, node: fx.Node, paths: Sequence[str]) -> None:
    """Calls of these modules, one of what the other gives, take the place of a node."""
    value = node.args[0]
    for path in paths:
        with graph.inserting_before(node):
            call = graph.call_module(path, (value,))
        call.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        value = call
    node.replace_all_uses_with(value)  # type: ignore[arg-type]
    graph.erase_node(node)


def planned(lifted: LiftedGraph, shared: Mapping[fx.Node, fx.Node]) -> list[Merge]:
    """What `emit_all` would write, without reading a weight."""
    names = Names(lifted)
    found = [(n, lifted.records[n]) for n in lifted.nodes() if n in lifted.records and n not in shared]
    merges = [_merge(record, names.choose(record, node)) for node, record in found if record.kinds]
    return [*merges, *(_called(call) for call in lifted.calls.values())]


def _called(call: Call) -> Merge:
    return Merge(call.place, call.rule, _counted(call.kinds), call.text, call.note, call.sources, call.error)


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda item: -item[1]))


def _merge(record: Record, path: str) -> Merge:
    return Merge(
        path,
        " + ".join(record.rules),
        _counted(record.kinds),
        str(form_of(record.map)),
        record.note,
        tuple(record.sources),
        record.error,
    )


def default_dtype(model: nn.Module, example: Example | None) -> torch.dtype | None:
    """The dtype of weights that were merged from none: the model's, or the example's."""
    given = () if example is None else (*example.args, *example.kwargs.values())
    tensors = [*model.parameters(), *model.buffers(), *(x for x in given if isinstance(x, Tensor))]
    return next((t.dtype for t in tensors if t.is_floating_point()), None)


def _target(record: Record, model: nn.Module, dtype: torch.dtype | None) -> Target:
    """dtype, device, requires_grad and memory format of the weights that were merged; else those of the model."""
    for source in record.sources:
        try:
            owner = model.get_submodule(source.split(":")[0])
        except AttributeError:
            continue
        floats = _floats([*owner.parameters(), *owner.buffers()] if owner._modules else _own_tensors(owner))
        if floats:
            return _target_like(floats, floats, channels_last=any(map(_lies_channels_last, floats)))
    parameters = _floats(model.parameters())
    floats = parameters or _floats(model.buffers())
    return _target_like(floats, parameters) if floats else Target(dtype or torch.get_default_dtype())


def _target_like(floats: Sequence[Tensor], trained: Sequence[Tensor], *, channels_last: bool = False) -> Target:
    """As the first of these tensors; to be trained where any of them is."""
    first = floats[0]
    return Target(first.dtype, first.device, any(t.requires_grad for t in trained), channels_last)


def _own_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, then buffers, of a module without parts."""
    return [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]


def _floats(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def _lies_channels_last(tensor: Tensor) -> bool:
    if tensor.dim() != 4 or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)


def graph_module(
    lifted: LiftedGraph,
    model: nn.Module,
    emitted: dict[str, nn.Module],
    islands: Mapping[str, Callable[[nn.Module], nn.Module]],
    memo: dict[int, Any],
) -> fx.GraphModule:
    """A GraphModule that owns copies of what is left of the model, and the emitted modules.

    `islands` says by path what becomes of the modules that do not trace; `memo` is that of all copies.
    """
    graph, root = lifted.graph, nn.Module()
    calls = list(graph.find_nodes(op="call_module"))
    for node in [*calls, *graph.find_nodes(op="get_attr")]:  # a parameter read by itself may belong to a module
        path = str(node.target)
        if path in emitted:
            _attach(root, path, emitted[path])
        elif not _has(root, path):
            original = attribute(model, path)
            is_island = node.op == "call_module" and path in islands
            _attach(root, path, islands[path](original) if is_island else _copy_of(original, node, memo))
    _reshape_for_views(graph)
    root.training = False
    forget_erased(graph)
    graph._tracer_cls = SignatureTracer  # unpickling traces again
    fused = fx.GraphModule(root, graph, class_name=type(model).__name__)
    for module in fused.modules():
        if type(module) is nn.Module:
            module.training = False  # containers; what was copied keeps its own mode
    return fused


def _copy_of(original: Any, node: fx.Node, memo: dict[int, Any]) -> Any:
    """A copy of what a node calls or reads, which overwrites nothing unless it is read as overwritten."""
    if not isinstance(original, nn.Module):
        return copy.deepcopy(original, memo)
    own = copied(original, memo)
    if works_in_place(own) and not node.meta.get("aliased"):
        own.inplace = False  # type: ignore[assignment]
    return own


def _reshape_for_views(graph: fx.Graph) -> None:
    """`view` becomes `reshape`: a merged value need not lie in memory as the original did."""
    for node in graph.find_nodes(op="call_method", target="view"):
        reads_as_dtype = any(isinstance(argument, torch.dtype) for argument in node.args)
        if not reads_as_dtype:
            node.target = "reshape"


def forget_erased(graph: fx.Graph) -> None:
    """Let go of the nodes that have left a graph: torch.fx keeps them by name as long as the graph lives.

    That table is private to torch.fx; where it looks otherwise, they stay.
    """
    named = getattr(getattr(graph, "_graph_namespace", None), "_obj_to_name", None)
    if isinstance(named, dict):
        alive = set(graph.nodes)
        for node in [key for key in named if isinstance(key, fx.Node) and key not in alive]:
            del named[node]


def _attach(root: nn.Module, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        inner = owner._modules.get(parent)
        if inner is None:
            inner = nn.Module()
            owner.add_module(parent, inner)
        owner = inner
    if isinstance(value, nn.Module):
        owner.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        owner.register_parameter(name, value)
    elif isinstance(value, Tensor):
        owner.register_buffer(name, value)
    else:
        setattr(owner, name, value)


def _has(root: nn.Module, path: str) -> bool:
    try:
        attribute(root, path)
    except AttributeError:
        return False
    return True
