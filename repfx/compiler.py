"""trace -> lift -> passes -> emit -> verify -> report: `reparameterize` and `explain`."""

from __future__ import annotations

import gc
import importlib
import itertools
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from repfx.arguments import Example, Passed, example_values, parameters_of
from repfx.aten import is_exported
from repfx.assembly import default_dtype, emit_all, graph_module, planned
from repfx.attributes import carry_attributes
from repfx.capture import Capture, Exclusion, capture, check_mode, unchanged, unwrapped
from repfx.cost import count_operations
from repfx.counting import count_graph, count_plan
from repfx.decline import Decline, Reason, UserError
from repfx.equivalence import Call, trying
from repfx.graph import LiftedGraph, is_image
from repfx.inputs import Spec, told_by_graph
from repfx.islands import called_children
from repfx.keys import below, key_map_of, weights_read, with_weights
from repfx.layout import copy_strided_operands
from repfx.modules import ArgumentGuard, SizeGuard
from repfx.objective import OBJECTIVES, Objective
from repfx.protocol import Pass
from repfx.report import Merge, OpCounts, Report
from repfx.rewriting import Engine
from repfx.shapes import Shapes
from repfx.state import copied, held
from repfx.tracing import has_own_call
from repfx.whole import compare_with_original

Progress = Callable[[str, float], None]


def reparameterize(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    objective: str = "single-branch",
    passes: Sequence[Pass] | None = None,
    exclude: Exclusion = (),
    verify: bool = True,
    progress: Progress | None = None,
) -> nn.Module:
    """Compile `model` into an exactly equal network with fewer, cheaper operations.

    Args:
        model: any module in eval mode.  It is never changed.
        example_inputs: positional arguments of one forward.  Optional; what needs shapes is declined
            without them, with a reason that says so.  They never narrow the sizes the result accepts, but
            where the model's own code takes another way for another size: then the report names the line,
            and another size is an `InputError`.
        example_kwargs: keyword arguments of that forward.  Tensors are inputs of the result; anything else
            (None, flags, numbers) is compiled in, as given or as its default, and checked at run time.
        objective: "single-branch" (fewest convolutions) or "macs" (nothing grows).
        passes: the passes to run, in order; default `passes.DEFAULT_PASSES`.
        exclude: module paths, globs or types that must stay as they are.
        verify: check every rewrite on hostile inputs in float64, and with example_inputs the whole model.
        progress: called with a text and a fraction in 0..1.

    Returns:
        A new module with the same forward signature, dtype and device; an `fx.GraphModule` if the
        whole model traces.  `repfx.report(result)` tells what was done.

    Raises:
        TrainingModeError: the model is in training mode.
        UserError: an unknown objective, or a folded weight that overflows a half-precision dtype.
    """
    plan = _Plan(_objective(objective), _passes(passes), tuple(exclude), verify, progress)
    given, model = model, unwrapped(model)
    check_mode(model)
    started = time.perf_counter()
    with uncollected():
        fused, outcome = _compile(model, _example(example_inputs, example_kwargs), plan)
    seconds = time.perf_counter() - started - outcome.verify_seconds
    report = _report(model, fused, outcome, plan, seconds)
    example = _example(example_inputs, example_kwargs)
    if verify and not _on_meta(model):
        original = given if is_exported(given) else model  # what was rewritten before it was traced is compared too
        report = _compared(report, original, fused, example, outcome.told)
    if example is not None:
        report = _measured(report, model, fused, example)
    carry_attributes(model, fused, _repfx_report=report)
    return fused


def explain(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    objective: str = "single-branch",
    passes: Sequence[Pass] | None = None,
    exclude: Exclusion = (),
) -> Report:
    """What `reparameterize` would do, without reading a weight or building anything.

    Works on the meta device.  Arguments as for `reparameterize`.
    """
    plan = _Plan(_objective(objective), _passes(passes), tuple(exclude), verify=False, progress=None, build=False)
    model = unwrapped(model)
    check_mode(model)
    started = time.perf_counter()
    with uncollected():
        fused, outcome = _compile(model, _example(example_inputs, example_kwargs), plan)
    return _report(model, fused, outcome, plan, time.perf_counter() - started)


def report(fused: nn.Module) -> Report:
    """The record that `reparameterize` left on its result."""
    found = fused.__dict__.get("_repfx_report")
    if not isinstance(found, Report):
        raise UserError(f"{type(fused).__name__} was not made by repfx.reparameterize, so it has no report")
    return found


def key_map(fused: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every weight of a compiled module the names of the original weights that went into it."""
    return key_map_of(fused, report(fused))


@contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: nothing big is in cycles, and each collection walks all of torch."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class _Plan:
    objective: Objective
    passes: tuple[Pass, ...]
    exclude: tuple[str | type, ...]
    verify: bool
    progress: Progress | None
    build: bool = True


@dataclass
class _Outcome:
    """What one compilation did, before it becomes a report."""

    merges: list[Merge]
    declines: list[Decline]
    capture: Capture
    before: OpCounts
    after: OpCounts
    verify_seconds: float = 0.0
    told: Mapping[str, Spec] = field(default_factory=dict)  # what the graph tells of the arguments


def _objective(name: str) -> Objective:
    if name not in OBJECTIVES:
        raise UserError(f"objective {name!r} is not known; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _passes(passes: Sequence[Pass] | None) -> tuple[Pass, ...]:
    if passes is not None:
        return tuple(passes)
    return tuple(importlib.import_module("passes").DEFAULT_PASSES)


def _example(example_inputs: object, example_kwargs: Mapping[str, Any] | None) -> Example | None:
    if example_inputs is None and example_kwargs is None:
        return None
    if example_inputs is None:
        return Example((), example_kwargs or {})
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    return Example(args, example_kwargs or {})


def _compile(
    model: nn.Module, example: Example | None, plan: _Plan, passed: Passed | None = None
) -> tuple[nn.Module, _Outcome]:
    captured = capture(model, plan.exclude, example, passed)
    if captured.graph is None:
        return _compile_island(model, captured, plan, "")
    traced = captured.root
    before = count_graph(captured.graph, traced)
    told = told_by_graph(captured.graph, traced)
    read = weights_read(captured.graph, traced)
    shapes = _propagated(captured, model, example)
    lifted = LiftedGraph(captured.graph, traced, _whole(captured), shapes)
    engine = Engine(
        lifted,
        plan.objective,
        lambda node: node.op == "call_module" and str(node.target) in captured.excluded,
        verify=plan.verify and not _on_meta(model),
        progress=plan.progress,
    )
    dtype = default_dtype(traced, example)
    engine.run(plan.passes if dtype is not None else ())
    copy_strided_operands(lifted)
    declines = [*engine.declines(), *lifted.declines()]
    if dtype is None:
        fact = "has no parameters, so the dtype of its values is not known"
        declines.append(Decline(Reason.UNKNOWN_FACT, fact, type(model).__name__, "pass example_inputs"))
    outcome = _Outcome([], declines, captured, before, before, engine.verify_seconds, told)
    if not plan.build:
        outcome.merges += with_weights(planned(lifted), read)
        outcome.after = count_plan(lifted)
        lifted.dominators = None
        return model, outcome
    merges, emitted = emit_all(lifted, traced, dtype)
    lifted.dominators = None  # they refer back to the graph: without them everything is freed as soon as it can be
    outcome.merges += with_weights(merges, read)

    def compiled(island: str, module: nn.Module) -> nn.Module:
        own, inner = _compile_island(module, capture_nothing(module, captured, island), plan, island)
        outcome.merges += inner.merges
        outcome.declines += inner.declines
        outcome.verify_seconds += inner.verify_seconds
        return own

    islands = {island.path: partial(compiled, island.path) for island in captured.islands}
    fused = graph_module(lifted, traced, emitted, islands)
    if lifted.is_rewritten:
        captured.conditions += _guard_channels(fused, shapes)
    outcome.after = count_graph(fused.graph, fused)
    return fused, outcome


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


def _whole(captured: Capture) -> set[str]:
    return captured.excluded | {island.path for island in captured.islands}


def _on_meta(model: nn.Module) -> bool:
    return any(p.device.type == "meta" for p in model.parameters())


def _propagated(captured: Capture, model: nn.Module, example: Example | None) -> dict[str, tuple[int, ...]]:
    """Shapes of all values for the example inputs, by node name."""
    if example is None or captured.graph is None:
        return {}
    values = example_values(parameters_of(model.forward), example)
    module = fx.GraphModule(captured.root, captured.graph)
    given = {n: values[str(n.target).lstrip("*")] for n in module.graph.nodes if n.op == "placeholder"}
    shapes = {node.name: tuple(value.shape) for node, value in given.items() if isinstance(value, Tensor)}
    with torch.no_grad(), held(captured.root), unchanged(captured.root), _running(model, example):
        ShapeProp(module).run(initial_env=given)
    for node in module.graph.nodes:
        meta = node.meta.pop("tensor_meta", None)
        if hasattr(meta, "shape"):
            shapes[node.name] = tuple(meta.shape)
    for node in captured.graph.nodes:
        node.meta.pop("tensor_meta", None)
    captured.graph.owning_module = None  # it is ours to rewrite again
    return shapes


@contextmanager
def _running(model: nn.Module, example: Example) -> Iterator[None]:
    """Where the example makes the model itself fail, it is the example's fault."""
    try:
        yield
    except Exception as error:
        with trying(model) as raised:
            own = raised(Call("given input", example.args, example.kwargs))
        if own:
            raise UserError(f"{type(model).__name__} does not run on the example inputs: {own}") from error
        raise


def capture_nothing(model: nn.Module, captured: Capture, path: str) -> Capture:
    """The capture of a module that is known not to trace."""
    return Capture(model, None, [i for i in captured.islands if i.path == ""], _below(captured.excluded, path))


def _below(paths: set[str], parent: str) -> set[str]:
    """The paths below a module, seen from there."""
    return {path.removeprefix(f"{parent}.") for path in paths if path.startswith(f"{parent}.")}


# --- islands --------------------------------------------------------------------------------------


def _compile_island(model: nn.Module, captured: Capture, plan: _Plan, path: str) -> tuple[nn.Module, _Outcome]:
    """A module whose own forward stays as it is; the children that it only calls are compiled in place."""
    result = model if not plan.build else copied(model)
    outcome = _Outcome([], [], captured, OpCounts(), OpCounts())
    types = tuple(e for e in plan.exclude if isinstance(e, type))
    for name, passed in called_children(model):
        child = model.get_submodule(name)
        inner = replace(plan, exclude=(*types, *_below(captured.excluded, name)))
        if _does_more(child) or not any(True for _ in child.children()) or name in captured.excluded:
            continue
        compiled, part = _compile(child, None, inner, passed)
        where = f"{path}.{name}" if path else name
        outcome.merges += [below(m, where) for m in part.merges]
        outcome.declines += [replace(d, subject=f"{where}.{d.subject}") for d in part.declines]
        outcome.verify_seconds += part.verify_seconds
        outcome.capture.islands.extend(replace(i, path=f"{where}.{i.path}") for i in part.capture.islands)
        if plan.build and part.merges:
            parent, _, leaf = name.rpartition(".")
            setattr(result.get_submodule(parent), leaf, compiled)
    return result, outcome


def _does_more(module: nn.Module) -> bool:
    """Whether a call of a module is more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or has_own_call(module)


def _report(model: nn.Module, fused: nn.Module, outcome: _Outcome, plan: _Plan, seconds: float) -> Report:
    name = getattr(model, "default_cfg", {}).get("architecture") if hasattr(model, "default_cfg") else None
    return Report(
        model=name or type(model).__name__,
        objective=plan.objective.name,
        merges=tuple(outcome.merges),
        declines=tuple(outcome.declines),
        islands=tuple(outcome.capture.islands),
        conditions=tuple(outcome.capture.conditions),
        before=outcome.before,
        after=outcome.after,
        compile_seconds=seconds,
        verify_seconds=outcome.verify_seconds,
    )


def _compared(
    report: Report, model: nn.Module, fused: nn.Module, example: Example | None, told: Mapping[str, Spec]
) -> Report:
    """The report with the compiled model compared with the original.  Raises `MismatchError`."""
    started = time.perf_counter()
    equivalence, why_not = compare_with_original(model, fused, example, told)
    seconds = report.verify_seconds + time.perf_counter() - started
    return replace(report, equivalence=equivalence, not_compared=why_not, verify_seconds=seconds)


def _measured(report: Report, model: nn.Module, fused: nn.Module, example: Example) -> Report:
    """The report with operations counted in a real forward."""
    started = time.perf_counter()
    args, kwargs = example.args, example.kwargs
    with unchanged(model), unchanged(fused), held(model), held(fused), _running(model, example):
        before, after = count_operations(model, args, kwargs), count_operations(fused, args, kwargs)
    seconds = report.verify_seconds + time.perf_counter() - started
    return replace(report, before=before, after=after, verify_seconds=seconds)


__all__ = ["OBJECTIVES", "Reason", "explain", "key_map", "reparameterize", "report"]
