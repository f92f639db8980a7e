"""Are two models the same function, and what do they execute?"""

from repfx.verification.calls import Call, trying
from repfx.verification.equivalence import randomize_statistics, verify
from repfx.verification.inputs import Spec, told_by_graph
from repfx.verification.op_counts import count_operations
from repfx.verification.plan_counts import Held, count_graph, count_plan, held_by
from repfx.verification.whole import compare_with_original

__all__ = [
    "Call",
    "Held",
    "Spec",
    "compare_with_original",
    "count_graph",
    "count_operations",
    "count_plan",
    "held_by",
    "randomize_statistics",
    "told_by_graph",
    "trying",
    "verify",
]
