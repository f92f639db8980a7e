"""nn.Module -> functional fx graph in one spelling: the whole model where it traces, islands where it does not."""

from repfx.capture.exclusion import Exclusion
from repfx.capture.exported_program import is_exported, plain_module
from repfx.capture.in_place import functionalize, works_in_place
from repfx.capture.mode import check_mode
from repfx.capture.trace import Capture, capture, unchanged
from repfx.capture.wrappers import unwrapped

__all__ = [
    "Capture",
    "Exclusion",
    "capture",
    "check_mode",
    "functionalize",
    "is_exported",
    "plain_module",
    "unchanged",
    "unwrapped",
    "works_in_place",
]
