"""collapse_chains: two affine maps in a row are one.

    Given:  y = conv2(conv1(x))      Result: y = conv(x)
            y = bn(conv(x))                  y = conv(x)
            y = conv(bn(x))                  y = conv(x)      # a border term where conv is padded
            y = conv(pad(bn(x)))             y = conv(x)      # also where conv(pad(x)) alone saves nothing

Exact when the second map pads nothing, or the first one's kernel sees nothing beyond its own output
(EXACTNESS, "Serial"); its constants then become a bias or a border term.  Declined where it is not, where
the value in between is also read elsewhere, and where the objective says it costs more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from repfx.decline import Decline
from repfx.graph import Affine, LiftedGraph, Op, Region, Sum, between
from repfx.rewriting import Proposal, as_one_map


@dataclass(frozen=True)
class CollapseChains:
    """Merge a map with the map it reads, if nothing else reads that."""

    name: str = "collapse_chains"
    about: tuple[type[Op], ...] = (Affine, Sum)
    last_first: bool = False  # long chains collapse in one sweep

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """One proposal for a map and the map it reads; where a pad stands between two maps, for all three."""
        first = _single(lifted, node)
        inner = None if first is None else _single(lifted, first)
        if first is None or inner is None:
            return
        region = between(lifted, inner, node)
        if isinstance(region, Decline):
            yield region
            return
        yield as_one_map(self.name, region)
        if lifted.alive(node) and _moves_pixels(lifted, first):
            yield from _with_a_third(self.name, lifted, node, inner)


def _with_a_third(rule: str, lifted: LiftedGraph, node: fx.Node, inner: fx.Node) -> Iterator[Proposal]:
    """A map, the pad that it reads, and the map before that, as one."""
    third = _single(lifted, inner)
    if third is None:
        return
    region = between(lifted, third, node)
    if isinstance(region, Region):
        yield as_one_map(rule, region)


def _moves_pixels(lifted: LiftedGraph, node: fx.Node) -> bool:
    """A pad or a crop: the convolution behind it may have to pad by itself all the same."""
    map_ = lifted.own_map(node)
    return map_ is not None and all(k == 1 for k in map_.kernel) and not map_.is_pointwise


def _single(lifted: LiftedGraph, node: fx.Node) -> fx.Node | None:
    """The one value that an affine node reads."""
    match lifted.op(node):
        case Affine(source=source):
            return source
        case Sum(terms=((source, _),)):
            return source
        case _:
            return None
