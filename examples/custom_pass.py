"""A pass of one's own, used instead of the default ones.  docs/writing-a-pass.md explains it line by line.

python examples/custom_pass.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import timm
import torch
from torch import fx

import repfx
from repfx.algebra import Kind, form_of
from repfx.decline import Decline, Reason
from repfx.graph import Affine, LiftedGraph, Op, between
from repfx.rewriting import Proposal, as_one_map


@dataclass(frozen=True)
class FoldNorms:
    """fold_norms: a batch norm goes into the convolution before it, and nothing else happens.

        Given:  y = bn(conv(x))      Result: y = conv(x)

    Exact always.  Declined where the convolution's output is also read elsewhere.
    """

    name: str = "fold_norms"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a batch norm behind a convolution."""
        norm, scale = lifted.op(node), lifted.own_map(node)
        if not isinstance(norm, Affine) or scale is None or not scale.axes or form_of(scale).kind is not Kind.SCALE:
            return
        conv = lifted.op(norm.source)
        if not isinstance(conv, Affine):
            return
        if len(lifted.readers(norm.source)) > 1:
            yield Decline(Reason.OUTSIDE_USE, "scales a value that is read elsewhere too", lifted.place(node))
            return
        region = between(lifted, conv.source, node)
        if isinstance(region, Decline):
            yield region
            return
        yield as_one_map(self.name, region)


def main() -> None:
    """The multi-branch network keeps its branches and loses its batch norms."""
    model = repfx.randomize_statistics(timm.create_model("resnet10t")).eval()
    x = torch.randn(1, 3, 64, 64)
    fused = repfx.reparameterize(model, (x,), passes=(FoldNorms(),))
    counts = repfx.report(fused)
    print(f"{counts.before.batch_norms} batch norms -> {counts.after.batch_norms}")
    print(f"{counts.before.convolutions} convolutions -> {counts.after.convolutions}")
    print(counts.equivalence)


if __name__ == "__main__":
    main()
