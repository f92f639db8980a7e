"""What a forward can reach beside its arguments and may leave behind, and the way back."""

from repfx.state.copying import copied
from repfx.state.dependence import depends_on_input, depends_on_values
from repfx.state.kept import Kept, counts
from repfx.state.leaks import take_back
from repfx.state.memory import memory_of
from repfx.state.shells import is_met, shallow, shell_of
from repfx.state.tensors import held
from repfx.state.unread import Unknown, Unread, spoil

__all__ = [
    "Kept",
    "Unknown",
    "Unread",
    "copied",
    "counts",
    "depends_on_input",
    "depends_on_values",
    "held",
    "is_met",
    "memory_of",
    "shallow",
    "shell_of",
    "spoil",
    "take_back",
]
