"""Weights into a model, strictly: every name and every shape fits, or nothing is loaded.

It refuses to guess: a name or a shape that does not fit is an error that counts them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from repfx.errors import UserError
from repfx.io.weights import Checkpoint, listed, read_checkpoint

Tensors = Mapping[str, Tensor]

PREFIXES = ("module.", "_orig_mod.", "model.")  # data-parallel, torch.compile, Lightning
WRAPPED = 3  # prefixes that may stand before one name
COUNTER = "num_batches_tracked"  # which no evaluation reads
BOOKKEEPING = ("n_averaged", COUNTER)  # what a file may hold too much


def load_checkpoint(model: nn.Module, path: str | Path, *, key: str | None = None, trust: bool = False) -> Checkpoint:
    """Load the file's tensors into `model` strictly and in place; return what was read.

    Common prefixes (`module.`, `_orig_mod.`, Lightning's `model.`, one that all names share) are dropped
    where that makes the names fit.  Raises `UserError` naming the counts and first names of whatever does not.
    """
    checkpoint = read_checkpoint(path, key=key, trust=trust)
    wanted = tensors_of(model)
    tensors = _fitting_names(checkpoint, wanted)
    check_fit(f"{checkpoint.path}", tensors, wanted)
    model.load_state_dict(tensors, strict=False)
    return replace(checkpoint, tensors=tensors)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state, extra state that is no tensor left out."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def check_fit(subject: str, tensors: Tensors, wanted: Tensors) -> None:
    """Raise one sentence unless `tensors` has exactly the names and shapes of `wanted`, all finite."""
    misfits = _misfits(tensors, wanted)
    problems = misfits.problems(tensors, wanted)
    if problems:
        raise UserError(f"{subject}: does not fit the model: {', '.join(problems)}{misfits.hint(tensors, wanted)}.")
    for name, value in tensors.items():
        if name in wanted and not _is_finite(value):
            raise UserError(f"{subject}: {name} holds values that are not finite; the training diverged.")


@dataclass(frozen=True)
class _Misfits:
    """The names that do not fit."""

    missing: list[str]
    unexpected: list[str]
    other_shapes: list[str]

    def problems(self, tensors: Tensors, wanted: Tensors) -> list[str]:
        """How many of each kind there are, in words."""
        problems = []
        if self.missing:
            problems.append(f"{len(self.missing)} missing ({listed(self.missing)})")
        if self.unexpected:
            problems.append(f"{len(self.unexpected)} unexpected ({listed(self.unexpected)})")
        if self.other_shapes:
            first = self.other_shapes[0]
            sizes = f"{first} is {_shape(tensors[first])}, the model's is {_shape(wanted[first])}"
            problems.append(f"{len(self.other_shapes)} of another shape ({sizes})")
        return problems

    def hint(self, tensors: Tensors, wanted: Tensors) -> str:
        """`--num-classes` advice, where all that differs is one leading size, the same everywhere."""
        if self.missing or self.unexpected:
            return ""
        if any(tensors[name].shape[1:] != wanted[name].shape[1:] for name in self.other_shapes):
            return ""
        leading = {(tensors[name].shape[:1], wanted[name].shape[:1]) for name in self.other_shapes}
        ((given, _), *others) = leading
        if others or not given:
            return ""
        return f"; its head is for another number of classes, so pass --num-classes {given[0]}"


def _misfits(tensors: Tensors, wanted: Tensors) -> _Misfits:
    missing = [name for name in _lacking(tensors, wanted) if not name.endswith(COUNTER)]
    unexpected = [name for name in _lacking(wanted, tensors) if not name.endswith(BOOKKEEPING)]
    shared = (name for name in wanted if name in tensors)
    return _Misfits(missing, unexpected, [name for name in shared if tensors[name].shape != wanted[name].shape])


def _lacking(tensors: Tensors, others: Tensors) -> list[str]:
    """The names of the others that the tensors lack."""
    return [name for name in others if name not in tensors]


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _fitting_names(checkpoint: Checkpoint, wanted: Tensors) -> Tensors:
    """The tensors under the names, with prefixes dropped or not, that most of `wanted` has."""
    candidates = [dict(checkpoint.tensors)]
    for _ in range(WRAPPED):
        for tensors in list(candidates):
            candidates.extend(_shortened(tensors, drop_others=checkpoint.lightning))
    if not any("_orig_mod." in name for name in wanted):
        candidates += [{n.replace("_orig_mod.", ""): v for n, v in tensors.items()} for tensors in candidates]
    return max(candidates, key=lambda tensors: sum(name in wanted for name in tensors))


def _shortened(tensors: Tensors, *, drop_others: bool) -> Iterator[dict[str, Tensor]]:
    """The tensors with each prefix that some name has dropped in turn."""
    prefixes = dict.fromkeys(PREFIXES)
    first_parts = {f"{name.partition('.')[0]}." for name in tensors}
    if len(first_parts) == 1:  # one wrapper module around everything
        prefixes |= dict.fromkeys(first_parts)
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in tensors):
            yield _without(tensors, prefix, drop_others=drop_others)


def _without(tensors: Tensors, prefix: str, *, drop_others: bool) -> dict[str, Tensor]:
    """The prefix off every name.  Lightning files also hold losses and metrics, which then go."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) or not drop_others
    }


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
