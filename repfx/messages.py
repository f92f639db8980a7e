"""Turning somebody else's exception into one line of ours."""

from __future__ import annotations

import re

LIMIT = 200  # characters; enough for a file name and a cause


def first_line(error: BaseException) -> str:
    """The exception's kind and the first line of its text, without a full stop, at most `LIMIT` long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    if not lines:
        return kind
    text = re.sub(r"\x1b\[[0-9;]*m", "", lines[0]).rstrip(" .:")
    text = text if len(text) <= LIMIT else f"{text[: LIMIT - 3]}..."
    return f"{kind}: {text}"
