"""The `repfx` program: its commands, and the border where errors become one sentence and a code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

import repfx
from repfx.cli.current import CurrentHelp
from repfx.cli.draw import HELP as DRAW_HELP
from repfx.cli.draw import draw
from repfx.cli.explain import HELP as EXPLAIN_HELP
from repfx.cli.explain import explain
from repfx.cli.fuse import HELP as FUSE_HELP
from repfx.cli.fuse import fuse
from repfx.cli.load import HELP as LOAD_HELP
from repfx.cli.load import load
from repfx.cli.verify import HELP as VERIFY_HELP
from repfx.cli.verify import verify
from repfx.errors import MismatchError, UserError, first_line

OUR_BUG, USER_MISTAKE, INTERRUPTED = 1, 2, 130
ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # click's own or typer's copy of it

HELP = """Compute what a multi-branch network is, and write it back as the fewest convolutions.

The result is exactly equal up to rounding, and measured to be.

\b
Start here:
  repfx explain repnext_nano
  repfx fuse repnext_nano --pretrained -o nano.mlpackage
"""

app = typer.Typer(
    name="repfx",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    (fuse, FUSE_HELP),
    (explain, EXPLAIN_HELP),
    (verify, VERIFY_HELP),
    (load, LOAD_HELP),
    (draw, DRAW_HELP),
)
for command, text in COMMANDS:
    app.command(cls=CurrentHelp, help=text)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"repfx {repfx.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and leave with its exit code."""
    signal.signal(signal.SIGTERM, _leave)  # so that half-written files are cleaned up
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 not equal or our bug, 2 a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    try:
        code = int(app(args=arguments, prog_name="repfx", standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _answer(error, debug)


def _answer(error: BaseException, debug: bool) -> int:
    """Say in one sentence what went wrong, and whose mistake it is by the exit code."""
    match error:
        case UserError() | ClickException():
            return _complain(_sentence(error), USER_MISTAKE)
        case MismatchError():
            return _complain(f"{error}; nothing was written.", OUR_BUG)
        case KeyboardInterrupt() | typer.Abort():
            return _complain("interrupted; nothing was written.", INTERRUPTED)
        case OSError(errno=errno.EPIPE):
            _close_stdout()
            return 0
        case OSError(errno=errno.ENOSPC):
            _close_stdout()
            return _complain("the result cannot be printed: no space left on the device.", USER_MISTAKE)
        case _:
            more = "" if debug else " with the output of the same command and --debug"
            said = f"internal error, our bug and not yours: {first_line(error)}; please report it{more}."
            return _complain(said, OUR_BUG)


def _close_stdout() -> None:
    """The reader of our output left, or its disk is full: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    """One line; empty where no command was given, for then typer has shown the help."""
    text = error.format_message() if isinstance(error, ClickException) else str(error)  # type: ignore[attr-defined]
    line = " ".join(text.split())
    return line if not line or line.endswith((".", "?", "!")) else f"{line}."


def _complain(sentence: str, code: int) -> int:
    if sentence:
        print(f"repfx: {sentence}", file=sys.stderr)
    return code


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)
