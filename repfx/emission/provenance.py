"""Which original weights went into each weight of a compiled module.

The record knows the places that every merge took in; here each place is given the weights it reads: a
module those it holds, an operation the parameters and buffers that reach it through constants.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx, nn

from repfx.graph import module_at, place_of
from repfx.reporting import Merge, Report


def weights_read(graph: fx.Graph, root: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every place of a traced graph the names of the weights it reads."""
    constant: dict[fx.Node, dict[str, None]] = {}  # of constants, the weights behind them, in order
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            constant[node] = {str(node.target): None}
            continue
        inputs = node.all_input_nodes if constant else []
        read = {name: None for source in inputs for name in constant.get(source, ())}
        if inputs and node.op in ("call_function", "call_method") and constant.keys() >= set(inputs):
            constant[node] = read
        if node.op == "call_module":
            read.update(dict.fromkeys(_held(root, str(node.target))))
        found[place_of(node)] = tuple(read)
    return found


def _held(root: nn.Module, path: str) -> list[str]:
    """Names of the weights in the state of the module at a path."""
    module = module_at(root, path)
    names = module.state_dict() if module._modules or module._state_dict_hooks else _own(module)
    return [f"{path}.{name}" for name in names if not name.endswith("num_batches_tracked")]


def _own(module: nn.Module) -> list[str]:
    """Names of the weights in the state of a module without parts."""
    own = [name for name, value in module._parameters.items() if value is not None]
    transient = module._non_persistent_buffers_set
    if module._buffers:
        own += [name for name, value in module._buffers.items() if value is not None and name not in transient]
    return own


def with_weights(merges: Iterable[Merge], read: Mapping[str, tuple[str, ...]]) -> list[Merge]:
    """The merges, each with the weights that its sources read."""
    places = sorted(read)
    return [replace(merge, weights=_of(merge.sources, read, places)) for merge in merges]


def _of(sources: Iterable[str], read: Mapping[str, tuple[str, ...]], places: Sequence[str]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for source in sources:
        for place in (source,) if source in read else (*_below(f"{source}.", places), *_below(f"{source}:", places)):
            names |= dict.fromkeys(read[place])
    return tuple(names)


def _below(prefix: str, places: Sequence[str]) -> Sequence[str]:
    """The places, in order, that begin so."""
    return places[bisect_left(places, prefix) : bisect_left(places, prefix[:-1] + chr(ord(prefix[-1]) + 1))]


def below(merge: Merge, parent: str) -> Merge:
    """A merge inside a submodule, as seen from the model."""
    return replace(
        merge,
        path=f"{parent}.{merge.path}",
        sources=tuple(f"{parent}.{source}" for source in merge.sources),
        weights=tuple(f"{parent}.{name}" for name in merge.weights),
    )


def key_map_of(fused: nn.Module, report: Report) -> dict[str, tuple[str, ...]]:
    """For every weight of a compiled module the names of the original weights that went into it, in order.

    A weight that was taken over as it is has its own name; an order of channels, which structure gives, has none.
    """
    merges = sorted(report.merges, key=lambda merge: -len(merge.path))
    found = {}
    for name in fused.state_dict():
        owner = next((m for m in merges if name.startswith(f"{m.path}.")), None)
        order = any(name in (f"{m.path}_gather.index", f"{m.path}_order.index") for m in merges)
        found[name] = () if order else (name,) if owner is None else owner.weights
    return found
