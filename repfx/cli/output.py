"""Where the command line asks for a file: checked before the work, written after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from repfx import export
from repfx.cli.subject import Request
from repfx.cli.terminal import Terminal
from repfx.export import Job, Written


@dataclass(frozen=True)
class Wish:
    """Where to write and how, as the command line says it."""

    path: Path
    options: Mapping[str, object] = field(default_factory=dict)  # those that were given

    def check(self) -> export.Target:
        """The target, where the path could be written as things stand.  Raises `UserError`."""
        return export.check_target(self.path, self.options)


def write_output(
    fused: nn.Module,
    inputs: tuple[Tensor, ...],
    wish: Wish,
    request: Request,
    exclude: tuple[str, ...],
    terminal: Terminal,
) -> Written:
    """Write `fused` at the wished path.  Raises `UserError`, leaving the path as it was."""
    job = Job(fused, inputs, wish.path, wish.options, request.spec, request.options, exclude)
    with terminal.chatter_hidden():
        return export.write(job)
