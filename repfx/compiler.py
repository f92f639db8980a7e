"""What users call: `reparameterize`, `explain`, `report`, `key_map`."""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from repfx.capture import Exclusion, check_mode, is_exported, unchanged, unwrapped
from repfx.emission import carry_attributes, key_map_of
from repfx.errors import UserError
from repfx.pipeline import Outcome, Plan, Progress, compile_module, on_meta, running
from repfx.reporting import Report
from repfx.rewriting import Objective, Pass, objective_of
from repfx.state import held
from repfx.tracing import Example, modes_kept
from repfx.verification import Spec, compare_with_original, count_operations


def reparameterize(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    objective: str | Objective = "single-branch",
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
        objective: what to minimise: "single-branch" (fewest convolutions), "macs" (nothing grows), a name that
            another package brings, or an `Objective`.
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
    plan = Plan(objective_of(objective), _passes(passes), tuple(exclude), verify, progress)
    example = _example(example_inputs, example_kwargs)
    given, model = model, unwrapped(model)
    fused, outcome, report = _carry_out(plan, model, example)
    if verify and not on_meta(model):
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
    objective: str | Objective = "single-branch",
    passes: Sequence[Pass] | None = None,
    exclude: Exclusion = (),
) -> Report:
    """What `reparameterize` would do, without reading a weight or building anything.

    Works on the meta device.  Arguments as for `reparameterize`.  The counts are those of what would be built: a part
    that a module's own code calls several times (a detector its head, at every level) counts once.
    """
    plan = Plan(objective_of(objective), _passes(passes), tuple(exclude), verify=False, progress=None, build=False)
    _, _, report = _carry_out(plan, unwrapped(model), _example(example_inputs, example_kwargs))
    return report


def report(fused: nn.Module) -> Report:
    """The record that `reparameterize` left on its result."""
    found = fused.__dict__.get("_repfx_report")
    if not isinstance(found, Report):
        raise UserError(f"{type(fused).__name__} was not made by repfx.reparameterize, so it has no report")
    return found


def key_map(fused: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every weight of a compiled module the names of the original weights that went into it."""
    return key_map_of(fused, report(fused))


def _carry_out(plan: Plan, model: nn.Module, example: Example | None) -> tuple[nn.Module, Outcome, Report]:
    """The compiled module, what was done, and the report of it; where the plan builds nothing, what would be done."""
    check_mode(model)
    started = time.perf_counter()
    with uncollected():
        fused, outcome = compile_module(model, example, plan)
    seconds = time.perf_counter() - started - outcome.verify_seconds
    return fused, outcome, _report(model, outcome, plan, seconds)


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


def _report(model: nn.Module, outcome: Outcome, plan: Plan, seconds: float) -> Report:
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
    with modes_kept(), unchanged(model), unchanged(fused), held(model), held(fused), running(model, example):
        before, after = count_operations(model, *example.fresh()), count_operations(fused, *example.fresh())
    seconds = report.verify_seconds + time.perf_counter() - started
    return replace(report, before=before, after=after, verify_seconds=seconds)


__all__ = ["explain", "key_map", "reparameterize", "report"]
