"""Which submodules the user leaves out: by path, by glob or by type."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

Exclusion = Sequence[str | type]


def excluded_paths(modules: Sequence[tuple[str, nn.Module]], exclude: Exclusion) -> set[str]:
    """Module paths that `exclude` (paths, globs, types) names."""
    patterns = [e for e in exclude if isinstance(e, str)]
    types = tuple(e for e in exclude if isinstance(e, type))
    return {path for path, module in modules if isinstance(module, types) or _matches(path, patterns)}


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
