"""README and docs/ agree with the code: Python blocks run, console blocks print what they show.

A shown line must be printed.  Whole numbers must be the same; decimals within 2 %, and errors and seconds
are free.  A line of dots stands for lines left out.
"""

from __future__ import annotations

import math
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repfx.cli.app import run

ROOT = Path(__file__).parent.parent
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in AT_THE_ROOT), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FREE = re.compile(r"\d\.\d+e[-+]\d+|\d+\.\d+ s\b|worst at .*")  # measured anew each time
DECIMAL = re.compile(r"\d+\.\d+")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(block: str) -> Iterator[tuple[list[str], list[str]]]:
    """The commands of a console block, each with the lines it shows."""
    for part in block.split("$ ")[1:]:
        command, *shown = part.rstrip().split("\n")
        yield shlex.split(command), [line for line in shown if line not in ("", "...")]


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that a command prints, run in this process."""
    if words[0] == "repfx":
        run(words[1:])
    else:
        assert words[0] == "python", words
        program = str(ROOT / words[1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [program, *words[2:]])
            runpy.run_path(program, run_name="__main__")
    page = capsys.readouterr()
    return page.out + page.err


def says(shown: str, line: str) -> bool:
    """Whether a printed line is the shown one, up to what may differ."""
    a, b = (" ".join(FREE.sub("*", text).split()) for text in (shown, line))
    if DECIMAL.sub("#", a) != DECIMAL.sub("#", b):
        return False
    pairs = zip(map(float, DECIMAL.findall(a)), map(float, DECIMAL.findall(b)))
    return all(math.isclose(x, y, rel_tol=0.02) for x, y in pairs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_happens(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "console"):
        for words, shown in commands(block):
            lines = printed(words, capsys).split("\n")
            for expected in shown:
                assert any(says(expected, line) for line in lines), f"{' '.join(words)} does not print: {expected}"
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_the_readme_and_the_site_lead_to_every_page(page: Path) -> None:
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text()
    assert f": {page.name}\n" in (ROOT / "mkdocs.yml").read_text()


def test_the_explained_pass_is_the_example() -> None:
    code = blocks(ROOT / "docs" / "writing-a-pass.md", "python")[0]
    body = code[code.index("@dataclass") :].strip()
    assert body in (ROOT / "examples" / "custom_pass.py").read_text()


def test_the_architecture_page_has_the_rooms_and_files_as_they_are() -> None:
    from benchmarks.house import PAGE, PICTURE, files, page

    text = PAGE.read_text()
    assert page(files(), text) == text, "run python -m benchmarks.house --write"
    assert PICTURE.exists()


def test_the_first_command_of_the_readme_is_all_there_is() -> None:
    first, second = blocks(ROOT / "README.md", "sh")[0].strip().split("\n")
    assert first.startswith("python3 -m venv")
    assert first.endswith("examples/quickstart.py")
    assert second == ".venv/bin/python -m pytest -n 2"
    gate = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in gate, "the gate runs these two, to the letter"
    assert '"$work/repfx"' in gate
