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
from repfx.algebra import AffineConv, repeated
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
        scale, op = scale_of(lifted, node), lifted.op(node)
        if scale is None or not isinstance(op, Affine):
            return
        factor = _factor(lifted, op.source)
        if factor is not None:
            yield _moved(self.name, lifted, node, op.source, repeated(scale, factor * factor))


def _factor(lifted: LiftedGraph, node: fx.Node) -> int | None:
    """r, where the node is a PixelShuffle."""
    if not isinstance(lifted.op(node), Opaque) or len(lifted.given(node)) != 1:
        return None
    factor = lifted.setting(node, nn.PixelShuffle, F.pixel_shuffle, 1, "upscale_factor")
    return factor if isinstance(factor, int) else None


def _moved(rule: str, lifted: LiftedGraph, node: fx.Node, shuffle: fx.Node, scale: AffineConv) -> Proposal | Decline:
    """A scale, in the order of the shuffled channels, inside the map that makes them."""
    (value,) = lifted.given(shuffle)
    leak = _read_elsewhere(lifted, shuffle, node) or _read_elsewhere(lifted, value, shuffle)
    if leak is not None:
        return leak
    made = lifted.op(value)
    if not isinstance(made, Affine):
        fact = f"is shuffled from {lifted.place(value)}, which is no affine map that could take it up"
        return Decline(Reason.NOT_EXACT, fact, lifted.place(node))
    inner = lifted.map_of(value, 2)
    merged = inner if isinstance(inner, Decline) else applied(scale, inner)
    if isinstance(merged, Decline):
        return merged.at(lifted.place(node))
    replacements = ((value, Apply(merged, made.source)), (node, Ref(shuffle)))
    return Proposal(rule, replacements, (value, node), "moved through a PixelShuffle", (shuffle,), (node,))


def _read_elsewhere(lifted: LiftedGraph, value: fx.Node, reader: fx.Node) -> Decline | None:
    """The refusal where anything else reads a value than this."""
    for other in lifted.readers(value):
        if other is not reader:
            fact = f"is read inside the region and by {lifted.reader_name(other)}"
            return Decline(Reason.OUTSIDE_USE, fact, lifted.place(value))
    return None
