"""A process that examines one subject after another, and is ended when one takes too long.

A model that hangs, or takes the interpreter down with it, costs its own row and nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.sweep_examine import Row, examine
from benchmarks.sweep_subjects import Subject

_SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """One process, started when it is first needed and again after it was ended."""

    def __init__(self, limit_seconds: float, *, shapes: bool = True, verify: bool = False) -> None:
        self.limit_seconds = limit_seconds
        self.options = {"shapes": shapes, "verify": verify}
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def examine(self, subject: Subject) -> Row:
        """The row of one subject; a time limit or a crash is a row too."""
        pipe = self._started()
        pipe.send((subject, self.options))
        if not pipe.poll(self.limit_seconds):
            self.close()
            return _failed(subject, "time limit", f"took more than {self.limit_seconds:.0f} s", self.limit_seconds)
        try:
            return pipe.recv()
        except EOFError:
            self.close()
            return _failed(subject, "exception", "the process died (killed for memory, or a crash in native code)", 0)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(120):  # imports; not the model's time
            raise RuntimeError("the sweep's process did not start within two minutes")
        self._pipe.recv()
        return self._pipe


def _failed(subject: Subject, status: str, message: str, seconds: float) -> Row:
    return Row(subject.spec, subject.family, subject.size, status, "", message, total_seconds=seconds)


def _serve(pipe: Connection) -> None:
    pipe.send("ready")
    while True:
        try:
            subject, options = pipe.recv()
        except EOFError:
            return
        row = examine(subject, **options)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            pipe.send(row)
