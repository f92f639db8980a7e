"""One module on its way: traced, lifted, rewritten and written; and what does not trace, part by part.

`repfx.compiler` is what users call; this file does it for one module, and for the children of islands in turn.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.attention import copy_strided_operands
from repfx.capture import Capture, capture, unchanged
from repfx.decline import Decline, Reason
from repfx.emission import (
    below,
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
from repfx.errors import UserError
from repfx.graph import LiftedGraph, Shapes, is_image, modules_of
from repfx.layers import ArgumentGuard, SizeGuard
from repfx.lifting import lift_graph
from repfx.pipeline.agreement import agree
from repfx.reporting import Island, Merge, OpCounts
from repfx.rewriting import Engine, Objective, Pass
from repfx.state import copied, held
from repfx.tracing import Example, Passed, called_children, example_values, has_own_call, modes_kept, parameters_of
from repfx.verification import Call, Held, Spec, count_graph, count_plan, held_by, told_by_graph, trying

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Plan:
    """What is asked of a compilation."""

    objective: Objective
    passes: tuple[Pass, ...]
    exclude: tuple[str | type, ...]
    verify: bool
    progress: Progress | None
    build: bool = True


@dataclass
class Outcome:
    """What one compilation did, before it becomes a report."""

    capture: Capture
    before: OpCounts
    after: OpCounts
    held: Held  # what the compiled module holds, or would
    merges: list[Merge] = field(default_factory=list)
    declines: list[Decline] = field(default_factory=list)
    verify_seconds: float = 0.0
    told: Mapping[str, Spec] = field(default_factory=dict)  # what the graph tells of the arguments


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
    memo = {} if memo is None else memo
    done = _rewrite(model, example, plan, passed)
    if isinstance(done, Capture):
        return _compile_island(model, done, plan, "", memo)
    captured, lifted = done.captured, done.lifted
    outcome = Outcome(captured, done.before, done.before, Held(), [], done.declines, done.verify_seconds, done.told)
    if not plan.build:
        outcome.merges += with_weights(planned(lifted, done.shared), done.read)
        islands = {path: part.held for path, part in _explained_islands(outcome, lifted, plan).items()}
        outcome.after, outcome.held = count_plan(lifted, done.shared, islands)
        lifted.dominators = None
        return model, outcome
    merges, emitted = emit_all(lifted, captured.root, done.dtype, done.shared)
    lifted.dominators = None  # they refer back to the graph: without them everything is freed as soon as it can be
    outcome.merges += with_weights(merges, done.read)

    def compiled(path: str, module: nn.Module) -> nn.Module:
        own, inner = _compile_island(module, _untraced(module, captured, path), plan, path, memo)
        _take_over(outcome, inner)
        return own

    builders = {island.path: partial(compiled, island.path) for island in captured.islands}
    fused = graph_module(lifted, captured.root, emitted, builders, memo)
    if lifted.is_rewritten:
        captured.conditions += _guard_channels(fused, done.shapes)
    outcome.after, outcome.held = count_graph(fused.graph, fused), held_by(fused)
    return fused, outcome


def on_meta(model: nn.Module) -> bool:
    """Whether a model has no numbers."""
    return any(p.device.type == "meta" for p in model.parameters())


@dataclass
class _Rewriting:
    """A module traced, lifted and rewritten, and not written yet."""

    captured: Capture
    lifted: LiftedGraph
    shares: bool  # whether the original's calls share weights
    shared: dict[fx.Node, fx.Node]
    shapes: dict[str, tuple[int, ...]]
    declines: list[Decline]
    before: OpCounts
    read: Mapping[str, tuple[str, ...]]
    told: Mapping[str, Spec]
    dtype: torch.dtype | None
    verify_seconds: float


def _rewrite(model: nn.Module, example: Example | None, plan: Plan, passed: Passed | None) -> _Rewriting | Capture:
    """The module as far as it is rewritten; its capture, where its own forward does not trace.

    Where nothing may grow, a weight that several calls share is not folded into some of them: that would store it
    once more.  Whether it would is known when all is done; then it is done again without what parts the calls, and
    if that is not enough, without any fold of those weights.
    """
    kept: set[int] = set()
    while True:
        done = _rewrite_once(model, example, plan, passed, kept)
        if isinstance(done, Capture) or not plan.objective.stores_once or not done.shares:
            return done
        after, _ = count_plan(done.lifted, done.shared, {})
        twice, parting = stored_twice(done.lifted, done.shared)
        more = parting - kept or twice - kept
        if after.parameters <= done.before.parameters or not more:
            return done
        kept |= more


def _rewrite_once(
    model: nn.Module, example: Example | None, plan: Plan, passed: Passed | None, kept: set[int]
) -> _Rewriting | Capture:
    captured = capture(model, plan.exclude, example, passed, agree)
    graph, root = captured.graph, captured.root
    if graph is None:
        return captured
    before, told, read = count_graph(graph, root), told_by_graph(graph, root), weights_read(graph, root)
    shares = shares_weights(graph, root)
    shapes = _propagated(graph, root, model, example)
    lifted = lift_graph(graph, root, captured.excluded | {island.path for island in captured.islands}, shapes)

    def objection(node: fx.Node) -> Decline | None:
        if node.op == "call_module" and str(node.target) in captured.excluded:
            return Decline(Reason.EXCLUDED, "is excluded", lifted.place(node))
        if kept and node not in lifted.records and holds_one_of(kept, node, lifted):
            fact = "shares its weights with other calls, and folded into some it would be stored once more"
            return Decline(Reason.COST, fact, lifted.place(node))
        return None

    engine = Engine(
        lifted, plan.objective, objection, verify=plan.verify and not on_meta(model), progress=plan.progress
    )
    dtype = default_dtype(root, example)
    engine.run(plan.passes if dtype is not None else ())
    copy_strided_operands(lifted)
    declines = [*engine.declines(), *lifted.declines()]
    if dtype is None:
        fact = "has no parameters, so the dtype of its values is not known"
        declines.append(Decline(Reason.UNKNOWN_FACT, fact, type(model).__name__, "pass example_inputs"))
    shared = shared_records(lifted) if shares else {}
    seconds = engine.verify_seconds
    return _Rewriting(captured, lifted, shares, shared, shapes, declines, before, read, told, dtype, seconds)


def _guard_channels(fused: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Where only the example tells the channels of an image, and no layer asks for them, the result checks them.

    Returns what it checks, in words.
    """
    inputs = [node for node in fused.graph.nodes if node.op == "placeholder"]
    if not inputs or not shapes:
        return []
    called = [n for n in fused.graph.nodes if n.op == "call_module"]
    checks = [n for n in called if isinstance(fused.get_submodule(str(n.target)), ArgumentGuard)]
    start = max([*inputs, *checks]).next  # an argument is what it should be before its shape is read
    told = Shapes(fused, lambda node: None)
    conditions = []
    for node in inputs:
        known, place = shapes.get(node.name, ()), f"the channels of {node.name}"
        compiled_before = any(isinstance(m, SizeGuard) and m.place == place for m in fused.children())
        if not is_image(node, known) or told.size(node, 1) is not None or compiled_before:
            continue
        conditions.append(f"{place}: {known[1]}, as in example inputs of shape {tuple(known)}")
        name = next(n for i in itertools.count() if not hasattr(fused, n := f"channels_{i}"))
        fused.add_module(name, SizeGuard("value", known[1], place, str(tuple(known))))
        with fused.graph.inserting_before(start):
            sizes = fused.graph.call_function(getattr, (node, "shape"))
            channels = fused.graph.call_function(operator.getitem, (sizes, 1))
            fused.graph.call_module(name, (channels,)).meta["guard"] = True
    if conditions:
        fused.recompile()
    return conditions


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shapes of all values."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """As fx's, with lists and dictionaries of their own: a module may write into those that it is given."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_own, args)), {name: _own(value) for name, value in kwargs.items()}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


def _own(value: Any) -> Any:
    """Lists and dictionaries that are nobody else's."""
    if isinstance(value, list):
        return [_own(item) for item in value]
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return tuple(map(_own, value)) if type(value) is tuple else value


def _propagated(
    graph: fx.Graph, root: nn.Module, model: nn.Module, example: Example | None
) -> dict[str, tuple[int, ...]]:
    """Shapes of all values for the example inputs, by node name."""
    if example is None:
        return {}
    values = example_values(parameters_of(model.forward), Example(*example.fresh()))
    given: dict[fx.Node, Any] = {
        node: values[str(node.target).lstrip("*")] for node in graph.nodes if node.op == "placeholder"
    }
    runner = _Shapes(root, graph)
    runner.shapes |= {node.name: tuple(value.shape) for node, value in given.items() if isinstance(value, Tensor)}
    with modes_kept(), torch.no_grad(), held(root), unchanged(root), running(model, example):
        runner.run(initial_env=given)
    return runner.shapes


@contextmanager
def running(model: nn.Module, example: Example) -> Iterator[None]:
    """Where the example makes the model itself fail, it is the example's fault."""
    try:
        yield
    except Exception as error:
        with trying(model) as raised:
            own = raised(Call("given input", example.args, example.kwargs))
        if own:
            raise UserError(f"{type(model).__name__} does not run on the example inputs: {own}") from error
        raise


# --- islands --------------------------------------------------------------------------------------


def _untraced(model: nn.Module, captured: Capture, path: str) -> Capture:
    """The capture of a module that is known not to trace."""
    return Capture(model, None, [i for i in captured.islands if i.path == ""], _below(captured.excluded, path))


def _below(paths: set[str], parent: str) -> set[str]:
    """The paths below a module, seen from there."""
    return {path.removeprefix(f"{parent}.") for path in paths if path.startswith(f"{parent}.")}


def _explained_islands(outcome: Outcome, lifted: LiftedGraph, plan: Plan) -> dict[str, Outcome]:
    """What would become of the modules that do not trace, by path."""
    called = {str(node.target) for node in lifted.graph.nodes if node.op == "call_module"}
    found: dict[str, Outcome] = {}
    for path in [island.path for island in outcome.capture.islands if island.path in called]:
        module = lifted.root.get_submodule(path)
        _, found[path] = _compile_island(module, _untraced(module, outcome.capture, path), plan, path, {})
        _take_over(outcome, found[path])
    return found


def _take_over(outcome: Outcome, inner: Outcome) -> None:
    """What was done inside an island is part of what was done."""
    outcome.merges += inner.merges
    outcome.declines += inner.declines
    outcome.verify_seconds += inner.verify_seconds
    _note(outcome, inner.capture.islands)


def _note(outcome: Outcome, islands: Iterable[Island]) -> None:
    """Add these islands to what is told, each path once."""
    known = {island.path for island in outcome.capture.islands}
    outcome.capture.islands += [island for island in islands if island.path not in known]


def _compile_island(
    model: nn.Module, captured: Capture, plan: Plan, path: str, memo: dict[int, Any]
) -> tuple[nn.Module, Outcome]:
    """A module whose own forward stays as it is; the children that it only calls are compiled in place."""
    result = copied(model, memo) if plan.build else model
    held_before = held_by(model)
    outcome = Outcome(captured, held_before.counts, held_before.counts, Held(held_before.kinds.copy()))
    types = tuple(e for e in plan.exclude if isinstance(e, type))
    replaced: dict[str, Held] = {}
    for name, passed in called_children(model):
        child = model.get_submodule(name)
        inner = replace(plan, exclude=(*types, *_below(captured.excluded, name)))
        if _does_more(child) or not any(True for _ in child.children()) or name in captured.excluded:
            continue
        compiled, part = compile_module(child, None, inner, passed, memo)
        where = f"{path}.{name}" if path else name
        outcome.merges += [below(m, where) for m in part.merges]
        outcome.declines += [replace(d, subject=f"{where}.{d.subject}") for d in part.declines]
        outcome.verify_seconds += part.verify_seconds
        _note(outcome, [replace(i, path=f"{where}.{i.path}".rstrip(".")) for i in part.capture.islands])
        if not part.merges:
            continue
        replaced[name] = part.held
        outcome.held.drop(child)
        if plan.build:
            parent, _, leaf = name.rpartition(".")
            setattr(result.get_submodule(parent), leaf, compiled)
    outcome.held.parameters = _parameters_outside(model, replaced)
    for part_held in replaced.values():
        outcome.held.add(part_held)
    outcome.after = outcome.held.counts
    return result, outcome


def _parameters_outside(model: nn.Module, paths: Iterable[str]) -> dict[Hashable, int]:
    """The parameters of a module but for those of the parts at these paths."""
    below = tuple(f"{path}." for path in paths)
    left = [part for path, part in modules_of(model) if not f"{path}.".startswith(below)]
    return {id(p): p.numel() for part in left for p in part._parameters.values() if p is not None}


def _does_more(module: nn.Module) -> bool:
    """Whether a call of a module is more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or has_own_call(module)
