"""Every worker computes on its share of the cores: more threads than cores make the tests five times slower."""

from __future__ import annotations

import os

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_THREADS = str(max(1, (os.cpu_count() or 1) // _WORKERS))
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = _THREADS  # read when torch is imported, here and in the processes that tests start

import torch  # noqa: E402

torch.set_num_threads(int(_THREADS))
