"""What the corpus says about one published block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Need:
    """So many operations of one kind remain in the best equivalent network, and why no fewer can."""

    count: int
    because: str


@dataclass(frozen=True)
class Entry:
    """A published block in its multi-branch training form.

    `best` names every kind of operation (a field of `repfx.report.OpCounts`) that the single-branch
    objective must leave; kinds not named must be gone.  `open_kinds` are not held to a number: layout
    and elementwise operations whose count is a matter of spelling.
    """

    name: str
    paper: str  # arXiv identifier, or a DOI
    factory: Callable[[], nn.Module]
    channels: int
    best: Mapping[str, Need]
    sizes: tuple[tuple[int, int], ...] = ((14, 14), (7, 9), (16, 5), (4, 4), (2, 3), (1, 1))
    open_kinds: frozenset[str] = field(default=frozenset())
    gap: str = ""  # where the compiler stays behind `best` today, in words; empty: it does not
    left: Mapping[str, int] = field(default_factory=dict)  # with a gap: what it leaves instead

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example input: (1, channels, height, width)."""
        return (1, self.channels, *self.sizes[0])


def only_conv(because: str) -> dict[str, Need]:
    """One convolution, nothing else."""
    return {"convolutions": Need(1, because)}
