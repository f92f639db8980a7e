"""Does a replacement agree with what it replaces, on inputs chosen to break it?

Every region is run as the original modules and as the emitted ones, in float64, on the inputs of
`repfx.rewriting.probes`.  The bound is derived,

    relative error <= SLACK * eps(float64) * sqrt(fan in) * amplification,

and a disagreement is our bug: the rewrite is not applied and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from repfx.decline import Decline, Reason
from repfx.graph import LiftedGraph, is_size
from repfx.rewriting.evaluation import Evaluation, leaves_of, read_by
from repfx.rewriting.probes import Probe, is_last_resort, probes_of
from repfx.rewriting.proposal import Proposal

FLOAT64_BOUND = 1e-10  # relative, after folds whose condition is at most 1e5


def verify_proposal(lifted: LiftedGraph, proposal: Proposal, *, once: bool = False) -> float | Decline | None:
    """Worst relative float64 error over the probes; None where no probe could be made.

    `once`: at one size.  It is enough where the same rewrite of the same structure has passed at all of them, and
    only the weights are others.
    """
    region = sorted({*proposal.interior, *proposal.across})
    inputs = _inputs(lifted, proposal, region)
    leak = _leak(proposal, set(region), set(inputs))
    if leak is not None:
        return _bug(f"changes {leak.name}, which the region reads as if it were given")
    evaluation = Evaluation(lifted)
    worst: float | None = None
    for index, probe in enumerate(probes_of(lifted, proposal, region, inputs, once=once)):
        if worst is not None and (once or is_last_resort(index)):
            break
        error = _error(evaluation, proposal, region, probe)
        if isinstance(error, Decline):
            return error
        if error is not None:
            worst = error if worst is None else max(worst, error)
    return worst


def _inputs(lifted: LiftedGraph, proposal: Proposal, region: Sequence[fx.Node]) -> list[fx.Node]:
    """What the region and its replacement read from outside, in order of execution."""
    read = {value for node in region for value in read_by(lifted, node)}
    for _, expr in proposal.replacements:
        read.update(leaves_of(lifted, expr))
    return sorted(read.difference(region))


def _error(
    evaluation: Evaluation, proposal: Proposal, region: Sequence[fx.Node], probe: Probe
) -> float | Decline | None:
    """The worst relative error for one probe; None where the original accepts no such input, or gives nothing."""
    replacements = dict(proposal.replacements)
    outputs = list(proposal.outputs or replacements)
    try:
        expected = evaluation.original(region, probe)
    except (RuntimeError, ValueError, IndexError):
        return None  # this size is one the original does not accept either
    if not all(expected[node].numel() for node in outputs):
        return None  # nor is a size of which a crop leaves nothing
    actual = evaluation.replaced(region, probe, replacements)
    worst: float | None = None
    for node in outputs:
        error = _difference(expected[node], actual[node])
        if isinstance(error, str):
            return _bug(error)
        if error is None:
            continue
        if not error <= FLOAT64_BOUND:  # no number is no agreement either
            size = tuple(next(iter(probe.values())).shape)
            return _bug(f"differs by {error:.1e} (relative) at input size {size}")
        worst = error if worst is None else max(worst, error)
    return worst


def _difference(expected: Tensor, actual: Tensor) -> float | str | None:
    """The largest relative difference, or what else is different; None where the original itself gives no numbers."""
    if expected.shape != actual.shape:
        return f"gives shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if not bool(torch.isfinite(expected).all()):
        return None
    return float((expected - actual).abs().max() / expected.abs().max().clamp_min(1e-300))


def _leak(proposal: Proposal, inside: set[fx.Node], inputs: set[fx.Node]) -> fx.Node | None:
    """An input of the region that depends on a value the proposal changes.

    Found by the plain edges of the graph, not by the lifting that made the proposal.
    """
    if not proposal.across:
        return None
    work = [node for node in inside if node not in proposal.outputs and not is_size(node)]
    seen, last = {*work, *inside}, max(inside)
    while work:
        for user in work.pop().users:
            if user in inputs:
                return user
            if user not in seen and user < last:
                seen.add(user)
                work.append(user)
    return None


def _bug(fact: str) -> Decline:
    return Decline(Reason.VERIFICATION, f"the replacement {fact}", remedy="this is a bug in repfx; nothing was changed")
