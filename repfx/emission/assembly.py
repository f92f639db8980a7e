"""A rewritten graph becomes a module: names, weights, and copies of what was left as it is."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
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
            paths = written[shared[node]]
        else:
            path = names.choose(record, node)
            modules = emit(record.map, _target(record, model, dtype), path)
            paths = [path + suffix for suffix, _ in modules]
            emitted.update((path + suffix, module) for suffix, module in modules)
            if record.kinds:
                merges.append(_merge(record, path))
        written[node] = paths
        value = node.args[0]
        for path in paths:
            with lifted.graph.inserting_before(node):
                call = lifted.graph.call_module(path, (value,))
            call.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
            value = call
        node.replace_all_uses_with(value)  # type: ignore[arg-type]
        lifted.graph.erase_node(node)
        del lifted.records[node]
    merges += [_called(call) for call in lifted.calls.values()]
    remove_dead(lifted.graph)
    return merges, emitted


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


def _tensors(owner: nn.Module) -> list[Tensor]:
    """Parameters, then buffers."""
    held = list(owner.modules()) if owner._modules else [owner]
    given = [*(p for m in held for p in m._parameters.values()), *(b for m in held for b in m._buffers.values())]
    return [tensor for tensor in given if tensor is not None]


def _target(record: Record, model: nn.Module, dtype: torch.dtype | None) -> Target:
    """dtype, device, requires_grad and memory format of the weights that were merged."""
    for source in record.sources:
        try:
            owner = model.get_submodule(source.split(":")[0])
        except AttributeError:
            continue
        floats = [t for t in _tensors(owner) if t.is_floating_point()]
        if floats:
            last = any(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
                       for t in floats)  # fmt: skip
            return Target(floats[0].dtype, floats[0].device, any(t.requires_grad for t in floats), last)
    parameters: list[Tensor] = [t for t in model.parameters() if t.is_floating_point()]
    floats = parameters or [t for t in model.buffers() if t.is_floating_point()]
    if not floats:
        return Target(dtype or torch.get_default_dtype())
    return Target(floats[0].dtype, floats[0].device, any(t.requires_grad for t in parameters))


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
    root = nn.Module()
    held = [n for n in lifted.graph.nodes if n.op == "call_module"] + [
        n for n in lifted.graph.nodes if n.op == "get_attr"
    ]
    for node in held:  # modules first: a parameter read by itself may belong to one of them
        path = str(node.target)
        if path in emitted:
            _attach(root, path, emitted[path])
            continue
        if _has(root, path):
            continue
        original = attribute(model, path)
        if node.op == "call_module" and path in islands:
            own = islands[path](original)
        else:
            own = copied(original, memo) if isinstance(original, nn.Module) else copy.deepcopy(original, memo)
            if isinstance(own, nn.Module) and works_in_place(own) and not node.meta.get("aliased"):
                own.inplace = False  # type: ignore[assignment]
        _attach(root, path, own)
    for node in lifted.graph.nodes:
        if (
            node.op == "call_method"
            and node.target == "view"
            and not any(isinstance(a, torch.dtype) for a in node.args)
        ):
            node.target = "reshape"  # a merged value need not lie in memory as the original did
    root.training = False
    forget_erased(lifted.graph)
    lifted.graph._tracer_cls = SignatureTracer  # unpickling traces again
    fused = fx.GraphModule(root, lifted.graph, class_name=type(model).__name__)
    for module in fused.modules():
        if type(module) is nn.Module:
            module.training = False  # containers; what was copied keeps its own mode
    return fused


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
