"""Whole compilations in a line: a network from a function, compiled without the gate, compared and counted.

The compiler's own gate is off (`verify=False`), so a wrong rewrite reaches the comparison here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import repfx
from repfx.decline import Decline, Reason
from repfx.reporting import OpCounts
from repfx.rewriting import Pass
from repfx.verification import count_operations
from tests import hostile

EVEN = ((8, 8), (4, 12), (16, 4), (2, 2))


class Net(nn.Module):
    """`run(self, x)` as forward; parts are modules, parameters or plain tensors (buffers)."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        """x (B, C, ...)."""
        return self.run(self, x)


def conv(inputs: int, outputs: int, kernel: Any = 3, padding: Any = None, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size unless told otherwise."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    same = tuple(k // 2 for k in sizes) if padding is None else padding
    return nn.Conv2d(inputs, outputs, kernel, padding=same, **options)  # type: ignore[arg-type]


def compiled(
    model: nn.Module,
    channels: int,
    sizes: Sequence[Sequence[int]] = hostile.SIZES,
    example: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """(original, fused): with hostile weights, equal at every size that the original accepts."""
    original = hostile.prepared(model, seed)
    inputs = None if example is None else (torch.randn(2, channels, *example, dtype=torch.float64),)
    before = hostile.snapshot(original)
    fused = repfx.reparameterize(original, inputs, verify=False, **options)
    tried = hostile.assert_same_everywhere(original, fused, channels, sizes, torch.Generator().manual_seed(seed))
    assert tried, "no size is accepted, nothing was compared"
    hostile.assert_untouched(original, before)
    return original, fused


def left(fused: nn.Module, channels: int, size: Sequence[int] = (8, 8)) -> OpCounts:
    """Operations that one forward executes."""
    return count_operations(fused, (torch.randn(2, channels, *size, dtype=torch.float64),))


def counted(counts: OpCounts) -> dict[str, int]:
    """The operations that are there at all, by kind."""
    kinds = ("convolutions", "linears", "batch_norms", "adds", "muls", "concats", "splits", "permutations",
             "border_terms", "others")  # fmt: skip
    return {kind: getattr(counts, kind) for kind in kinds if getattr(counts, kind)}


def declines(fused: nn.Module, reason: Reason | None = None) -> list[Decline]:
    """What the compilation declined."""
    return [d for d in repfx.report(fused).declines if reason is None or d.reason is reason]


def assert_declined(fused: nn.Module, reason: Reason, place: str, fact: str, rule: str = "") -> None:
    """The report holds a refusal with this reason, at this place, that says this."""
    found = declines(fused)
    hits = [d for d in found if d.reason is reason and d.subject == place and fact in d.fact]
    hits = [d for d in hits if not rule or d.rule == rule]
    listing = "\n".join(f"  {d.rule} [{d.reason.name}] {d.subject!r}: {d.fact}" for d in found)
    assert hits, f"no refusal {reason.name} at {place!r} saying {fact!r}; there are\n{listing or '  none'}"


def only(*passes: Pass) -> dict[str, Any]:
    """Options that run just these passes."""
    return {"passes": passes}
