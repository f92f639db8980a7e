"""A forward, the parts that it uses, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tests.compiling import Net, conv

Forward = Callable[[Net, Tensor], Any]
FOLDS, STAYS = 0, 2  # batch norms left of two


@dataclass(frozen=True)
class Case:
    """`left` batch norms of two stay without an example, `sized` with one; `reset` puts a state outside back."""

    run: Forward
    left: int = FOLDS
    sized: int | None = None  # None: as without
    parts: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    reset: Callable[[], object] = lambda: None
    because: str = ""  # words of the reason for which the forward stays
    square: bool = False  # the forward takes square images only
    other_sizes: bool = True  # whether an input of another size may be refused
    gradients: bool = True  # whether the forward runs while gradients are recorded

    def build(self) -> Net:
        """Two convolutions and two batch norms (a, n, b, m), and the parts."""
        own = {name: make() for name, make in self.parts.items()}
        return Net(self.run, a=conv(3, 4), n=nn.BatchNorm2d(4), b=conv(4, 4), m=nn.BatchNorm2d(4), **own)


def first(s: Net, x: Tensor) -> Tensor:
    """The first convolution and its norm."""
    return s.n(s.a(x))


def second(s: Net, y: Tensor) -> Tensor:
    """The second convolution and its norm."""
    return s.m(s.b(y))


def both(s: Net, x: Tensor) -> Tensor:
    """All of it, with a relu in between."""
    return second(s, first(s, x).relu())
