"""The sweep's table: for the terminal, as Markdown for the docs, as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from benchmarks.sweep_examine import Leftover, Row
from repfx.reporting import OpCounts

HEADER = ("family", "model", "size", "traced", "conv + linear", "bn", "add", "mul", "cat", "MACs (M)", "error", "s")
WORDS = {
    "ok": "yes",
    "wrong": "WRONG",
    "exception": "EXCEPTION",
    "time limit": "TIME",
    "not built": "NOT BUILT",
    "skipped": "-",
}


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table; a count reads before → own fuse → ours, without what equals its left."""
    traced = "whole" if row.traced else f"{len(row.islands)} islands"
    if row.status != "ok":
        traced = WORDS[row.status]
    best = dataclasses.replace(row.best, batch_norms=row.norms_left)
    counts = [_three(row.before, row.own, best, kind) for kind in ("", "batch_norms", "adds", "muls", "concats")]
    macs = " → ".join(_shortened([f"{(c.macs or 0) / 1e6:,.0f}" for c in (row.before, row.own, best) if c]))
    error = "-" if row.error is None else f"{row.error:.0e}"
    if row.rounding is not None:
        error += f" (its own rounding: {row.rounding:.0e})"
    model = row.spec.removeprefix("timm:")
    return (row.family, model, str(row.size), traced, *counts, macs, error, f"{row.seconds:.1f}")


def _three(before: OpCounts, own: OpCounts | None, ours: OpCounts, kind: str) -> str:
    numbers = [_number(c, kind) for c in (before, own, ours) if c is not None]
    return " → ".join(_shortened([str(n) for n in numbers]))


def _number(counts: OpCounts, kind: str) -> int:
    if kind:
        value: int = getattr(counts, kind)
        return value + (counts.border_terms if kind == "adds" else 0)
    return counts.convolutions + counts.linears


def _shortened(words: list[str]) -> list[str]:
    return words[:1] if len(set(words)) == 1 else words


def terminal(rows: Iterable[Row]) -> Table:
    """The rich table."""
    table = Table(title="repfx, every family: before → own fuse → repfx", title_justify="left")
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index < 4 else "right", no_wrap=index != 1, overflow="fold")
    for row in rows:
        style = None if row.passed else "bold red"
        table.add_row(*cells(row), style=style)
    return table


def markdown(rows: Sequence[Row], title: str, notes: Sequence[str]) -> str:
    """The page of the docs: numbers, table, batch norms that stay and why, islands."""
    lines = [f"# {title}", "", *notes, "", *[f"- {line}" for line in summary(rows)], ""]
    lines += ["| " + " | ".join(HEADER) + " |"]
    lines += ["| " + " | ".join("---" if i < 4 else "---:" for i in range(len(HEADER))) + " |"]
    lines += ["| " + " | ".join(_escaped(cell) for cell in cells(row)) + " |" for row in rows]
    failed = [row for row in rows if not row.passed]
    if failed:
        lines += ["", "## What failed", ""]
        lines += [f"- `{r.spec}`: {_verdict(r)}" for r in failed]
    left = [row for row in rows if row.left]
    if left:
        lines += ["", "## Batch norms that stay, and why", ""]
        lines += ["| model | n | between | why |", "| --- | ---: | --- | --- |"]
        for row in left:
            lines += [
                f"| {row.spec.removeprefix('timm:')} | {n} | {_escaped(between)} | {_escaped(reason)} |"
                for (between, reason), n in grouped(row.left).most_common()
            ]
    islands = [row for row in rows if row.islands]
    if islands:
        lines += [
            "",
            "## What does not trace",
            "",
            "| model | n | first island | cause |",
            "| --- | ---: | --- | --- |",
        ]
        for row in islands:
            causes = Counter(cause for _, cause in row.islands)
            first = {cause: path for path, cause in reversed(row.islands)}
            lines += [
                f"| {row.spec.removeprefix('timm:')} | {n} | `{first[cause] or 'the model'}` | {_escaped(cause)} |"
                for cause, n in causes.most_common()
            ]
    return "\n".join([*lines, ""])


def grouped(left: Iterable[Leftover]) -> Counter[tuple[str, str]]:
    """How many are left for each pair of neighbours and reason, paths aside."""
    return Counter(
        (
            f"{leftover.producer or '?'} → {leftover.kind} → {leftover.readers or '?'}",
            leftover.reason.rpartition(": ")[2] if leftover.reason.startswith("inside") else _fact(leftover),
        )
        for leftover in left
    )


def _fact(leftover: Leftover) -> str:
    """Why it stays: what stands on both sides, and what the compiler said where that says more."""
    said = leftover.reason.partition(": ")[2] or leftover.reason
    told = said if "example_inputs" in said or not leftover.because else ""
    return "; ".join(text for text in (leftover.because, told) if text)


def _verdict(row: Row) -> str:
    if row.status == "ok":
        return "the forward's parameters differ" if not row.signature else "the original was changed"
    return f"{row.status} ({row.stage or 'at start'}): {row.message.splitlines()[0] if row.message else ''}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def summary(rows: Sequence[Row]) -> list[str]:
    """What the table comes to."""
    skipped = [row for row in rows if row.status == "skipped"]
    rows = [row for row in rows if row.status != "skipped"]
    timm = [row for row in rows if row.spec.startswith("timm:")]
    lines = []
    for name, group in (("timm architecture modules", timm), ("other networks", [r for r in rows if r not in timm])):
        if not group:
            continue
        ok = [row for row in group if row.passed]
        norms = [row for row in ok if row.before.batch_norms]
        clean = [row for row in norms if not row.norms_left]
        lines.append(
            f"{name}: {len(ok)} of {len(group)} go through with the same outputs and signature; of {len(norms)} that "
            f"execute batch norms, {len(clean)} execute none afterwards; "
            f"{sum(row.traced for row in group)} trace as one graph"
        )
    if skipped:
        why = sorted({row.message for row in skipped})
        lines.append(f"{len(skipped)} skipped: {', '.join(why)}")
    lines.append(
        f"{sum(row.seconds for row in rows):.0f} s to compile all, {sum(row.verify_seconds for row in rows):.0f} s to "
        f"verify, {sum(row.total_seconds for row in rows):.0f} s in total"
    )
    return lines


def as_json(rows: Iterable[Row]) -> str:
    """Everything, for programs."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n"


def from_json(text: str) -> list[Row]:
    """Rows as `as_json` wrote them."""
    return [_row(record) for record in json.loads(text)]


def _row(record: dict[str, Any]) -> Row:
    for name in ("before", "own", "ours", "shaped"):
        if record[name] is not None:
            record[name] = OpCounts(**record[name])
    record["left"] = [Leftover(**item) for item in record["left"]]
    record["islands"] = [(path, cause) for path, cause in record["islands"]]
    record["declines"] = [(a, b, c) for a, b, c in record["declines"]]
    return Row(**record)
