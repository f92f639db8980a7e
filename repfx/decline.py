"""A refusal as a value: what could not be done, where, why, and what would help.

Nothing in repfx answers "no" with a bare `None` or `False`.  A rewrite that is not exact, or not
worth it, is a `Decline`; the report lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Reason(Enum):
    """Why a rewrite was declined.  The member's name is stable and may be matched on."""

    NOT_EXACT = "not exact"  # the rewrite would change some output
    COST = "costs more"  # exact, but the objective says it does not pay
    OUTSIDE_USE = "used outside"  # a value inside the region is also read elsewhere
    UNKNOWN_FACT = "unknown fact"  # a channel count, rank or size is not known from structure
    UNSUPPORTED = "unsupported"  # affine, but not in the lifted vocabulary
    UNTRACED = "untraced"  # torch.fx could not trace the code
    EXCLUDED = "excluded"  # the user said so
    OVERFLOW = "overflow"  # the folded weight does not fit the model's dtype
    VERIFICATION = "verification failed"  # our bug: the probes disagree, so nothing was changed


@dataclass(frozen=True)
class Decline:
    """One refusal: `subject` (module path or node name), `fact`, `remedy`."""

    reason: Reason
    fact: str
    subject: str = ""
    remedy: str = ""
    rule: str = ""  # name of the pass that declined

    def at(self, subject: str) -> Decline:
        """The same refusal, placed; an existing place is kept."""
        return self if self.subject else replace(self, subject=subject)

    def by(self, rule: str) -> Decline:
        """The same refusal, signed by the pass that made it."""
        return self if self.rule else replace(self, rule=rule)

    def __str__(self) -> str:
        place = f"{self.subject}: " if self.subject else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{self.fact}{remedy}"
