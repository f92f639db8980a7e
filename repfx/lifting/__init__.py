"""What each node of a traced graph computes: one table of rules."""

from repfx.lifting.table import lift, lift_graph

__all__ = [
    "lift",
    "lift_graph",
]
