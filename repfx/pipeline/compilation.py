"""One module on its way: captured, lifted, rewritten, and written.

    capture   the module's forward as a graph, or that it does not trace       `repfx.capture`
    lift      what each node computes, and what the graph was before           `lift`
    rewrite   the passes, until nothing improves                               `rewrite`
    write     a module of the rewritten graph (`build`), or only what it would be (`announce`)

What does not trace is an island: `repfx.pipeline.islands`.  `repfx.compiler`, which users call, compares the result and
reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from repfx.attention import copy_strided_operands
from repfx.capture import Capture, capture
from repfx.decline import Decline, Reason
from repfx.emission import (
    default_dtype,
    emit_all,
    graph_module,
    holds_one_of,
    planned,
    shared_records,
    shares_weights,
    stored_twice,
    weights_read,
    with_weights,
)
from repfx.graph import LiftedGraph
from repfx.lifting import lift_graph
from repfx.pipeline.agreement import agree
from repfx.pipeline.channel_checks import check_channels
from repfx.pipeline.example_shapes import shapes_for
from repfx.pipeline.islands import Islands
from repfx.pipeline.plan import Outcome, Plan
from repfx.reporting import OpCounts
from repfx.rewriting import Engine
from repfx.tracing import Example, Passed
from repfx.verification import Held, Spec, count_graph, count_plan, held_by, told_by_graph


def compile_module(
    model: nn.Module,
    example: Example | None,
    plan: Plan,
    passed: Passed | None = None,
    memo: dict[int, Any] | None = None,
) -> tuple[nn.Module, Outcome]:
    """The compiled module and what was done; the module itself where nothing is built.

    `passed` is what the callers of an inner module pass to it, `memo` what was copied of the model already.
    """
    islands = Islands(plan, {} if memo is None else memo, compile_module)
    done = _within_its_size(model, example, plan, passed)
    if isinstance(done, Capture):
        return islands.compile_module(model, done)
    write = build if plan.build else announce
    return write(model, done, islands)


def on_meta(model: nn.Module) -> bool:
    """Whether a model has no numbers."""
    return any(p.device.type == "meta" for p in model.parameters())


# --- lift -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lifted:
    """A captured graph with what each node computes, and what is known of it before anything is rewritten."""

    captured: Capture
    graph: LiftedGraph
    before: OpCounts
    told: Mapping[str, Spec]  # what the graph tells of the arguments
    read: Mapping[str, tuple[str, ...]]  # the weights that each place reads
    shares_weights: bool  # whether several calls use one weight
    shapes: Mapping[str, tuple[int, ...]]  # of the example's values
    dtype: torch.dtype | None  # of weights that are merged from none


def lift(model: nn.Module, captured: Capture, example: Example | None) -> Lifted:
    """What a captured graph computes."""
    graph, root = captured.graph, captured.root
    assert graph is not None
    before, told, read = count_graph(graph, root), told_by_graph(graph, root), weights_read(graph, root)
    shares = shares_weights(graph, root)
    shapes = shapes_for(graph, root, model, example)
    whole = captured.excluded | {island.path for island in captured.islands}
    lifted = lift_graph(graph, root, whole, shapes)
    return Lifted(captured, lifted, before, told, read, shares, shapes, default_dtype(root, example))


# --- rewrite --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewritten:
    """A graph that is rewritten, and not written yet."""

    lifted: Lifted
    shared: Mapping[fx.Node, fx.Node]  # whose modules a value is computed by, where those are not its own
    declines: list[Decline]
    verify_seconds: float


def rewrite(model: nn.Module, lifted: Lifted, plan: Plan, kept: set[int]) -> Rewritten:
    """Run the passes; `kept` are weights, by identity, of which nothing that holds one is folded."""
    graph = lifted.graph
    objection = partial(_objection, lifted, kept)
    verify = plan.verify and not on_meta(model)
    engine = Engine(graph, plan.objective, objection, verify=verify, progress=plan.progress)
    engine.run(() if lifted.dtype is None else plan.passes)
    copy_strided_operands(graph)
    declines = [*engine.declines(), *graph.declines()]
    if lifted.dtype is None:
        fact = "has no parameters, so the dtype of its values is not known"
        declines.append(Decline(Reason.UNKNOWN_FACT, fact, type(model).__name__, "pass example_inputs"))
    shared = shared_records(graph) if lifted.shares_weights else {}
    return Rewritten(lifted, shared, declines, engine.verify_seconds)


def _objection(lifted: Lifted, kept: set[int], node: fx.Node) -> Decline | None:
    """Why a node must stay as it is, if so."""
    graph = lifted.graph
    if node.op == "call_module" and str(node.target) in lifted.captured.excluded:
        return Decline(Reason.EXCLUDED, "is excluded", graph.place(node))
    if kept and node not in graph.records and holds_one_of(kept, node, graph):
        fact = "shares its weights with other calls, and folded into some it would be stored once more"
        return Decline(Reason.COST, fact, graph.place(node))
    return None


def _within_its_size(
    model: nn.Module, example: Example | None, plan: Plan, passed: Passed | None
) -> Rewritten | Capture:
    """The module captured, lifted and rewritten; its capture alone, where its own forward does not trace.

    Where nothing may grow, a weight that several calls share is not folded into some of them: that would store it
    once more.  Whether it would is known when all is done; then it is done again without what parts the calls, and
    if that is not enough, without any fold of those weights.
    """
    kept: set[int] = set()
    while True:
        captured = capture(model, plan.exclude, example, passed, agree)
        if captured.graph is None:
            return captured
        done = rewrite(model, lift(model, captured, example), plan, kept)
        if not plan.objective.stores_once or not done.lifted.shares_weights:
            return done
        more = _stored_once_more(done, kept)
        if not more:
            return done
        kept |= more


def _stored_once_more(done: Rewritten, kept: set[int]) -> set[int]:
    """The weights whose folds make the network larger, as far as they are not kept already."""
    graph = done.lifted.graph
    after, _ = count_plan(graph, done.shared, {})
    if after.parameters <= done.lifted.before.parameters:
        return set()
    twice, parting = stored_twice(graph, done.shared)
    return parting - kept or twice - kept


# --- write ----------------------------------------------------------------------------------------


def build(model: nn.Module, done: Rewritten, islands: Islands) -> tuple[nn.Module, Outcome]:
    """The module of a rewritten graph."""
    lifted, graph, root = done.lifted, done.lifted.graph, done.lifted.captured.root
    outcome = _outcome(done)
    merges, emitted = emit_all(graph, root, lifted.dtype, done.shared)
    outcome.merges += with_weights(merges, lifted.read)
    graph.dominators = None  # they refer back to the graph: without them everything is freed as soon as it can be

    def compiled(path: str, module: nn.Module) -> nn.Module:
        return islands.compile_at(path, module, outcome)[0]

    builders = {island.path: partial(compiled, island.path) for island in lifted.captured.islands}
    fused = graph_module(graph, root, emitted, builders, islands.memo)
    if graph.is_rewritten:
        lifted.captured.conditions += check_channels(fused, lifted.shapes)
    outcome.after, outcome.held = count_graph(fused.graph, fused), held_by(fused)
    return fused, outcome


def announce(model: nn.Module, done: Rewritten, islands: Islands) -> tuple[nn.Module, Outcome]:
    """The module as it is, and what would be built."""
    lifted, graph = done.lifted, done.lifted.graph
    outcome = _outcome(done)
    outcome.merges += with_weights(planned(graph, done.shared), lifted.read)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    held: dict[str, Held] = {}
    for path in [island.path for island in lifted.captured.islands if island.path in called]:
        _, held[path] = islands.compile_at(path, graph.root.get_submodule(path), outcome)
    outcome.after, outcome.held = count_plan(graph, done.shared, held)
    graph.dominators = None  # as in `build`
    return model, outcome


def _outcome(done: Rewritten) -> Outcome:
    """What was done so far."""
    lifted = done.lifted
    return Outcome(
        lifted.captured,
        lifted.before,
        lifted.before,
        Held(),
        declines=done.declines,
        verify_seconds=done.verify_seconds,
        told=lifted.told,
    )
