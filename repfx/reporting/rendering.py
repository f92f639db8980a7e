"""How a record is shown: as rich tables, as text, as Markdown.

A report is a list of sections.  Each has a heading and rows for a terminal, and for Markdown, where columns are fewer
and paths are code; a section without rows is left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a report shows itself with these functions
    from repfx.reporting.record import Report

Rows = Sequence[tuple[str, ...]]

TEXT_WIDTH = 140


@dataclass(frozen=True)
class Column:
    """One column: its heading for a terminal, and in Markdown, where "" leaves it out."""

    heading: str
    in_markdown: str
    is_number: bool = False
    is_code: bool = False  # in Markdown


@dataclass(frozen=True)
class Section:
    """One table of a report."""

    title: str  # for a terminal
    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]]


def rich_tables(report: Report) -> Iterator[Table]:
    """The tables of a report for a terminal."""
    return map(_rich_table, sections(report))


def rich_lines(lines: str) -> Text:
    """Lines that stay whole, whatever the width."""
    return Text(lines, no_wrap=True, overflow="ignore")


def text(report: Report) -> str:
    """A report as plain text."""
    page = io.StringIO()
    Console(file=page, width=TEXT_WIDTH, no_color=True, emoji=False).print(report, crop=False)
    return page.getvalue()


def markdown(report: Report) -> str:
    """A report as Markdown tables."""
    parts = [f"### {report.model}, objective `{report.objective}`"]
    parts += map(_markdown_table, sections(report))
    return "\n\n".join([*parts, f"{report.summary()}\n"])


def sections(report: Report) -> Iterator[Section]:
    """The tables of a report, empty ones left out but for the first."""
    counts, *others = (_counts(report), _merges(report), _declines(report), _islands(report), _conditions(report))
    yield counts
    yield from (section for section in others if section.rows)


def _counts(report: Report) -> Section:
    what = "executed in one forward"
    columns = Column(what, what), Column("before", "before", is_number=True), Column("after", "after", is_number=True)
    return Section(f"{report.model} · objective {report.objective}", columns, report.counts())


def _merges(report: Report) -> Section:
    columns = (
        Column("pass", "pass"),
        Column("before", "before"),
        Column("after", "after"),
        Column("n", "n", is_number=True),
        Column("first at", "first at", is_code=True),
        Column("error", ""),
    )
    rows = [
        (rule, before, after, str(n), path, "-" if error is None else f"{error:.0e}")
        for rule, before, after, n, path, error in report.grouped_merges()
    ]
    return Section(f"merged ({len(report.merges)})", columns, rows)


def _declines(report: Report) -> Section:
    reason = Column("first reason of its kind", "declined because")
    columns = Column("pass", "pass"), reason, Column("n", "n", is_number=True)
    rows = [(rule, sentence, str(n)) for rule, sentence, n in report.grouped_declines()]
    return Section(f"declined ({len(report.declines)})", columns, rows)


def _islands(report: Report) -> Section:
    columns = Column("module", "not traced, kept whole"), Column("because", "because")
    rows = [(island.path or "the model", island.cause) for island in report.islands]
    return Section(f"not traced, kept whole ({len(rows)})", columns, rows)


def _conditions(report: Report) -> Section:
    columns = (Column("decided", "holds for the example's sizes"),)
    rows = [(condition,) for condition in report.conditions]
    return Section(f"holds for the example's sizes ({len(rows)})", columns, rows)


def _rich_table(section: Section) -> Table:
    table = Table(title=escape(section.title), title_justify="left")
    for column in section.columns:
        table.add_column(column.heading, justify="right" if column.is_number else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*map(escape, row))
    return table


def _markdown_table(section: Section) -> str:
    columns = [(index, column) for index, column in enumerate(section.columns) if column.in_markdown]
    heads = [column.in_markdown for _, column in columns]
    rules = ["---:" if column.is_number else "---" for _, column in columns]
    rows = [[f"`{row[i]}`" if column.is_code else row[i] for i, column in columns] for row in section.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))
