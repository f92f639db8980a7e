"""One forward's Python, run once, as an fx graph that does not lie; where it cannot be, a refusal."""

from repfx.tracing.example_tracer import SizedTracer
from repfx.tracing.islands import called_children, may_overwrite
from repfx.tracing.signature import (
    EMPTY,
    Example,
    Passed,
    SignatureTracer,
    UnknownArgumentError,
    example_values,
    parameters_of,
)
from repfx.tracing.surroundings import generators, modes_kept, set_generators
from repfx.tracing.tracer import AS_TEXT, COMPUTING, Tracer, has_own_call, is_assertion
from repfx.tracing.worlds import Agree, Fault, Traced, calls_of, restored, shell_of, traced

__all__ = [
    "AS_TEXT",
    "COMPUTING",
    "EMPTY",
    "Agree",
    "Example",
    "Fault",
    "Passed",
    "SignatureTracer",
    "SizedTracer",
    "Traced",
    "Tracer",
    "UnknownArgumentError",
    "called_children",
    "calls_of",
    "example_values",
    "generators",
    "has_own_call",
    "is_assertion",
    "may_overwrite",
    "modes_kept",
    "parameters_of",
    "restored",
    "set_generators",
    "shell_of",
    "traced",
]
