"""The record of one compilation, and how it is shown."""

from repfx.reporting.record import Equivalence, Island, Merge, OpCounts, Report

__all__ = [
    "Equivalence",
    "Island",
    "Merge",
    "OpCounts",
    "Report",
]
