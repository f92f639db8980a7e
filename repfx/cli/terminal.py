"""What the commands print with: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

NARROWEST = 120  # columns of a report that goes to a file or a pipe


@dataclass(frozen=True)
class Terminal:
    """The three ways of speaking: to people, to programs (`json`), hardly at all (`quiet`)."""

    quiet: bool = False
    json: bool = False
    debug: bool = False
    notes: list[str] = field(default_factory=list)

    def show(self, *results: RenderableType) -> None:
        """Print results for people, and before them, on stderr, the notes."""
        self._say_notes()
        if self.quiet or self.json:
            return
        console = Console(emoji=False)
        if not console.is_terminal:
            console = Console(emoji=False, width=max(NARROWEST, console.width))
        for result in results:
            text = isinstance(result, str)
            console.print(result, highlight=False, soft_wrap=text, markup=not text, crop=False)

    def show_json(self, record: dict[str, object]) -> None:
        """Print one JSON object, if that was asked for."""
        if self.json:
            print(json.dumps(plain_record(record), indent=2))

    def note(self, text: str) -> None:
        """Keep what the user should know beside the result; an error speaks alone."""
        self.notes.append(text)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, float], None]]:
        """Yield `update(stage, fraction)`, drawn on stderr while the block runs."""
        console = Console(file=sys.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        silent = self.quiet or not console.is_terminal
        bar = Progress(
            *columns, console=console, transient=True, disable=silent, redirect_stdout=False, redirect_stderr=False
        )
        with bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda stage, fraction: bar.update(task, description=stage, completed=fraction)

    @contextmanager
    def chatter_hidden(self) -> Iterator[None]:
        """Keep other libraries' prints, logs and warnings from the terminal, unless debugging."""
        if self.debug:
            yield
            return
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with (
                warnings.catch_warnings(),
                redirect_stdout(io.StringIO()),
                redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)

    def _say_notes(self) -> None:
        for text in [] if self.quiet else self.notes:
            print(f"note: {text}", file=sys.stderr)
        self.notes.clear()


def plain_record(value: object) -> Any:
    """A result as dictionaries, lists, numbers and text, for JSON."""
    match value:
        case Enum():
            return value.value
        case Path():
            return str(value)
        case Mapping():
            return {str(key): plain_record(item) for key, item in value.items()}
        case list() | tuple():
            return [plain_record(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {item.name: plain_record(getattr(value, item.name)) for item in dataclasses.fields(value)}
        case _:
            return value
