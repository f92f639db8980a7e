"""One forward's Python, run once, as an fx graph that does not lie; where it cannot be, a refusal."""

from repfx.tracing.answers import AS_TEXT, is_assertion
from repfx.tracing.children import called_children
from repfx.tracing.differences import calls_of
from repfx.tracing.islands import may_overwrite
from repfx.tracing.leaves import computes_otherwise, has_own_call
from repfx.tracing.modes import generators, modes_kept, set_generators
from repfx.tracing.outcome import Refused, Traced
from repfx.tracing.signature import (
    EMPTY,
    Example,
    Passed,
    SignatureTracer,
    UnknownArgumentError,
    example_values,
    parameters_of,
)
from repfx.tracing.surroundings import World
from repfx.tracing.tracer import Knowledge, Tracer
from repfx.tracing.worlds import Agree, attempt, restored

__all__ = [
    "AS_TEXT",
    "EMPTY",
    "Agree",
    "Example",
    "Knowledge",
    "Passed",
    "Refused",
    "SignatureTracer",
    "Traced",
    "Tracer",
    "UnknownArgumentError",
    "World",
    "attempt",
    "called_children",
    "calls_of",
    "computes_otherwise",
    "example_values",
    "generators",
    "has_own_call",
    "is_assertion",
    "may_overwrite",
    "modes_kept",
    "parameters_of",
    "restored",
    "set_generators",
]
