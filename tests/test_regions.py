"""Dominators against networkx, on random graphs, as traced and while they are rewritten."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import fx, nn

from passes import DEFAULT_PASSES
from repfx.capture import capture
from repfx.graph import LiftedGraph, dominators
from repfx.lifting import lift_graph
from repfx.rewriting import Engine
from repfx.rewriting.objective import SINGLE_BRANCH
from tests import builders
from tests.generators import random_network

ROOT = "root"


def _oracle(lifted: LiftedGraph) -> dict[object, object]:
    graph: nx.DiGraph[object] = nx.DiGraph()
    for node in lifted.graph.nodes:
        for source in lifted.sources(node) or (ROOT,):
            graph.add_edge(source, node)
    return dict(nx.immediate_dominators(graph, ROOT))


def _lifted(seed: int) -> LiftedGraph:
    model: nn.Module = builders.network(random_network(seed, most=8)).eval()
    captured = capture(model)
    assert captured.graph is not None
    return lift_graph(captured.graph, captured.root, {island.path for island in captured.islands})


@pytest.mark.parametrize("seed", range(20))
def test_immediate_dominators_are_those_of_networkx(seed: int) -> None:
    lifted = _lifted(seed)
    expected, found = _oracle(lifted), dominators(lifted)
    for node in lifted.graph.nodes:
        wanted = expected[node]
        assert found.of(node) is (wanted if isinstance(wanted, fx.Node) else None), node


@pytest.mark.parametrize("seed", range(20))
def test_they_stay_true_while_the_graph_is_rewritten(seed: int) -> None:
    """Found once, on the traced graph; what they say of the rewritten one dominates there."""
    lifted = _lifted(seed)
    found = dominators(lifted)
    with torch.no_grad():
        Engine(lifted, SINGLE_BRANCH, lambda node: None, verify=False).run(DEFAULT_PASSES)
    expected = _oracle(lifted)
    for node in lifted.graph.nodes:
        above = found.of(node)
        if above is not None:
            chain, step = [], expected[node]
            while isinstance(step, fx.Node) and step not in chain:
                chain.append(step)
                step = expected[step]
            assert above in chain, f"{above} does not dominate {node}"
