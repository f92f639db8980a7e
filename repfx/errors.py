"""What is raised: the user's mistake, and our bug; and somebody else's exception as one line of ours.

A refusal that stops nothing is a value: `repfx.decline`.
"""

from __future__ import annotations

import re

LIMIT = 200  # characters; enough for a file name and a cause


class UserError(Exception):
    """A mistake of the caller's: one sentence that names the subject, the fact and the remedy."""


class TrainingModeError(UserError):
    """The model holds batch norms in training mode; folding them would change its meaning."""


class InputError(UserError, ValueError):
    """A compiled module was called with an argument or a size for which it was not compiled."""


class MismatchError(Exception):
    """Our bug: a compiled model is not the original.  It is raised instead of returning that model."""


def first_line(error: BaseException) -> str:
    """The exception's kind and the first line of its text, without a full stop, at most `LIMIT` long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    if not lines:
        return kind
    text = re.sub(r"\x1b\[[0-9;]*m", "", lines[0]).rstrip(" .:")
    text = text if len(text) <= LIMIT else f"{text[: LIMIT - 3]}..."
    return f"{kind}: {text}"
