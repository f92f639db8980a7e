"""The gate's last question: a replacement that is wrong on any probe is refused, and what rests on what is noted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import fx, nn

import repfx
from repfx.algebra import pointwise
from repfx.capture import capture
from repfx.decline import Decline, Reason
from repfx.graph import Affine, LiftedGraph, Op
from repfx.lifting import lift_graph
from repfx.rewriting import Apply, Proposal
from repfx.rewriting.reader import Reader


@dataclass(frozen=True)
class Scaled:
    """A pass that says that a norm behind a convolution is a scale by `factor`, whatever the norm does."""

    factor: float
    name: str = "scaled"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """Drop the norm."""
        op = lifted.op(node)
        if not isinstance(op, Affine) or node.target != "2":
            return
        scale = torch.full((4,), self.factor, dtype=torch.float64)
        before = lifted.op(op.source)
        assert isinstance(before, Affine)
        yield Proposal(
            self.name, ((node, Apply(pointwise(4, 2, lambda: scale, None), before.source)),), (op.source, node)
        )


def network() -> nn.Module:
    """A convolution, a scale by one and another that is written as two norms."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.0), nn.BatchNorm2d(4, eps=0.0))
    return model.eval()


def test_a_replacement_that_is_right_is_accepted() -> None:
    assert [merge.rule for merge in repfx.report(repfx.reparameterize(network(), passes=(Scaled(1.0),))).merges]


@pytest.mark.parametrize("factor", [1.0 + 1e-6, 2.0, float("nan"), float("inf")])
def test_a_replacement_that_is_wrong_is_refused(factor: float) -> None:
    model = network()
    report = repfx.report(repfx.reparameterize(model, passes=(Scaled(factor),)))
    assert report.merges == ()
    assert [decline.reason for decline in report.declines] == [Reason.VERIFICATION]


def test_a_reader_notes_what_is_looked_at_and_sees_what_changes() -> None:
    captured = capture(network(), ())
    assert captured.graph is not None
    lifted = lift_graph(captured.graph, captured.root, captured.excluded)
    first, second, third = (node for node in captured.graph.nodes if node.op == "call_module")
    reader = Reader(lifted)
    assert reader.looked_at == set()
    reader.sources(second)
    assert reader.looked_at == {second}
    reader.readers(first)
    assert reader.looked_at == {first, second}
    other = Reader(lifted)
    assert other.looked_at == set()
    lifted.rename(first, third)
    assert other.current(first) is third
    assert other.sources(second) == (third,)
    assert reader.plain is lifted
