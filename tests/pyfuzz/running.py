"""One program: run as it is, compiled, and compared, call by call.

Every run has a world of its own: the file is loaded anew, so that no table or counter of one run is seen by another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import linecache
import random
import re
import signal
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

import repfx
from repfx.errors import InputError, MismatchError, UserError
from tests import hostile
from tests.pyfuzz.program import Call, Program

SECONDS = 40  # before a run counts as hanging
NAME = "pyfuzz_program"
TOLERANCES = (  # relative; of programs that round in another dtype, or take steps that a rounding may cross
    (r"autocast\(\"cpu\", dtype|bfloat16|half\(", 5e-2, 5e-2),
    (r"float\(\)\.|to\(torch\.float32\)|ramp|linspace|tensor\(", 1e-6, 1e-3),
    (r"round|sign\(|Sign|int64|> \d|argmax|sort\(|max", 1e-9, 0.5),
    (r"", 1e-9, 1e-3),
)


class UnfitError(Exception):
    """The program itself does not run, is not the same twice, or returns no finite numbers."""


class HangError(Exception):
    """A run took too long."""


@dataclass(frozen=True)
class Finding:
    """What went wrong: a kind that survives shrinking, and the message."""

    kind: str
    message: str


@dataclass(frozen=True)
class Answer:
    """What one call left: its result's leaves, the image afterwards, its gradient, the generators; or an error."""

    leaves: tuple[tuple[str, Any], ...] = ()
    image: Tensor | None = None
    gradient: Tensor | None = None
    generators: tuple[Any, ...] = ()
    kept: tuple[tuple[str, Tensor], ...] = ()
    error: BaseException | None = None


@dataclass
class Seen:
    """What a program was good for."""

    folded: bool = False  # a batch norm has gone
    whole: bool = False  # and all statements are in one graph
    islands: list[str] = field(default_factory=list)
    refused: int = 0  # calls of other sizes that were an InputError
    declined: str = ""  # a UserError of the compiler's


# --- worlds ---------------------------------------------------------------------------------------


@contextmanager
def world(program: Program) -> Iterator[dict[str, Any]]:
    """The names of a program's file, freshly loaded; modes and generators are put back afterwards."""
    source = program.source()
    with tempfile.TemporaryDirectory() as folder, _surroundings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if program.loaded == "exec":
            module = sys.modules[NAME] = types.ModuleType(NAME)
            exec(compile(source, "<pyfuzz>", "exec"), vars(module))
            yield vars(module)
            return
        path = Path(folder) / f"{NAME}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(NAME, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
        yield vars(module)


@contextmanager
def _surroundings() -> Iterator[None]:
    try:
        yield
    finally:
        sys.modules.pop(NAME, None)
        linecache.checkcache()
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.clear_autocast_cache()


def built(names: dict[str, Any], program: Program) -> nn.Module:
    """The module, with hostile weights."""
    torch.manual_seed(program.weights)
    model = hostile.prepared(names["Net"](), program.weights)
    return model if program.double else model.float()


def image(call: Call, number: int, program: Program) -> Tensor:
    """The input of a call."""
    generator = torch.Generator().manual_seed(sum(call.size) + 100 * number)
    x = torch.randn(call.size[0], 3, *call.size[1:], generator=generator, dtype=torch.float64)
    return x if program.double else x.float()


def answers(model: nn.Module, program: Program) -> list[Answer]:
    """What a module does, call after call; the calls end with the first error."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    found = []
    for number, call in enumerate(program.calls):
        found.append(_answer(model, call, image(call, number, program)))
        if found[-1].error is not None:
            break
    return found


def _answer(model: nn.Module, call: Call, x: Tensor) -> Answer:
    gradient = None
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),  # where torch.fx writes about errors
            torch.inference_mode(call.mode == "inference"),
            torch.set_grad_enabled(call.mode in ("grad", "leaf")),
        ):
            if call.mode == "inference":
                x = x.clone()
            leaf = x.requires_grad_(call.mode == "leaf")
            result = model(leaf)
            leaves = tuple(_leaves(result, ""))
            if call.mode == "leaf":
                gradient = _gradient(leaf, leaves)
    except Exception as error:
        return Answer(error=error)
    # a later call may write into what this one has returned
    leaves = tuple((place, _frozen(value)) for place, value in leaves)
    kept = tuple((name, b.detach().clone()) for name, b in sorted(model.named_buffers()) if "kept" in name)
    return Answer(leaves, x.detach().clone(), gradient, _generators(), kept)


def _frozen(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _gradient(leaf: Tensor, leaves: tuple[tuple[str, Any], ...]) -> Tensor | None:
    """Of a random sum of everything that depends on the image: of a plain one a norm's would be zero."""
    generator = torch.Generator().manual_seed(0)
    sums = [
        (value * torch.rand(value.shape, generator=generator, dtype=value.dtype)).sum()
        for _, value in leaves
        if isinstance(value, Tensor) and value.requires_grad
    ]
    if not sums:
        return None
    (found,) = torch.autograd.grad(sum(sums), leaf, allow_unused=True)  # type: ignore[arg-type]
    return found


def _generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What lies in a result, each with where it lies and in what."""
    kind = type(value).__name__
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}{kind}[{key!r}]")
    elif isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{place}{kind}[{i}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from _leaves(getattr(value, each.name), f"{place}{kind}.{each.name}")
    else:
        yield place, value


# --- comparison -----------------------------------------------------------------------------------


def examine(program: Program, seen: Seen | None = None) -> Finding | None:
    """Compile a program, and look for anything that must not be.  Raises `UnfitError`."""
    seen = Seen() if seen is None else seen
    program, wanted = _fit(program)
    while True:
        try:
            with _limited():
                found = _compiled(program, wanted, seen)
        except HangError:
            return Finding("hang", f"more than {SECONDS} seconds")
        if not isinstance(found, int):
            return found
        seen.refused += 1  # this call is refused, as it may be: leave it out, for both
        calls = program.calls[:found] + program.calls[found + 1 :]
        program, wanted = _fit(replace(program, calls=calls))


def _fit(program: Program) -> tuple[Program, list[Answer]]:
    """The program with the calls that it takes itself, and its answers, which are the same twice."""
    while True:
        first, second = _own(program), _own(program)
        if not first or (first[0].error is not None and program.calls[0].mode == "no_grad"):
            raise UnfitError(f"does not run: {first[0].error!r}" if first else "no calls")
        if first[-1].error is None:
            break
        number = len(first) - 1
        program = replace(program, calls=program.calls[:number] + program.calls[number + 1 :])
    for one, other in zip(first, second, strict=True):
        if _difference(one, other, 0.0, program) is not None:
            raise UnfitError("not the same twice")
        numbers = [t for _, t in one.leaves if isinstance(t, Tensor)]
        if not all(bool(torch.isfinite(t).all()) for t in numbers):
            raise UnfitError("not finite")
        if not any(t.numel() > 1 and float(t.double().std()) > 0 for t in numbers):
            raise UnfitError("always the same number")
    return program, first


def _own(program: Program) -> list[Answer]:
    try:
        with _limited(), world(program) as names:
            return answers(built(names, program), program)
    except HangError as error:
        raise UnfitError("hangs itself") from error
    except Exception as error:
        raise UnfitError(f"cannot be loaded or built: {error!r}") from error


def _compiled(program: Program, wanted: list[Answer], seen: Seen) -> Finding | int | None:
    """A finding; the number of a call that is refused; or None."""
    with world(program) as names:
        model = built(names, program)
        before = _state(names, model)
        example = (image(program.calls[0], 0, program),) if program.example else None
        try:
            fused = repfx.reparameterize(model, example, verify=program.verify, objective=program.objective)
        except HangError:
            raise
        except UserError as error:
            seen.declined = f"{type(error).__name__}: {error}"
            if program.example and not isinstance(error, InputError):
                return Finding("compile UserError", str(error))
            return None
        except Exception as error:
            words = re.sub(r"[\d.e+-]+", "N", str(error))[:40] if not isinstance(error, MismatchError) else ""
            return Finding(f"compile {type(error).__name__} {words}", traceback.format_exc(limit=-6))
        _note(model, fused, seen)
        changed = _changed(before, _state(names, model))
        if changed:
            return Finding(f"compiling changes {changed.split(':')[0]}", f"compiling has changed {changed}")
        got = answers(fused, program)
        for number, (one, other) in enumerate(zip(wanted, got)):
            if other.error is not None:
                if isinstance(other.error, InputError) and _may_refuse(program, number):
                    return number
                if "modified by an inplace operation" in str(other.error) and "checkpoint(" in str(program):
                    return number  # the original computes again what it has overwritten
                text = "".join(traceback.format_exception(other.error, limit=-6))
                kind = f"raises {type(other.error).__name__}"
                return Finding(kind, f"call {number}, {program.calls[number]}: {text}")
            difference = _difference(one, other, _tolerance(program), program)
            if difference is not None:
                where = f"call {number}, {program.calls[number]}"
                return Finding(difference[0], f"{where}: {difference[1]}")
    return None


def _may_refuse(program: Program, number: int) -> bool:
    return program.example and program.calls[number].size != program.calls[0].size


def _note(model: nn.Module, fused: nn.Module, seen: Seen) -> None:
    norms = [sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in each.modules()) for each in (model, fused)]
    seen.folded = norms[1] < norms[0]
    seen.islands = [str(island.cause) for island in repfx.report(fused).islands]
    seen.whole = isinstance(fused, fx.GraphModule) and not seen.islands


def _tolerance(program: Program) -> float:
    source = "\n".join([*(s.code for s in program.all()), program.returns])
    return next(double if program.double else single for pattern, double, single in TOLERANCES
                if re.search(pattern, source))  # fmt: skip


def _difference(one: Answer, other: Answer, tolerance: float, program: Program) -> tuple[str, str] | None:
    """(kind, words) of the first thing in which two answers differ."""
    if (one.error is None) != (other.error is None):
        return "error", f"{one.error!r} and {other.error!r}"
    places = [[place for place, _ in each.leaves] for each in (one, other)]
    if places[0] != places[1]:
        return "structure", f"{places[0]} expected, {places[1]} found"
    for (place, a), (_, b) in zip(one.leaves, other.leaves, strict=True):
        words = _values_differ(a, b, tolerance)
        if words:
            return words[0], f"{place or 'the result'}: {words[1]}"
    for kind, a, b in (("image", one.image, other.image), ("gradient", one.gradient, other.gradient)):
        words = _values_differ(a, b, tolerance * 10)
        if words:
            return kind, f"{kind}: {words[1]}"
    for (name, a), (_, b) in zip(one.kept, other.kept):
        words = _values_differ(a, b, tolerance)
        if words and dict(one.kept).keys() == dict(other.kept).keys():
            return "buffer", f"buffer {name}: {words[1]}"
    if one.generators != other.generators:
        return "generators", "the random generators stand elsewhere"
    return None


def _values_differ(a: Any, b: Any, tolerance: float) -> tuple[str, str] | None:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return "type", f"{type(a).__name__} expected, {type(b).__name__} found"
        equal = a == b or (isinstance(a, float) and isinstance(b, float) and _close(a, b))
        if not equal and not isinstance(a, types.FunctionType):
            return "value", f"{a!r} expected, {b!r} found"
        return None if type(a).__name__ == type(b).__name__ else ("type", f"{type(a)} expected, {type(b)} found")
    if a.shape != b.shape:
        return "shape", f"shape {tuple(a.shape)} expected, {tuple(b.shape)} found"
    if a.dtype != b.dtype:
        return "dtype", f"{a.dtype} expected, {b.dtype} found"
    if a.requires_grad != b.requires_grad:
        return "requires_grad", f"requires_grad {a.requires_grad} expected, {b.requires_grad} found"
    error = _relative_error(a, b)
    return None if error <= tolerance else ("numbers", f"relative error {error:.1e}")


def _relative_error(a: Tensor, b: Tensor) -> float:
    """As elsewhere, but what is next to nothing is nothing: two halves may have cancelled."""
    if a.numel() == 0:
        return 0.0
    one, other = torch.view_as_real(a) if a.is_complex() else a, torch.view_as_real(b) if b.is_complex() else b
    return float((one.double() - other.double()).abs().max()) / max(float(one.double().abs().max()), 1e-4)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def _state(names: dict[str, Any], model: nn.Module) -> dict[str, str]:
    """What a world and a model hold, written out."""
    found = {f"global {name}": _written(value, 0) for name, value in names.items() if not name.startswith("__")}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name != "_modules":
                found[f"{path}.{name}"] = _written(value, 0)
    return found


def _written(value: Any, depth: int) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} {value.requires_grad} {float(value.detach().double().sum()):.12g}"
    if depth > 4 or isinstance(value, types.ModuleType | types.FunctionType | nn.Module):
        return type(value).__name__
    if isinstance(value, torch.Generator):
        return str(hash(value.get_state().numpy().tobytes()))
    if isinstance(value, random.Random):
        return str(hash(value.getstate()))
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item, depth + 1)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set) or type(value).__name__ == "deque":
        return f"{type(value).__name__}({', '.join(_written(item, depth + 1) for item in value)})"
    if isinstance(value, type):
        own = {k: v for k, v in vars(value).items() if not k.startswith("_") and not callable(v)}
        return f"class {value.__name__} {_written(own, depth + 1)}" if value.__module__ == NAME else value.__name__
    if hasattr(value, "cache_info"):
        return "cached"  # what a pure function has returned before is no change
    if type(value).__module__ in (NAME, "types") and hasattr(value, "__dict__"):
        return f"{type(value).__name__} {_written(vars(value), depth + 1)}"
    return re.sub(r" at 0x\w+", "", repr(value))


def _changed(before: dict[str, str], after: dict[str, str]) -> str:
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return f"{name}: {before.get(name)} before, {after.get(name)} after"
    return ""


@contextmanager
def _limited() -> Iterator[None]:
    """Raise `HangError` after some seconds."""

    def stop(*_: Any) -> None:
        raise HangError

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
