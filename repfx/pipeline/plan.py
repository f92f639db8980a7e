"""What is asked of a compilation, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from repfx.capture import Capture
from repfx.decline import Decline
from repfx.reporting import Island, Merge, OpCounts
from repfx.rewriting import Objective, Pass
from repfx.verification import Held, Spec

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Plan:
    """What is asked of a compilation."""

    objective: Objective
    passes: tuple[Pass, ...]
    exclude: tuple[str | type, ...]
    verify: bool
    progress: Progress | None
    build: bool = True  # else only told what would be built


@dataclass
class Outcome:
    """What one compilation did, before it becomes a report."""

    capture: Capture
    before: OpCounts
    after: OpCounts
    held: Held  # what the compiled module holds, or would
    merges: list[Merge] = field(default_factory=list)
    declines: list[Decline] = field(default_factory=list)
    verify_seconds: float = 0.0
    told: Mapping[str, Spec] = field(default_factory=dict)  # what the graph tells of the arguments

    def take_over(self, inner: Outcome) -> None:
        """What was done inside an island is part of what was done."""
        self.merges += inner.merges
        self.declines += inner.declines
        self.verify_seconds += inner.verify_seconds
        self.note(inner.capture.islands)

    def note(self, islands: Iterable[Island]) -> None:
        """Add these islands to what is told, each path once."""
        known = {island.path for island in self.capture.islands}
        self.capture.islands += [island for island in islands if island.path not in known]
