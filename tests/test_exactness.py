"""The specification names tests that exist: one that accepts and one that declines, for every line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests import test_traps
from tests.exactness import ROWS, Row

LINES = [(section, row) for section, rows in ROWS.items() for row in rows]


def cases(test: Any) -> Iterator[str]:
    """Names of the cases of a parametrized test."""
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            ids = mark.kwargs.get("ids")
            yield from map(str, ids if isinstance(ids, list | tuple) else mark.args[1])


def missing(name: str) -> str:
    """What of "file::test[case]" does not exist, or ""."""
    file, _, test = name.partition("::")
    function, bracket, case = test.partition("[")
    module = importlib.import_module("tests." + file.removesuffix(".py").replace("/", "."))
    found = getattr(module, function, None)
    if found is None or not function.startswith("test_"):
        return f"{file} has no {function}"
    if bracket and case.removesuffix("]") not in set(cases(found)):
        return f"{function} in {file} has no case {case.removesuffix(']')!r}"
    return ""


@pytest.mark.parametrize(("section", "row"), LINES, ids=[f"{section}: {row.line}" for section, row in LINES])
def test_every_line_has_its_tests(section: str, row: Row) -> None:
    assert row.accepts, "nothing shows that this is accepted"
    assert row.declines or row.alone, "there is no near miss"
    assert [problem for name in (*row.accepts, *row.declines) if (problem := missing(name))] == []


def test_every_trap_has_a_line() -> None:
    listed = {name.partition("::")[2].partition("[")[0] for rows in ROWS.values() for r in rows for name in r.accepts}
    listed |= {name.partition("::")[2].partition("[")[0] for rows in ROWS.values() for r in rows for name in r.declines}
    named = {name for name in vars(test_traps) if name.startswith("test_")}
    assert named - listed == set()


def test_lines_are_stated_once() -> None:
    lines = [row.line for _, row in LINES]
    assert len(lines) == len(set(lines))


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert missing("test_lifting.py::test_folds[negated]") == ""
    assert "has no case" in missing("test_lifting.py::test_folds[nonsense]")
    assert "has no test_nonsense" in missing("test_lifting.py::test_nonsense")
