"""Two ways through one module that are one map: a module may go another way when gradients are recorded.

    if x.requires_grad: return x * scale + shift         (detectron2's FrozenBatchNorm2d)
    return F.batch_norm(x, mean, var, weight, bias)

Exact when both ways are affine maps of the same value, of equal structure, whose numbers agree at random values of
the weights.  Anything else stays a difference.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from repfx.algebra import Probe, probing
from repfx.capture import functionalize
from repfx.decline import Decline
from repfx.graph import LiftedGraph, Region, between, index_modules, is_size
from repfx.lifting import lift_graph
from repfx.tracing import Traced, calls_of

_SAME = 1e-10  # relative, in float64


def agree(first: Traced, second: Traced, path: str) -> bool:
    """Whether every call of the module at `path` is the same map in both traces."""
    ours, theirs = calls_of(first.graph, path), calls_of(second.graph, path)
    if ours.keys() != theirs.keys() or not ours:
        return False
    one, other = _lifted(first), _lifted(second)
    return all(_same(_map(one, ours[key]), _map(other, theirs[key])) for key in ours)


def _lifted(traced: Traced) -> LiftedGraph:
    """A copy of the trace, lifted: the trace itself is to be rewritten later."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(traced.graph, copies)
    graph.output(output)
    for old, new in copies.items():
        new.name = old.name
    index_modules(traced.shell)
    functionalize(graph, traced.shell)
    return lift_graph(graph, traced.shell, set())


def _map(lifted: LiftedGraph, call: list[fx.Node]) -> Region | None:
    """What one call computes, as a map of the one value that it reads."""
    names = {node.name for node in call}
    nodes = [node for node in lifted.graph.nodes if node.name in names]
    inside = set(nodes)
    read: set[fx.Node] = set()
    for node in nodes:
        read.update(_values_read(lifted, node, inside))
    made = [node for node in nodes if not inside.issuperset(node.users)]
    if len(read) != 1 or len(made) != 1:
        return None
    region = between(lifted, read.pop(), made[0])
    return None if isinstance(region, Decline) else region


def _values_read(lifted: LiftedGraph, node: fx.Node, inside: set[fx.Node]) -> Iterator[fx.Node]:
    for given in node.all_input_nodes:
        if given not in inside and not lifted.context.constants.is_constant(given) and not is_size(given):
            yield given


def _same(one: Region | None, other: Region | None) -> bool:
    if one is None or other is None or one.source.name != other.source.name:
        return False
    if one.map.structure != other.map.structure:
        return False
    probe = Probe()
    with torch.no_grad(), probing(probe):
        a, b = one.map.values(), other.map.values()
        pairs = [(a.planes, b.planes), (a.bias, b.bias), *zip(a.ones, b.ones)]
    return all(not x.numel() or float((x - y).abs().max()) <= _SAME * float(x.abs().max()) for x, y in pairs)
