"""Is the compiled model the original, as a whole?

Every rewrite is verified on its own; this is the net below all of that, the trace of the user's Python included: the
compiled model is run beside the original's own forward, at two sizes, twice each, with and without gradients, in the
model's own dtype and in float64.  A difference is our bug, and no model is returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from repfx.errors import MismatchError, UserError
from repfx.reporting import Equivalence
from repfx.tracing import Example
from repfx.verification.calls import Call, NotRunError, RefusedError, probes, trying
from repfx.verification.equivalence import NotFiniteError, compare
from repfx.verification.inputs import Spec, derived, other_sizes

_REMEDY = "pass example_inputs to have it compared"


def compare_with_original(
    model: nn.Module, fused: nn.Module, example: Example | None, told: Mapping[str, Spec]
) -> tuple[Equivalence | None, str]:
    """How far the compiled model is from the original; or why that is not known, in words.

    `told` is what the graph tells of the arguments, for where there is no example.

    Raises:
        MismatchError: they differ.
        UserError: the original does not run on the example, or returns no finite number.
    """
    calls = _calls(model, example, told)
    if isinstance(calls, str):
        return None, calls
    given = example is not None
    try:
        return _judged(model, fused, calls, given)
    except NotFiniteError:
        if given or _holds_no_number(model):
            raise
    try:  # it takes logarithms or roots of its input, perhaps
        positive = [replace(call.changed(call.name, lambda x: x.abs() + 0.1), ours=False) for call in calls]
        return _judged(model, fused, positive, given)
    except NotFiniteError:
        return None, f"it returns no finite number for the inputs that were derived from its layers; {_REMEDY}"


def _judged(model: nn.Module, fused: nn.Module, calls: list[Call], given: bool) -> tuple[Equivalence | None, str]:
    own, calls = _in_own_dtype(model, fused, calls)
    first, others = calls[0], calls[1:]
    hostile = [probe for probe in probes(first) if given or probe.name != "random input"]
    in_double = [*hostile, *(replace(call, gradients=True) for call in others)]
    try:
        found = _compared(model, fused, in_double, torch.float64)
    except (NotRunError, RefusedError) as error:
        found = replace(own, note=f"judged in {own.dtype}, as in float64 {error}")
    if not own.tensors:
        return None, "its outputs hold no tensor"
    for equivalence in (own, found):
        if not equivalence.equal:
            raise _mismatch(model, f"differs from the original ({equivalence})")
    return found, ""


def _calls(model: nn.Module, example: Example | None, told: Mapping[str, Spec]) -> list[Call] | str:
    """The example's call, or the smallest derived one that runs, and one of another size; else why there is none."""
    with trying(model) as raised:
        if example is not None:
            first = Call("given input", example.args, example.kwargs)
            error = raised(first)
            if error:
                raise UserError(f"{type(model).__name__} does not run on the example inputs: {error}")
        else:
            found = _first_that_runs(derived(model, told), raised)
            if isinstance(found, int):
                none = "nothing tells what inputs it takes"
                some = f"it runs on none of the {found} inputs that were derived from its layers"
                return f"{some if found else none}; {_REMEDY}"
            first = found
        others = (Call("other size", args, kwargs) for args, kwargs in other_sizes(first.args, first.kwargs))
        second = next((call for call in others if not raised(call)), None)
    return [first] if second is None else [first, second]


def _first_that_runs(inputs: Iterator[tuple[Any, ...]], raised: Callable[[Call], str]) -> Call | int:
    """The smallest input that a model takes, or how many were tried.  A slow one is not followed by a larger one."""
    tried, started = 0, time.monotonic()
    for args in inputs:
        before = time.monotonic()
        call, tried = Call("derived input", args, {}), tried + 1
        if not raised(call):
            return call
        now = time.monotonic()
        if now - before > _ONE_SECONDS or now - started > _ALL_SECONDS:
            break
    return tried


_ONE_SECONDS, _ALL_SECONDS = 0.3, 5.0


def _holds_no_number(model: nn.Module) -> bool:
    """Whether a weight or statistic is NaN or infinite, or a variance negative: then no input helps."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return True
        if name.endswith("running_var") and bool((value < 0).any()):
            return True
    return False


def _in_own_dtype(model: nn.Module, fused: nn.Module, calls: list[Call]) -> tuple[Equivalence, list[Call]]:
    """Every call twice, without and with gradients; and the calls that both models take."""
    for gradients in (True, False):
        try:
            twice = [replace(call, gradients=again and gradients) for call in calls for again in (False, True)]
            return _compared(model, fused, twice, None), calls
        except NotRunError:
            continue  # a forward may run without gradients only
        except RefusedError as error:
            if len(calls) == 1:
                raise _mismatch(model, f"refuses an input of the original's: {error}") from error
            return _in_own_dtype(model, fused, calls[:1])  # an example decided what another size decides otherwise
    raise UserError(f"{type(model).__name__} does not run twice on the same inputs")


def _compared(model: nn.Module, fused: nn.Module, calls: Sequence[Call], dtype: torch.dtype | None) -> Equivalence:
    try:
        return compare(model, fused, calls, dtype)
    except NotFiniteError:
        raise
    except UserError as error:
        raise _mismatch(model, f"does something else than the original: {error}") from error


def _mismatch(model: nn.Module, fact: str) -> MismatchError:
    return MismatchError(
        f"the compiled {type(model).__name__} {fact}; that is a bug in repfx, and nothing is returned; "
        "please report it, and exclude the module whose code is not understood"
    )
