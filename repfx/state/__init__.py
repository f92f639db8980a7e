"""What a forward can reach beside its arguments and may leave behind, and the way back."""

from repfx.state.leaks import take_back
from repfx.state.side_effects import Kept, copied, counts, depends_on_values, held, is_met, retraced, shallow
from repfx.state.unread import Unknown, Unread, spoil

__all__ = [
    "Kept",
    "Unknown",
    "Unread",
    "copied",
    "counts",
    "depends_on_values",
    "held",
    "is_met",
    "retraced",
    "shallow",
    "spoil",
    "take_back",
]
