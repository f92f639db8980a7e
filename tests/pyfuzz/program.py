"""A program: statements, and the file of Python that they become."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tests.pyfuzz.definitions import AFTER, ALONG, METHODS, PARTS, TOP

HEADER = """
import collections, contextlib, copy, dataclasses, enum, functools, itertools, math, operator, pickle, random
import statistics, types, warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
""".strip()


@dataclass(frozen=True)
class Statement:
    """Code with the statements inside it; `place` is where a function of its own is written, if it is one."""

    code: str
    kind: str = ""
    place: str = ""  # one of `statements.OUTSIDE`; else the code stands where it is
    body: tuple[Statement, ...] = ()
    other: tuple[Statement, ...] = ()

    def all(self) -> Iterator[Statement]:
        """This one and all inside."""
        yield self
        for inner in (*self.body, *self.other):
            yield from inner.all()


@dataclass(frozen=True)
class Call:
    """One call of the module: the size of the image, and how gradients are handled."""

    size: tuple[int, int, int]  # batch, height, width
    mode: str = "no_grad"  # or "grad", "leaf" (the image requires gradients, and is differentiated), "inference"


@dataclass(frozen=True)
class Program:
    """A module's code, how it is loaded and compiled, and the calls that are compared."""

    statements: tuple[Statement, ...]
    returns: str = "return x"
    signature: str = "self, x"
    opening: str = ""
    calls: tuple[Call, ...] = ()
    example: bool = False  # whether it is compiled with the first call's image
    verify: bool = False
    double: bool = True
    loaded: str = "file"  # or "exec"
    objective: str = "single-branch"
    weights: int = 0

    def all(self) -> Iterator[Statement]:
        """All statements, outer ones first."""
        for statement in self.statements:
            yield from statement.all()

    def source(self) -> str:
        """The file."""
        return _File().write(self)

    def without_gradients(self) -> Program:
        """The same with calls that record none."""
        return replace(self, calls=tuple(call for call in self.calls if call.mode == "no_grad"))


class _Class:
    """A module class that is being written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.methods: list[str] = []
        self.parts: dict[str, str] = {}
        self.functions: list[str] = []  # outside, which are given an object of this class

    def text(self) -> str:
        """Its source: the parts that its methods name are made in `__init__`."""
        uses = "\n\n".join([*self.methods, *self.functions])
        needed = {name: text for name, text in METHODS.items() if re.search(rf"\.{name}\b", uses)}
        body = "\n\n".join([*self.methods, *needed.values()])
        parts = dict(self.parts)
        for name in dict.fromkeys(re.findall(r"\bself\.(\w+)", "\n".join([body, *self.functions]))):
            made = next((made for pattern, made in PARTS.items() if re.fullmatch(pattern, name)), None)
            if made is not None:
                parts.setdefault(name, made)
        if "gain" in needed or "lazy_grid" in needed:
            parts["scale"] = PARTS["scale"]
        for name in ("c0", *re.findall(r"self\.(c\d)", " ".join(parts.values()))):
            parts = {name: "nn.Conv2d(4, 4, 3, padding=1)", **parts}
        init = ["def __init__(self):", "    super().__init__()"]
        for name, made in sorted(parts.items(), key=lambda item: item[0] in ("alias", "bound")):
            plain = f"    self.{name} = {made}"
            buffer = f'    self.register_buffer("{name}", {made[1:]})'
            init.append(buffer if made.startswith("!") else plain)
            if name in AFTER:
                init.append(f"    {AFTER[name]}")
        return f"class {self.name}(nn.Module):\n{indented(chr(10).join(init))}\n\n{indented(body)}"


class _File:
    """A file that is being written."""

    def __init__(self) -> None:
        self.classes: list[_Class] = []
        self.functions: list[str] = []
        self.numbers = itertools.count()

    def write(self, program: Program) -> str:
        net = _Class("Net")
        net.parts["entry"] = "nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))"
        inside = [program.opening, "image = x", "x = self.entry(x)", *self._lines(program.statements, net)]
        body = "\n".join([*filter(None, inside), program.returns])
        net.methods.insert(0, f"def forward({program.signature}):\n{indented(body)}")
        self.classes.append(net)
        written = [*self.functions, *(each.text() for each in self.classes)]
        return "\n\n\n".join([HEADER, *_definitions("\n".join(written)), *written]) + "\n"

    def _lines(self, statements: Iterable[Statement], inside: _Class) -> list[str]:
        return [self._statement(each, inside) for each in statements]

    def _statement(self, statement: Statement, inside: _Class) -> str:
        number = str(next(self.numbers))
        code = statement.code.replace("<u>", number)
        if statement.place:
            self._apart(statement, number, inside)
            return code
        for hole, inner in (("body", statement.body), ("other", statement.other)):
            code = _filled(code, hole, "\n".join(self._lines(inner, inside)) or "pass")
        return code

    def _apart(self, statement: Statement, number: str, inside: _Class) -> None:
        """Write a function, method or class of its own."""
        made = _MADE.get(statement.place, "").format(f"Part{number}()")
        owner = _Class(f"Part{number}") if made else inside
        signature, opening = "self, x", ["image = x"]
        if "skip" in statement.code:
            signature += ", skip=None"
            opening.append("x = x if skip is None else x + skip")
        if "scale" in statement.code:
            signature += ", *, scale=1.0"
            opening.append("x = x * scale")
        returns = "return x, x.mean()" if "aux" in statement.code else "return x"
        body = "\n".join([*opening, *self._lines(statement.body, owner), returns])
        text = f"def {'forward' if made else f'part{number}'}({signature}):\n{indented(body)}"
        if statement.place == "function":
            self.functions.append(text)
            owner.functions.append(text)
        else:
            owner.methods.append(text)
        if made:
            self.classes.append(owner)
            inside.parts[f"part{number}"] = made


_MADE = {"module": "{0}", "list": "nn.ModuleList([{0}, {0}])", "sequential": "nn.Sequential({0}, {0})"}


def _definitions(text: str) -> list[str]:
    """What a text names, and what that names."""
    needed: dict[str, str] = {}
    while True:
        everything = "\n".join([text, *needed.values()])
        found = [name for name in TOP if name not in needed and re.search(rf"\b{name}\b", everything)]
        found += [other for name in found for other in ALONG.get(name, ()) if other not in (*needed, *found)]
        if not found:
            return [block for name, block in TOP.items() if name in needed]
        needed |= {name: TOP[name] for name in found}


def _filled(code: str, hole: str, text: str) -> str:
    """Code with statements in the place of `{hole}`, as far in as that stands."""
    return re.sub(rf"^( *)\{{{hole}\}}", lambda match: indented(text, match[1]), code, flags=re.MULTILINE)


def indented(text: str, by: str = "    ") -> str:
    """All lines further in."""
    return "\n".join(by + line if line else line for line in text.splitlines())
