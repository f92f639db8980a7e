"""What does not trace stays as it is, and the children that it only calls are compiled in place, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from repfx.capture import Capture
from repfx.emission import below
from repfx.graph import modules_of
from repfx.pipeline.plan import Outcome, Plan
from repfx.state import copied
from repfx.tracing import Example, Passed, called_children, has_own_call
from repfx.verification import Held, held_by

Compile = Callable[
    [nn.Module, Example | None, Plan, Passed | None, dict[int, Any] | None], tuple[nn.Module, Outcome]
]  # a part by itself: `repfx.pipeline.compilation.compile_module`


@dataclass(frozen=True)
class Islands:
    """How the modules that do not trace are compiled."""

    plan: Plan
    memo: dict[int, Any]  # what was copied of the model already
    compile: Compile

    def compile_at(self, path: str, module: nn.Module, outcome: Outcome) -> tuple[nn.Module, Held]:
        """The module at this path; what is done is part of `outcome`, what it holds is returned."""
        result, inner = self.compile_module(module, _untraced(module, outcome.capture, path), path)
        outcome.take_over(inner)
        return result, inner.held

    def compile_module(self, model: nn.Module, captured: Capture, path: str = "") -> tuple[nn.Module, Outcome]:
        """A module whose own forward stays as it is."""
        plan = self.plan
        result = copied(model, self.memo) if plan.build else model
        before = held_by(model)
        outcome = Outcome(captured, before.counts, before.counts, Held(before.kinds.copy()))
        replaced: dict[str, Held] = {}
        for name, passed in _compilable(model, captured):
            child = model.get_submodule(name)
            compiled, part = self.compile(child, None, self._inside(captured, name), passed, self.memo)
            outcome.take_over(_seen_from(part, f"{path}.{name}" if path else name))
            if not part.merges:
                continue
            replaced[name] = part.held
            outcome.held.drop(child)
            if plan.build:
                parent, _, leaf = name.rpartition(".")
                setattr(result.get_submodule(parent), leaf, compiled)
        outcome.held.parameters = _parameters_outside(model, replaced)
        for part_held in replaced.values():
            outcome.held.add(part_held)
        outcome.after = outcome.held.counts
        return result, outcome

    def _inside(self, captured: Capture, name: str) -> Plan:
        """The plan for a child: what is excluded, as seen from there."""
        types = tuple(one for one in self.plan.exclude if isinstance(one, type))
        return replace(self.plan, exclude=(*types, *_below(captured.excluded, name)))


def _compilable(model: nn.Module, captured: Capture) -> Iterator[tuple[str, Passed | None]]:
    """The children that a module only calls and that may be compiled, with what it passes to them."""
    for name, passed in called_children(model):
        child = model.get_submodule(name)
        has_parts = any(True for _ in child.children())
        if has_parts and not _does_more(child) and name not in captured.excluded:
            yield name, passed


def _does_more(module: nn.Module) -> bool:
    """Whether a call of a module is more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or has_own_call(module)


def _untraced(model: nn.Module, captured: Capture, path: str) -> Capture:
    """The capture of a module that is known not to trace."""
    return Capture(model, None, [i for i in captured.islands if i.path == ""], _below(captured.excluded, path))


def _below(paths: set[str], parent: str) -> set[str]:
    """The paths below a module, seen from there."""
    return {path.removeprefix(f"{parent}.") for path in paths if path.startswith(f"{parent}.")}


def _seen_from(part: Outcome, where: str) -> Outcome:
    """What was done inside a child, with its paths as the model has them."""
    islands = [replace(island, path=f"{where}.{island.path}".rstrip(".")) for island in part.capture.islands]
    return replace(
        part,
        capture=replace(part.capture, islands=islands),
        merges=[below(merge, where) for merge in part.merges],
        declines=[replace(decline, subject=f"{where}.{decline.subject}") for decline in part.declines],
    )


def _parameters_outside(model: nn.Module, paths: Iterable[str]) -> dict[Hashable, int]:
    """The parameters of a module but for those of the parts at these paths."""
    inside = tuple(f"{path}." for path in paths)
    left = [part for path, part in modules_of(model) if not f"{path}.".startswith(inside)]
    held = [p for part in left for p in part._parameters.values() if p is not None]
    return {id(p): p.numel() for p in held}
