"""An objective of one's own: what a target can run, and what it takes there.  docs/extending.md explains it.

python examples/custom_objective.py
"""

from __future__ import annotations

import timm
import torch

import repfx
import repnext  # noqa: F401  (registers the family with timm)
from repfx.rewriting import Candidate, Objective, Step

LARGEST = 7  # taps that a kernel of the target may have along one axis
OVERHEAD = 500.0  # of one more operation, for each position of its output
DEPTHWISE = {1: 1.0, 2: 2.0, 3: 2.0, 4: 4.0, 5: 4.0, 6: 7.0, 7: 7.0}  # of one channel, by the longer side of the kernel
DENSE = 0.1  # of one multiply-accumulate


class SmallKernels(Objective):
    """The least time on a target that has no kernels larger than 7x7."""

    name = "small-kernels"
    about = "the least measured time; no kernel is larger than 7x7"

    def guard(self, before: Candidate, after: Candidate) -> str:
        """No kernel is larger than the target's library has them."""
        largest = max((max(step.form.kernel, default=1) for step in after.steps), default=1)
        return f"would need a kernel of {largest} taps, and the target has {LARGEST}" if largest > LARGEST else ""

    def key(self, candidate: Candidate) -> tuple[float, ...]:
        """The time of all that is executed, then what repfx itself goes by."""
        passes = OVERHEAD * candidate.cost.light
        return passes + sum(time_of(step) for step in candidate.steps), *super().key(candidate)


def time_of(step: Step) -> float:
    """What one map takes, for one position of the candidate's output."""
    form = step.form
    if form.is_depthwise:
        own = form.out_channels * DEPTHWISE.get(max(form.kernel, default=1), float(form.macs))
    else:
        own = DENSE * form.macs
    return float(step.density) * (OVERHEAD + own)


def main() -> None:
    """Fuse a network with it, and see what it merges that the others do not."""
    x = torch.randn(1, 3, 64, 64)
    model = timm.create_model("repnext_nano", pretrained=True).eval()
    for objective in ("single-branch", SmallKernels(), "macs"):
        report = repfx.report(repfx.reparameterize(model, (x,), objective=objective))
        print(f"{report.objective}: {report.after.convolutions} convolutions")


if __name__ == "__main__":
    main()
