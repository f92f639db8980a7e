"""Writing files whole or not at all.

Owns one promise: what stands at an output path is either what stood there before or the complete
new file (or directory, for `.mlpackage`), never a part of it.  It refuses to create parent
directories: a path in a directory that does not exist is more often a typing error.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repfx.errors import UserError


def check_writable(path: Path, *, directory: bool = False) -> None:
    """Raise `UserError` unless a file (or directory) could be written at `path` as things stand."""
    parent = path.parent
    if not parent.is_dir():
        raise UserError(f"{path}: the directory {parent} does not exist; create it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the directory {parent} is not writable; choose another output path.")
    if directory and path.exists() and not path.is_dir():
        raise UserError(f"{path}: a file of that name is in the way of the package; remove it or rename.")
    if not directory and path.is_dir():
        raise UserError(f"{path}: a directory of that name is in the way of the file; remove it or rename.")


@contextmanager
def whole_output(path: Path, *, directory: bool = False) -> Iterator[Path]:
    """Yield a path of the same name in a hidden sibling directory; move it to `path` on success.

    On any error the hidden directory goes and `path` stays as it was.  An operating-system error
    (disk full, no permission) becomes a `UserError`.
    """
    check_writable(path, directory=directory)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield staging / path.name
            _move_over(staging / path.name, path, staging / "replaced")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}.") from error


def _move_over(new: Path, path: Path, aside: Path) -> None:
    """Put `new` at `path`; a directory already there steps aside first and returns if that fails."""
    if not (new.is_dir() and path.is_dir()):
        os.replace(new, path)
        return
    os.rename(path, aside)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(aside, path)
        raise
