"""Operations executed in one forward: as built, after the model's own fuse, and after repfx.

    python benchmarks/op_counts.py                       # the table of the README, as Markdown
    python benchmarks/op_counts.py repnext_m0 timm:repvit_m0_9 --size 192

Every number is counted by `repfx.rewriting.cost.count_operations` while the network runs once, so functional
calls count like modules.  "Own fuse" is `timm.utils.model.reparameterize_model` for timm's models; for
RepNeXt it is the `fuse()` of the authors' code, which is not a dependency: its counts were measured once
with the same counter at 224x224 (suous/RepNeXt at f515377) and are written down here.  The whole-network
error is measured in float64, weights as stored in float32, behind random batch-norm statistics.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.utils.model import reparameterize_model
from torch import nn

import repfx
from repfx.io import build_model
from repfx.reporting import OpCounts
from repfx.verification import count_operations

MODELS = (
    "repnext_m0",
    "repnext_m1",
    "repnext_m2",
    "repnext_m3",
    "repnext_m4",
    "repnext_m5",
    "timm:repvgg_a0",
    "timm:mobileone_s0",
    "timm:repvit_m0_9",
)
UPSTREAM = {  # the authors' own fuse: convolutions; norms, cats and adds (as many of each); splits; parameters; macs
    "repnext_m0": (98, 17, 14, 2_333_200, 387_537_600),
    "repnext_m1": (152, 26, 23, 4_829_560, 821_871_744),
    "repnext_m2": (152, 26, 23, 6_473_200, 1_111_285_056),
    "repnext_m3": (140, 24, 21, 7_818_920, 1_339_483_648),
    "repnext_m4": (248, 42, 39, 13_342_120, 2_289_415_680),
    "repnext_m5": (320, 54, 51, 21_737_560, 4_543_920_000),
}
HEADER = (
    "| model | as built | own fuse | repfx, single-branch | repfx, macs | relative error |",
    "| --- | --- | --- | --- | --- | ---: |",
)


@dataclass(frozen=True)
class Row:
    """One model: the four counts and the larger of the two errors."""

    name: str
    built: OpCounts
    own: OpCounts
    single: OpCounts
    macs: OpCounts
    error: float
    seconds: float  # to compile with the default objective, verification left out

    def __str__(self) -> str:
        cells = (cell(counts) for counts in (self.built, self.own, self.single, self.macs))
        return f"| {self.name.removeprefix('timm:')} | {' | '.join(cells)} | {self.error:.0e} |"


def cell(counts: OpCounts) -> str:
    """conv / norm / cat / add (+ border terms), G multiply-accumulates, M parameters."""
    border = f" + {counts.border_terms} border" if counts.border_terms else ""
    cost = f"{(counts.macs or 0) / 1e9:.3f} G, {counts.parameters / 1e6:.3f} M"
    plain = f"{counts.convolutions} / {counts.batch_norms} / {counts.concats} / {counts.adds}"
    return f"{plain}{border} · {cost}"


def measure(name: str, size: int) -> Row:
    """Build, count, fuse, count again, compare."""
    torch.manual_seed(0)
    model = repfx.randomize_statistics(build_model(name).module)
    image = torch.randn(1, 3, size, size)
    built = count_operations(model, (image,))
    own = _own_fuse(name, model, image)
    started = time.perf_counter()
    single = repfx.reparameterize(model, verify=False)
    seconds = time.perf_counter() - started
    macs = repfx.reparameterize(model, objective="macs", verify=False)
    error = max(repfx.verify(model, fused, (image,)).relative_error for fused in (single, macs))
    after = {"single": count_operations(single, (image,)), "macs": count_operations(macs, (image,))}
    return Row(name, built, own, **after, error=error, seconds=seconds)


def _own_fuse(name: str, model: nn.Module, image: torch.Tensor) -> OpCounts:
    if name in UPSTREAM and image.shape[-1] == 224:
        convolutions, joined, splits, parameters, macs = UPSTREAM[name]
        return OpCounts(convolutions, 1, joined, joined, 0, joined, splits, parameters=parameters, macs=macs)
    return count_operations(reparameterize_model(model), (image,))


def rows(names: tuple[str, ...], size: int) -> Iterator[Row]:
    """One row after the other, progress on stderr."""
    for name in names:
        row = measure(name, size)
        print(f"{name}: compiled in {row.seconds:.1f} s", file=sys.stderr)
        yield row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Operations of one forward, before and after.")
    parser.add_argument("models", nargs="*", default=MODELS, help="model names as the command line takes them")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    arguments = parser.parse_args()
    print("\n".join(HEADER))
    for row in rows(tuple(arguments.models), arguments.size):
        print(row, flush=True)


if __name__ == "__main__":
    main()
