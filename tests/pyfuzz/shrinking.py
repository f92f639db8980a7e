"""A find made small, and written as a file that fails by itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace

from tests.pyfuzz.program import Call, Program, Statement
from tests.pyfuzz.running import Finding, UnfitError, examine


def shrink(program: Program, kind: str, seconds: float = 40.0) -> Program:
    """A smaller program that fails in the same way."""
    stop = time.monotonic() + seconds
    best, moved = program, True
    while moved and time.monotonic() < stop:
        moved = False
        for smaller in simpler(best):
            if time.monotonic() > stop:
                break
            if fails(smaller, kind):
                best, moved = smaller, True
                break
    return best


def fails(program: Program, kind: str) -> bool:
    """Whether a program fails in this way."""
    try:
        finding = examine(program)
    except UnfitError:
        return False
    return finding is not None and finding.kind == kind


def simpler(program: Program) -> Iterator[Program]:
    """Programs with one thing less, what takes away most first."""
    plain = Program(program.statements, calls=program.calls)
    for name in ("returns", "signature", "verify", "loaded", "objective", "weights", "double", "example"):
        if getattr(program, name) != getattr(plain, name):
            opening = plain.opening if name == "signature" else program.opening
            yield replace(program, **{name: getattr(plain, name)}, opening=opening)
    for count in (1, 2, 3, 4):
        if count < len(program.calls):
            yield replace(program, calls=program.calls[:count])
    for number in range(len(program.calls) if len(program.calls) <= 4 else 0):
        if len(program.calls) > 1:
            yield replace(program, calls=program.calls[:number] + program.calls[number + 1 :])
    for statements in _fewer(program.statements):
        yield replace(program, statements=statements)
    for number, call in enumerate(program.calls):
        if call.mode not in ("no_grad", "grad"):
            for mode in ("no_grad", "grad"):
                yield replace(program, calls=_with(program.calls, number, replace(call, mode=mode)))


def _with(calls: tuple[Call, ...], number: int, call: Call) -> tuple[Call, ...]:
    return (*calls[:number], call, *calls[number + 1 :])


def _fewer(statements: tuple[Statement, ...]) -> Iterator[tuple[Statement, ...]]:
    """The statements with one less, one replaced by what is in it, or one that is simpler."""
    for i, statement in enumerate(statements):
        before, after = statements[:i], statements[i + 1 :]
        yield before + after
        if statement.body:
            yield (*before, *statement.body, *after)
        if statement.other:
            yield (*before, *statement.other, *after)
        for body in _fewer(statement.body):
            yield (*before, replace(statement, body=body), *after)
        for other in _fewer(statement.other):
            yield (*before, replace(statement, other=other), *after)
        lines = statement.code.split("\n")
        for k in range(len(lines) if len(lines) > 1 else 0):
            yield (*before, replace(statement, code="\n".join(lines[:k] + lines[k + 1 :])), *after)


def outline(program: Program, finding: Finding) -> str:
    """What a find is about, without its numbers: alike finds share it."""
    code = "|".join(statement.code for statement in program.all())
    return f"{finding.kind} {re.sub(r'[0-9.]+', 'N', code)}"


def reproducer(program: Program, finding: Finding) -> str:
    """A file that fails as the program does, with the module's source in front."""
    source = "\n".join(f"# {line}".rstrip() for line in program.source().splitlines())
    message = finding.message.strip().replace('"""', "'''").replace("\\", "/")
    whole = "\n".join(f"# {line}".rstrip() for line in message.splitlines())
    return "\n".join(
        [
            f'"""{finding.kind}: {message.splitlines()[-1]}',
            "",
            "Run from the repository's root: PYTHONPATH=. python FILE",
            '"""',
            "",
            "from tests.pyfuzz.__main__ import replay",
            "from tests.pyfuzz.program import Call, Program, Statement",
            "",
            f"replay({program!r})",
            "",
            source,
            "",
            whole,
            "",
        ]
    )
