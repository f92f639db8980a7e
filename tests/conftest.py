"""Every worker computes on its share of the cores, and no test leaves a target or an objective to those after it.

More threads than cores make the tests five times slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_THREADS = str(max(1, (os.cpu_count() or 1) // _WORKERS))
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = _THREADS  # read when torch is imported, here and in the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

from repfx.export import TARGETS  # noqa: E402
from repfx.rewriting import OBJECTIVES  # noqa: E402

torch.set_num_threads(int(_THREADS))


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    """Examples and pages register values of their own."""
    targets, objectives = dict(TARGETS.own), dict(OBJECTIVES.own)
    yield
    TARGETS.own, OBJECTIVES.own = targets, objectives
