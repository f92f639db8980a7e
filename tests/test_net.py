"""The comparison of the whole model notices every answer of the tracer's that is not true.

Each answer that a trace gives to a model's questions is broken, one at a time.  Nothing else looks: the rewrites
are verified against the trace, which is wrong by then, and both traces are wrong alike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import repfx
from repfx.errors import MismatchError
from repfx.tracing import Tracer, worlds
from repfx.tracing.answers import Answers
from repfx.tracing.sized_answers import SizedAnswers
from repfx.tracing.traced_values import SizedProxy, TracedProxy, TracedTensor, TypeOf
from tests import hostile
from tests.compiling import Net, conv

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Broken:
    """A question that a forward asks, and the wrong answer."""

    asks: Callable[[Net, Tensor], Any]
    lie: Patch
    example: bool = True


def no(s: Net, x: Tensor) -> Tensor:
    """The way that is wrong."""
    return s.n(s.a(x)) * 2.0


def yes(s: Net, x: Tensor) -> Tensor:
    """The way that is right."""
    return s.n(s.a(x))


def negated(patch: pytest.MonkeyPatch) -> None:
    """Every truth that sizes decide is the other one."""
    patch.setattr(SizedAnswers, "to_bool", lambda self, obj: not self.facts[obj.node])


def lists(patch: pytest.MonkeyPatch) -> None:
    """Every argument is a list."""
    patch.setattr(Answers, "_kind_of_argument", lambda self, node: list)


def mistyped(patch: pytest.MonkeyPatch) -> None:
    real = Answers.kind_of
    patch.setattr(Answers, "kind_of", lambda self, n: float if n.target is operator.getitem else real(self, n))


def longer(patch: pytest.MonkeyPatch) -> None:
    real = Answers.size_of
    patch.setattr(Answers, "size_of", lambda self, obj: real(self, obj) + 1)


def larger(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SizedAnswers, "number_of", lambda self, obj: self.facts[obj.node] + 1)


def first_only(patch: pytest.MonkeyPatch) -> None:
    real = SizedAnswers.iter
    patch.setattr(SizedAnswers, "iter", lambda self, obj: iter(list(real(self, obj))[:1]))


def everything_has_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TracedTensor, "logits", property(lambda self: self), raising=False)


def nothing_has_it(patch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any) -> Any:
        raise AttributeError("it has none")

    patch.setattr(TracedTensor, "mT", property(missing))
    patch.setattr(Answers, "check_attribute", missing)


def in_training(patch: pytest.MonkeyPatch) -> None:
    """The traced code sees a module in training mode."""
    real = Tracer.trace

    def trace(self: Tracer, root: nn.Module, concrete_args: Any = None) -> fx.Graph:
        root.training = True
        try:
            return real(self, root, concrete_args)
        finally:
            root.training = False

    patch.setattr(Tracer, "trace", trace)


def always_recording(patch: pytest.MonkeyPatch) -> None:
    """Both traces are made in the world that records gradients."""
    patch.setattr(worlds, "FIRST", worlds.OTHER)


def always_required(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Answers, "gradient_fact", lambda self, value, name: True)


def zeros_for_numpy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TracedProxy, "__array__", lambda self, *args, **kwargs: np.zeros(()))
    patch.setattr(SizedProxy, "__array__", lambda self, *args, **kwargs: np.zeros(()))


def other_text(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SizedAnswers, "text_of", lambda self, obj, write: "0")


def other_kind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(TypeOf), "__call__", lambda cls, value: list)


def other_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SizedAnswers, "key_of", lambda self, obj: -1)


def equal_to_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TracedTensor, "__eq__", lambda self, other: True)


BROKEN = {
    "isinstance": Broken(lambda s, x: yes(s, x) if isinstance(x, Tensor) else no(s, x), lists, example=False),
    "isinstance of a size": Broken(
        lambda s, x: yes(s, x) if isinstance(x.shape[0], int) else no(s, x), mistyped, example=False
    ),
    "type": Broken(lambda s, x: yes(s, x) if type(x) is Tensor else no(s, x), other_kind, example=False),
    "shape": Broken(lambda s, x: yes(s, x) if x.shape[-1] > 4 else no(s, x), negated),
    "a number": Broken(lambda s, x: yes(s, x) * int(x.shape[-1]), larger),
    "dtype": Broken(lambda s, x: yes(s, x) if x.dtype == torch.float64 else no(s, x), negated),
    "device": Broken(lambda s, x: yes(s, x) if x.device.type == "cpu" else no(s, x), negated),
    "is_cuda": Broken(lambda s, x: no(s, x) if x.is_cuda else yes(s, x), negated),
    "dim": Broken(lambda s, x: yes(s, x) if x.dim() == 4 else no(s, x), negated),
    "len": Broken(lambda s, x: yes(s, x) * len(s.a(x).shape[1:]), longer, example=False),
    "bool": Broken(lambda s, x: yes(s, x) if x.shape[0] else no(s, x), negated),
    "in": Broken(lambda s, x: yes(s, x) if 8 in x.shape else no(s, x), negated),
    "hasattr, which it has not": Broken(
        lambda s, x: no(s, x) if hasattr(x, "logits") else yes(s, x), everything_has_it, example=False
    ),
    "hasattr, which it has": Broken(
        lambda s, x: yes(s, x) if hasattr(x, "mT") else no(s, x), nothing_has_it, example=False
    ),
    "iteration": Broken(lambda s, x: sum(yes(s, part[None]) for part in x), first_only),
    "a training flag": Broken(lambda s, x: no(s, x) if s.training else yes(s, x), in_training, example=False),
    "grad mode": Broken(
        lambda s, x: no(s, x) if torch.is_grad_enabled() else yes(s, x), always_recording, example=False
    ),
    "requires_grad": Broken(lambda s, x: no(s, x) if x.requires_grad else yes(s, x), always_required, example=False),
    "numpy": Broken(lambda s, x: yes(s, x) * float(np.sqrt(x.shape[-1])), zeros_for_numpy),
    "text": Broken(lambda s, x: yes(s, x) if f"{x.shape[-1]}" == "8" else no(s, x), other_text),
    "a key": Broken(lambda s, x: yes(s, x) if x.shape[-1] in {8: 1} else no(s, x), other_key),
    "compared with None": Broken(
        lambda s, x: no(s, x) if x == None else yes(s, x), equal_to_none, example=False  # noqa: E711
    ),
}  # fmt: skip


@contextmanager
def lying(broken: Broken) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        broken.lie(patch)
        yield


@pytest.mark.parametrize("question", BROKEN)
def test_a_wrong_answer_is_noticed(question: str) -> None:
    broken = BROKEN[question]
    model = hostile.prepared(Net(broken.asks, a=conv(3, 4), n=nn.BatchNorm2d(4)), 0)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    example = (x,) if broken.example else None
    assert repfx.report(repfx.reparameterize(model, example)).equivalence is not None
    with lying(broken):
        unseen = repfx.reparameterize(model, example, verify=False)
    with torch.no_grad():
        assert hostile.relative_error(model(x), unseen(x)) > 0.1, "the answer is not asked for"
    with lying(broken), pytest.raises(MismatchError, match="that is a bug in repfx"):
        repfx.reparameterize(model, example)
