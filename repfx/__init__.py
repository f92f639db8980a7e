"""repfx: a structural-reparameterization compiler over torch.fx graphs.

fused = repfx.reparameterize(model)      # a new module, exactly equal, with fewer operations
print(repfx.report(fused))               # what was merged, what was declined and why
repfx.verify(model, fused, (x,))         # how far the two differ, and where
"""

from repfx.compiler import explain, key_map, reparameterize, report
from repfx.decline import Decline, Reason
from repfx.errors import InputError, TrainingModeError, UserError
from repfx.reporting import Equivalence, Report
from repfx.verification import randomize_statistics, verify

__version__ = "0.1.0"

__all__ = [
    "Decline",
    "Equivalence",
    "InputError",
    "Reason",
    "Report",
    "TrainingModeError",
    "UserError",
    "explain",
    "key_map",
    "randomize_statistics",
    "reparameterize",
    "report",
    "verify",
]
