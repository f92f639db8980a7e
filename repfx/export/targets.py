"""What an export target is, and all that are known: the ending of an output path says which one is meant.

A target is one value.  The command line's help, completion, checks, recommended objective and output are read from
it, so a new one needs no other line of code, here or in a package of its own (docs/extending.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from repfx.errors import UserError
from repfx.extras import require
from repfx.io import check_writable
from repfx.plugins import Registry


@dataclass(frozen=True)
class Option:
    """Something that can be said to a target: `--target-option NAME=VALUE`."""

    name: str  # a keyword, e.g. "fixed_batch"
    default: object  # a value of another type than this one's is refused
    about: str  # one line for the help
    choices: tuple[object, ...] = ()  # all that there are; (): any value of the default's type

    def check(self, value: object) -> None:
        """Raise `UserError` unless this is a value of the option."""
        flag = f"--{self.name.replace('_', '-')}"
        if self.choices and value not in self.choices:
            raise UserError(f"{flag} {value!r} is not one of {', '.join(map(str, self.choices))}.")
        wanted = type(self.default)
        if type(value) is not wanted:
            raise UserError(f"{flag} {value!r} is of type {type(value).__name__}, not {wanted.__name__}.")


@dataclass(frozen=True)
class Job:
    """One thing to write: a compiled module, and how it came about."""

    module: nn.Module
    inputs: tuple[Tensor, ...]  # one forward's, (B, C, H, W)
    path: Path
    options: Mapping[str, object] = field(default_factory=dict)  # a value for each option of the target
    model: str = ""  # as the user named it; "" if built in Python
    model_options: Mapping[str, object] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()  # what was left as it is


@dataclass(frozen=True)
class Written:
    """What stands at the path now: in one line for people, after "wrote PATH: ", and as a record for programs."""

    sentence: str
    record: object


@dataclass(frozen=True)
class Target:
    """One kind of file that a compiled module can be written to, or directory."""

    ending: str  # of the output path, e.g. ".onnx"
    about: str  # one line for the help
    write: Callable[[Job], Written]  # the whole file or none; raises `UserError`
    objective: str = "single-branch"  # by name, unless the user asks for another
    because: str = "the default of repfx"  # why that objective, after a colon
    options: tuple[Option, ...] = ()
    is_directory: bool = False
    needs: tuple[str, ...] = ()  # packages that writing imports, beyond those that repfx itself needs

    def chosen(self, given: Mapping[str, object]) -> dict[str, object]:
        """A value for each option.  Raises `UserError` for an option that there is not, and for a value likewise."""
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if name not in known:
                raise UserError(f"{self.ending} takes no option {name!r}; {_hint(name, [*known])}")
            known[name].check(value)
        return {name: given.get(name, option.default) for name, option in known.items()}


TARGETS = Registry("export target", "repfx.export_targets", Target, lambda target: target.ending.removeprefix("."))


def register(target: Target) -> None:
    """Add a target for the rest of this process."""
    TARGETS.add(target)


def endings() -> tuple[str, ...]:
    """The endings of all targets, those of other packages included.  Raises `UserError`."""
    return tuple(f".{name}" for name in TARGETS.names())


def target_of(path: str | Path) -> Target:
    """The target that a path's ending names.  Raises `UserError`."""
    ending = Path(path).suffix
    found = TARGETS.find(ending.removeprefix(".")) if ending else None
    if found is None:
        raise UserError(f"{path}: unknown ending {ending or '(none)'!r}; an output ends in {', '.join(endings())}.")
    return found


def recommended_objective(path: str | Path) -> str:
    """The name of the objective that suits the target that a path's ending names.  Raises `UserError`."""
    return target_of(path).objective


def check_target(path: str | Path, options: Mapping[str, object] | None = None) -> Target:
    """The target of a path that can be written, given these options, as things stand.  Raises `UserError`."""
    target = target_of(path)
    require(f"{path}: writing it", *target.needs)
    check_writable(Path(path), directory=target.is_directory)
    target.chosen(options or {})
    return target


def write(job: Job) -> Written:
    """Write a compiled module where and as the job says; options that it does not give have their defaults.

    Raises `UserError`, leaving the path as it was.
    """
    target = check_target(job.path, job.options)
    return target.write(replace(job, options=target.chosen(job.options)))


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"it takes {' and '.join(known) or 'none'}."
