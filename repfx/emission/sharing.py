"""What is shared before is shared after: calls that were one module, or held one weight, are one module again.

    y1 = n(a(x1)); y2 = n(a(x2))         a trunk called twice (Siamese), the same two batch norms
    z1 = f(x1); z2 = f(x2)               one folded convolution f, called twice

Exact when both maps are the same function of the same weights.  Decided at random parameter values, never at the
current ones, where two expressions may agree by chance (fresh batch norms).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from repfx.algebra import Probe, Values, probing
from repfx.graph import LiftedGraph, Record, attribute, module_at, modules_of, tensors_of

_SAME = 1e-9  # relative, of two ways to compute one number in float64


def shares_weights(graph: fx.Graph, root: nn.Module) -> bool:
    """Whether several calls or readings of a traced graph use one weight."""
    found: set[int] = set()
    for node in graph.nodes:
        own = set(map(id, _held(node, root)))
        if not found.isdisjoint(own) or (own and node.op == "get_attr" and len(node.users) > 1):
            return True
        found |= own
    return False


def _held(node: fx.Node, root: nn.Module) -> Iterable[Tensor]:
    if node.op == "call_module":
        module = module_at(root, str(node.target))
        return tensors_of(modules_of(module))
    value = attribute(root, str(node.target)) if node.op == "get_attr" else None
    return [value] if isinstance(value, Tensor) else []


def shared_records(lifted: LiftedGraph) -> dict[fx.Node, fx.Node]:
    """For a rewritten value that another one's module computes just as well, that other, earlier one."""
    alike: dict[Hashable, list[fx.Node]] = {}
    for node in lifted.nodes():
        record = lifted.records.get(node)
        if record is not None:
            alike.setdefault(record.map.structure, []).append(node)
    found: dict[fx.Node, fx.Node] = {}
    for nodes in alike.values():
        if len(nodes) > 1:
            found |= _shared_among(nodes, lifted)
    return found


def _shared_among(nodes: list[fx.Node], lifted: LiftedGraph) -> dict[fx.Node, fx.Node]:
    found: dict[fx.Node, fx.Node] = {}
    kept: list[tuple[fx.Node, frozenset[int], Values]] = []
    probe = Probe()
    with torch.no_grad():
        for node in nodes:
            read, values = _probed(lifted.records[node], probe)
            same = next((one for one, other, known in kept if other == read and _equal(known, values)), None)
            if same is None:
                kept.append((node, read, values))
            else:
                found[node] = same
    return found


def _probed(record: Record, probe: Probe) -> tuple[frozenset[int], Values]:
    """The weights behind a map, by identity, and its numbers at random values of them."""
    probe.read = set()
    with probing(probe):
        values = record.map.values()
        values = Values(values.planes, values.bias, values.ones)
    return frozenset(probe.read), values


def _equal(a: Values, b: Values) -> bool:
    pairs = [(a.planes, b.planes), (a.bias, b.bias), *zip(a.ones, b.ones)]
    return all(not x.numel() or float((x - y).abs().max()) <= _SAME * float(x.abs().max()) for x, y in pairs)


def holds_one_of(weights: set[int], node: fx.Node, lifted: LiftedGraph) -> bool:
    """Whether a node reads one of these weights, which are given by identity, or what is computed from them alone."""
    work, seen = [node], {node}
    while work:
        step = work.pop()
        if any(id(tensor) in weights for tensor in _held(step, lifted.root)):
            return True
        fresh = [n for n in step.all_input_nodes if n not in seen and lifted.context.constants.is_constant(n)]
        seen.update(fresh)
        work += fresh
    return False


def stored_twice(lifted: LiftedGraph, shared: Mapping[fx.Node, fx.Node]) -> tuple[set[int], set[int]]:
    """Weights, by identity, that would be part of several modules of the rewritten graph; and those that part them.

    `s1 * w` and `s2 * w`, the scales of two levels folded into one head: w would be stored twice, because of s1 and s2.
    """
    parts = _weights_of_each_module(lifted, shared)
    found = Counter(weight for part in parts for weight in part)
    twice = {weight for weight, count in found.items() if count > 1}
    parting: set[int] = set()
    for weight in twice:
        around = [part for part in parts if weight in part]
        parting |= frozenset.union(*around) - frozenset.intersection(*around)
    return twice, parting


def _weights_of_each_module(lifted: LiftedGraph, shared: Mapping[fx.Node, fx.Node]) -> list[frozenset[int]]:
    """What lies behind each module of the rewritten graph, by identity."""
    parts: list[frozenset[int]] = []
    probe = Probe()
    with torch.no_grad():
        for node in lifted.nodes():
            record = lifted.records.get(node)
            if record is None:
                parts.append(frozenset(map(id, _held(node, lifted.root))))
            elif node not in shared:
                parts.append(_probed(record, probe)[0])
    return parts
