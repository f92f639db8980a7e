"""Border terms that are zero whatever the weights are: a frame padded with what would be there anyhow leaves one.

A border padded with a batch norm's own response to zero, or with the number that was added before, leaves a term
whose taps are the difference of two equal expressions.  Decided at random parameter values, never at the current
weights; keeping such a term would be exact, but an operation too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repfx.algebra.affine import AffineConv
from repfx.algebra.values import Names, Values, probing

_ROUNDING = 1e-9  # of random numbers near one, in float64, with room for long compositions


def without_vanishing_borders(map_: AffineConv) -> AffineConv:
    """The map without border terms that are zero whatever the weights are."""
    if not map_.borders or not _may_cancel(map_):
        return map_
    with probing():
        values = map_.values()
    first = values.rows(slice(0, 1))  # a hint of how large numbers are; all of them would take a composition
    scale = float(first.abs().max()) + float(values.bias.abs().max())
    if any(float(one.abs().max()) > _ROUNDING * scale for one in values.ones):
        return map_

    def rule(given: Sequence[Values]) -> Values:
        return replace(given[0], ones=())

    return replace(map_, borders=(), inputs=(map_,), rule=rule)


def _may_cancel(map_: AffineConv) -> bool:
    """Whether some numbers go into a map on two ways, or are written in the model's code.

    Else it is a sum of products of independent numbers, and zero for no random ones.  Weights are only named here,
    not composed: most maps end here.
    """
    read: set[int] = set()
    seen: set[int] = set()
    work = [map_]
    while work:
        part = work.pop()
        if part.selection is not None:
            continue  # copies, which hold no numbers
        if id(part) in seen:
            return True
        seen.add(id(part))
        work.extend(part.inputs)
        if part.inputs:
            continue
        with probing(Names()) as probe:
            part.rule(())
        if not read.isdisjoint(probe.read) or (part.biased and not probe.read):
            return True
        read |= probe.read
    return False
