"""One case: a network, its weights, an objective; and everything that must hold of the compiled network.

Shared by the property tests and the fuzzer.  A `Finding` names what failed; `None` is a pass.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import repfx
from repfx.verification import count_operations
from tests import builders, hostile, specs

OBJECTIVES = ("single-branch", "macs")


@dataclass(frozen=True)
class Case:
    """A network to compile; `example` is the size of the example input, or None for none."""

    network: specs.Network
    weights: int = 0
    objective: str = "single-branch"
    example: tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = hostile.SIZES
    verify: bool = False


@dataclass(frozen=True)
class Finding:
    """What went wrong: a kind that survives shrinking, and the message."""

    kind: str
    message: str


class VacuousError(Exception):
    """The network accepts none of the sizes, or its results are not finite: nothing to compare."""


def of_block(node: specs.Node, channels: int, weights: int, objective: str) -> Case:
    """The case of a single block."""
    return Case(specs.Network(channels, (node,)), weights, objective)


def inputs(case: Case, original: nn.Module) -> list[Tensor]:
    """A batch of probes for each size that the original accepts."""
    generator = torch.Generator().manual_seed(case.weights + 1)
    batches = [hostile.probes((case.network.channels, *size), generator) for size in case.sizes]
    good = [x for x in batches if hostile.accepts(original, x)]
    if not good:
        raise VacuousError("no size is accepted")
    if not all(bool(torch.isfinite(t).all()) for x in good for t in hostile.outputs(original, x)):
        raise VacuousError("results that are not finite")
    return good


def examine(case: Case) -> Finding | None:
    """Compile the case and look for anything that must not be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = hostile.prepared(builders.network(case.network), case.weights)
        batches = inputs(case, original)
        before = hostile.snapshot(original)
        example = None
        if case.example is not None:
            example = (torch.zeros(2, case.network.channels, *case.example, dtype=torch.float64),)
            if not hostile.accepts(original, example[0]):
                example = (batches[0],)
        try:
            fused = repfx.reparameterize(original, example, objective=case.objective, verify=case.verify)
        except Exception as error:
            words = re.sub(r"\d+", "N", str(error))[:40]
            return Finding(f"compile {type(error).__name__} {words}", traceback.format_exc(limit=-6))
        try:
            hostile.assert_untouched(original, before)
            for x in batches:
                hostile.assert_same(original, fused, x)
        except AssertionError as error:
            return Finding(_kind(str(error)), str(error))
        return _costs(case, original, fused)


def _kind(message: str) -> str:
    for word in ("raises", "shape", "changed", "relative error"):
        if word in message:
            return word
    return "differs"


POOLED = ("pools", "bilinear", "nearest", "einsum")  # counted as convolutions only once they are compiled


def _all(spec: specs.Spec) -> Iterator[specs.Spec]:
    yield spec
    for child in spec.children():
        yield from _all(child)


def _costs(case: Case, original: nn.Module, fused: nn.Module) -> Finding | None:
    """No objective may leave more of what it minimises.

    A pool or a strided slice that becomes taps of a convolution is counted only afterwards, so networks
    that hold one are left out.  Counted at one large size and with a tenth to spare: a merged convolution
    computes the rows that only the outer one's padding added, and at the border that may cost a little.
    """
    x = torch.zeros(1, case.network.channels, 32, 32, dtype=torch.float64)
    pooled = any(isinstance(node, specs.Trick) and node.spelling in POOLED for node in _all(case.network))
    # a transposed convolution of stride one becomes an ordinary one, whose count holds the zeros of the frame
    framed = any(isinstance(node, specs.ConvTranspose) and node.stride == 1 for node in _all(case.network))
    if pooled or framed or case.network.holds(specs.AvgPool, specs.Resize) or not hostile.accepts(original, x):
        return None
    old, new = count_operations(original, (x,)), count_operations(fused, (x,))
    rows = [("batch norms", old.batch_norms, new.batch_norms)]
    if case.objective == "single-branch":
        rows += [("convolutions", old.convolutions, new.convolutions)]
    if case.objective == "macs":
        rows += [("macs", (old.macs or 0) * 11 // 10, new.macs or 0)]
    worse = [f"{name} {a} -> {b}" for name, a, b in rows if b > a]
    return Finding("costs more", ", ".join(worse)) if worse else None
