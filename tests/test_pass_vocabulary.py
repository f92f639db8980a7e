"""Passes read like their equations: they ask the lifted graph, and never look at a node of torch.fx themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from passes import DEFAULT_PASSES

ROOT = Path(__file__).parent.parent
FILES = sorted(path for path in (ROOT / "passes").glob("*.py") if path.name != "__init__.py")
RAW = {"users", "args", "kwargs", "meta", "target", "op", "all_input_nodes", "graph", "context", "root"}


def raw(tree: ast.AST) -> Iterator[str]:
    """Attributes of fx nodes and of the graph's inside that code reads; a call is a question, `lifted.op(node)`."""
    asked = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in RAW and id(node) not in asked:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_pass_asks_and_does_not_look(path: Path) -> None:
    assert list(raw(ast.parse(path.read_text()))) == [], "ask `lifted`, or write the question in repfx/attention"


def test_raw_looks_are_seen() -> None:
    code = "a = node.users; b = node.args[0]; c = lifted.users(node); d = reader.op == 'output'; e = lifted.op(node)"
    assert [found.partition(": ")[2] for found in raw(ast.parse(code))] == ["node.users", "node.args", "reader.op"]


def test_every_pass_is_a_file_of_its_name_with_tests_of_its_name() -> None:
    names = {one.name for one in DEFAULT_PASSES}
    assert names == {path.stem for path in FILES}
    for one in DEFAULT_PASSES:
        assert type(one).__module__ == f"passes.{one.name}"
        assert type(one).__name__ == one.name.title().replace("_", "")
        assert (ROOT / "tests" / "passes" / f"test_{one.name}.py").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_pass_is_told_as_given_result_and_when_it_is_exact(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text.startswith(f"{path.stem}: ")
    words = " ".join(text.split())
    for part in ("Given: ", "Result: ", "Exact ", "Decline"):
        assert part in words, f"the docstring does not say {part.strip()}"
