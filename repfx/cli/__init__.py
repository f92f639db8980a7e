"""The command line: `repfx fuse | explain | verify | load | draw`.

A command reads its arguments, calls the library, prints, and returns an exit code: 0 done, 1 not
equal or our own bug, 2 a mistake in what was asked (one sentence on stderr, never a traceback).
Results go to stdout, progress and notes to stderr.
"""

from repfx.cli.app import main

__all__ = ["main"]
