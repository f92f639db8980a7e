"""Every look at frames, bytecode, exception tables and source text, each with the reason why it has to be.

A trace runs the user's Python and sees what that does with values.  What it cannot see from there, which
statement asks and what stands around it, is read here and nowhere else; nothing here changes what code does.
No answer depends on how a path is spelled: library code is what lies under the resolved directories of torch,
of this package and of the standard library, and a trace ends at the frame object where it began.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import os
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import torch

# --- whose code is it? ----------------------------------------------------------------------------

_OURS = (Path(torch.__file__).parent.resolve(), Path(__file__).parent.resolve())
_PYTHON = tuple({Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib")})
_INSTALLED = tuple({Path(sysconfig.get_paths()[name]).resolve() for name in ("purelib", "platlib")})


@functools.cache
def is_ours(filename: str) -> bool:
    """Whether a code object's file is torch's or this package's: the name of no folder above it matters."""
    if filename.startswith("<"):  # <string>, <stdin>, <ipython-input-1-...>: made at run time
        return False
    path = Path(os.path.realpath(filename))
    return any(path.is_relative_to(root) for root in _OURS)


@functools.cache
def is_library(filename: str) -> bool:
    """Whether a code object's file is torch's, this package's or the standard library's."""
    if is_ours(filename) or filename.startswith("<frozen "):
        return True
    if filename.startswith("<"):
        return False
    path = Path(os.path.realpath(filename))
    installed = any(path.is_relative_to(root) for root in _INSTALLED)
    return not installed and any(path.is_relative_to(root) for root in _PYTHON)


# --- frames ---------------------------------------------------------------------------------------


def frame_of_caller(levels: int = 1) -> FrameType:
    """The frame that called the caller of this function, or one further out.

    Why: a trace's outermost frame, and the instruction that asks a value something, are frame objects.
    """
    return sys._getframe(1 + levels)


def called_by_library() -> bool:
    """Whether torch or this package called the caller of this function.

    Why: torch asks itself for its modes, which is none of the model's code.
    """
    return is_ours(sys._getframe(2).f_code.co_filename)


def clear_finished(frame: FrameType) -> None:
    """Empty a frame that has returned, and those that called it; a generator's is only waiting.

    Why: a traceback, or a package that looks around when it is first imported, keeps frames, and with them all values.
    """
    above: FrameType | None = frame
    with suppress(RuntimeError):  # it is still running, and so are all above it
        while above is not None:
            caller = above.f_back
            if not above.f_code.co_flags & inspect.CO_GENERATOR:
                above.clear()
            above = caller


def place() -> str:
    """The innermost line outside torch and this package, for messages: what asked.

    Why: a refusal names the line of the user's code that caused it, and no exception has been raised yet.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_qualname}, line {frame.f_lineno}"


def place_of_error(error: BaseException) -> str:
    """The innermost line outside torch and this package that an exception passed; "" if there is none.

    Why: as for `place`.
    """
    found: TracebackType | None = None
    step = error.__traceback__
    while step is not None:
        if not is_ours(step.tb_frame.f_code.co_filename):
            found = step
        step = step.tb_next
    return "" if found is None else f"{found.tb_frame.f_code.co_qualname}, line {found.tb_lineno}"


def instruction(frame: FrameType) -> tuple[FrameType, int]:
    """Which instruction a frame stands at.

    Why: torch asks a size for its number only to see that it has one, and then records the size itself.  Both
    happen in one instruction of the user's code; a number that the code asked for itself was another one.
    """
    return frame, frame.f_lasti


# --- bytecode -------------------------------------------------------------------------------------

_UNPACK, _EXTENDED = dis.opmap["UNPACK_SEQUENCE"], dis.opmap["EXTENDED_ARG"]


def unpacked(frame: FrameType) -> int | None:
    """How many names the running statement unpacks a value into: 4 of `B, C, H, W = x.shape`; None of another one.

    Why: the iterator protocol does not say how many items are wanted.  torch.fx reads the same instruction.
    """
    code, here = frame.f_code.co_code, frame.f_lasti
    if code[here] != _UNPACK:
        return None
    more = code[here - 1] if here > 1 and code[here - 2] == _EXTENDED else 0
    return code[here + 1] + 256 * more


def way_around_raise(frame: FrameType, outermost: FrameType | None) -> bool | None:
    """The truth for which `assert ...` or `if ...: raise` does not raise, if that is what asks; else None.

    Why: an input for which it does raise is one that the original refuses, so the other way is the only one
    to compile.  `bool()` is not told what hangs on its answer.
    """
    if may_be_caught(frame, outermost):
        return None
    code = list(dis.get_instructions(frame.f_code))
    index = {step.offset: i for i, step in enumerate(code)}
    here = index[frame.f_lasti]
    if code[here].opname == "TO_BOOL" or code[here].argrepr.startswith("bool("):  # since Python 3.13, a comparison
        here += 1
    name = code[here].opname
    if "JUMP" not in name or not ("IF_TRUE" in name or "IF_FALSE" in name):
        return None
    jumps_if = "IF_TRUE" in name
    if _raises(code, index, here + 1):
        return jumps_if
    if _raises(code, index, index[code[here].argval]):
        return not jumps_if
    return None


def tests_for_none(frame: FrameType, outermost: FrameType | None) -> bool:
    """Whether the model's own function that runs in this frame, or the nearest around it, asks if something is None.

    Why: as for `compared_by_identity`.
    """
    nearest = next(_user_frames(frame, outermost), None)
    return nearest is not None and _tests_for_none(nearest.f_code)


@functools.cache
def _tests_for_none(code: CodeType) -> bool:
    return any(step.opname == "IS_OP" or "NONE" in step.opname for step in dis.get_instructions(code))


def compared_by_identity(frame: FrameType) -> bool:
    """Whether what the running instruction reads is asked `is` or `is not` next: `x.dtype is torch.float64`.

    Why: identity asks nothing of an object, and a traced value is not the one that it stands for.
    """
    code = [step for step in dis.get_instructions(frame.f_code) if step.offset > frame.f_lasti]
    for step in code[:6]:
        if step.opname == "IS_OP":
            return True
        if not step.opname.startswith(("LOAD_", "CACHE", "EXTENDED_ARG")):
            return False
    return False


_LEAVES = ("RETURN", "YIELD", "STORE_ATTR", "STORE_SUBSCR", "STORE_GLOBAL", "STORE_DEREF", "RERAISE", "SEND")


def _raises(code: Sequence[dis.Instruction], index: Mapping[int, int], start: int) -> bool:
    """Whether every way from here ends in a raise, whatever it computes for its message."""
    work, seen = [start], set()
    while work:
        here = work.pop()
        if here in seen or here >= len(code):
            continue
        seen.add(here)
        name = code[here].opname
        if name == "RAISE_VARARGS":
            continue
        if name.startswith(_LEAVES):
            return False
        work += _next_steps(code, index, here)
    return True


def _next_steps(code: Sequence[dis.Instruction], index: Mapping[int, int], here: int) -> Iterator[int]:
    """Where a way may go on behind an instruction."""
    name = code[here].opname
    is_loop = name == "FOR_ITER"
    jumps = "JUMP" in name or is_loop
    if jumps:
        yield index[code[here].argval]
    if not jumps or "_IF_" in name or is_loop:
        yield here + 1


def may_be_caught(frame: FrameType, outermost: FrameType | None) -> bool:
    """Whether the model's code may catch what is raised now, in this frame or further out.

    Why: a way that raises is then one that the original takes.
    """
    return any(_may_catch(outer) for outer in _user_frames(frame, outermost))


def _user_frames(frame: FrameType | None, outermost: FrameType | None) -> Iterator[FrameType]:
    """The frames of the model's own code, from the innermost to where the trace began."""
    while frame is not None and frame is not outermost:
        if not is_library(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _may_catch(frame: FrameType) -> bool:
    """Whether the line that runs stands inside a `try` or a `with`, by the code's exception table."""
    entries = dis.Bytecode(frame.f_code).exception_entries  # type: ignore[attr-defined]
    return any(entry.start <= frame.f_lasti < entry.end for entry in entries)


CHANGES_CONTAINERS = (
    "append", "extend", "insert", "pop", "remove", "clear", "reverse", "update", "setdefault", "popitem", "appendleft",
    "popleft", "extendleft", "add", "discard",
)  # fmt: skip

# --- source text ----------------------------------------------------------------------------------


def source_of(code: object) -> ast.Module | None:
    """The syntax tree of a class or function; None where there is no source, as in a frozen program.

    Why: a module that does not trace is kept whole.  What its code may do to its children and arguments is
    then known from its text alone; without text, everything is assumed.
    """
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return None


# --- code objects ---------------------------------------------------------------------------------


@functools.cache
def names_in(code: CodeType) -> tuple[str, ...]:
    """The names that a function's code uses, those of functions inside it too.

    Why: a forward may keep state in a global, which is reached by its name and by nothing else.
    """
    inner = (name for const in code.co_consts if isinstance(const, CodeType) for name in names_in(const))
    return tuple(dict.fromkeys((*code.co_names, *inner)))


@functools.cache
def globals_set_in(code: CodeType) -> frozenset[str]:
    """The globals that a function binds, functions inside it too.

    Why: `global TOTAL; TOTAL = x` may make a name that was not there before.
    """
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in globals_set_in(const)]
    own = [step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")]
    return frozenset((*own, *inner))
