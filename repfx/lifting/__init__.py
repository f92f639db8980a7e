"""What each node of a traced graph computes: one table of rules, to which other packages may add."""

from repfx.lifting.registry import Registration, register
from repfx.lifting.rules import (
    FunctionRule,
    ModuleRule,
    OtherCallError,
    as_items,
    as_value,
    as_values,
    as_whole,
    as_wholes,
    fixed,
    known,
    per_channel,
    source_of,
)
from repfx.lifting.table import lift, lift_graph

__all__ = [
    "FunctionRule",
    "ModuleRule",
    "OtherCallError",
    "Registration",
    "as_items",
    "as_value",
    "as_values",
    "as_whole",
    "as_wholes",
    "fixed",
    "known",
    "lift",
    "lift_graph",
    "per_channel",
    "register",
    "source_of",
]
