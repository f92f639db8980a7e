"""fold_through_shuffle: a scale and shift behind a PixelShuffle goes into the convolution before it.

    Given:  z = bn(pixel_shuffle(conv(x), r))      Result: z = pixel_shuffle(conv'(x), r)

Exact always: output channel c of the shuffle is made of the r r input channels c r r ... c r r + r r - 1,
so each value per channel is repeated r r times.  Declined where somebody else reads the convolution or the
shuffled image, and where no affine map makes what is shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx, nn

from passes.fold_scales import scale_of
from repfx.algebra import repeated
from repfx.decline import Decline, Reason
from repfx.graph import Affine, LiftedGraph, Op, Opaque, applied
from repfx.rewriting import Apply, Proposal, Ref


@dataclass(frozen=True)
class FoldThroughShuffle:
    """Move a scale from behind a PixelShuffle into what makes the shuffled value."""

    name: str = "fold_through_shuffle"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a scale behind a shuffle."""
        return _behind_a_shuffle(self.name, lifted, node)


def _behind_a_shuffle(rule: str, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
    map_ = scale_of(lifted, node)
    op = lifted.op(node)
    if map_ is None or not isinstance(op, Affine):
        return
    shuffle, factor = op.source, _factor(lifted, op.source)
    if factor is None:
        return
    (value,) = shuffle.all_input_nodes
    for read, reader in ((shuffle, node), (value, shuffle)):
        other = next((r for r in lifted.readers(read) if r is not reader), None)
        if other is not None:
            by = "the output" if other.op == "output" else lifted.place(other)
            yield Decline(Reason.OUTSIDE_USE, f"is read inside the region and by {by}", lifted.place(read))
            return
    made = lifted.op(value)
    if not isinstance(made, Affine):
        fact = f"is shuffled from {lifted.place(value)}, which is no affine map that could take it up"
        yield Decline(Reason.NOT_EXACT, fact, lifted.place(node))
        return
    inner = lifted.map_of(value, 2)
    merged = inner if isinstance(inner, Decline) else applied(repeated(map_, factor * factor), inner)
    if isinstance(merged, Decline):
        yield merged.at(lifted.place(node))
        return
    replacements = ((value, Apply(merged, made.source)), (node, Ref(shuffle)))
    yield Proposal(rule, replacements, (value, node), "moved through a PixelShuffle", (shuffle,), (node,))


def _factor(lifted: LiftedGraph, node: fx.Node) -> int | None:
    """r, where the node is a PixelShuffle."""
    factor: object = None
    if not isinstance(lifted.op(node), Opaque):
        return None
    if node.op == "call_module":
        module = lifted.context.module(node)
        factor = module.upscale_factor if type(module) is nn.PixelShuffle else None
    elif node.op == "call_function" and node.target is F.pixel_shuffle:
        factor = node.args[1] if len(node.args) > 1 else node.kwargs.get("upscale_factor")
    return factor if isinstance(factor, int) and len(node.all_input_nodes) == 1 else None
