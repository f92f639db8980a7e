"""A compiled module as a `.pt2` file: a program of torch.export that PyTorch loads without our code."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from repfx.export.program import (
    FIXED_BATCH,
    FOR_RUNTIMES,
    export_program,
    flat_outputs,
    measured_error,
    sentence_of,
)
from repfx.export.targets import Job, Target, Written
from repfx.io import check_writable, whole_output


@dataclass(frozen=True)
class SavedProgram:
    """What was written, as it reads back."""

    path: Path
    operations: Counter[str]  # ATen operations by name, e.g. "conv2d"
    relative_error: float  # of the program loaded back, against the module
    dynamic_batch: bool

    @property
    def convolutions(self) -> int:
        """Convolutions executed by the program."""
        return sum(n for name, n in self.operations.items() if name.startswith("conv"))


def to_pt2(
    module: nn.Module, example_inputs: tuple[Tensor, ...], path: str | Path, *, dynamic_batch: bool = True
) -> SavedProgram:
    """Export `module` for inputs like `example_inputs` (B, C, H, W) and save it at `path`.

    The program takes any batch from 1 (`dynamic_batch`) and the example's sizes.  It is loaded back
    and run against `module` before the file appears.  Raises `UserError`.
    """
    path = Path(path)
    check_writable(path)
    program = export_program(module, example_inputs, dynamic_batch=dynamic_batch)
    archive = io.BytesIO()  # torch's own file writer aborts the process on a full disk
    torch.export.save(program, archive)
    with whole_output(path) as staged:
        staged.write_bytes(archive.getbuffer())
        loaded = torch.export.load(staged)
        runnable = loaded.module()
        error = measured_error(
            module, lambda inputs: flat_outputs(runnable(*inputs)), example_inputs, dynamic_batch=dynamic_batch
        )
        calls = [node.target for node in loaded.graph.nodes if node.op == "call_function"]
        operations = Counter(str(getattr(target, "__name__", target)).split(".")[0] for target in calls)
    return SavedProgram(path, operations, error, dynamic_batch)


def _write(job: Job) -> Written:
    free = not job.options["fixed_batch"]
    program = to_pt2(job.module, job.inputs, job.path, dynamic_batch=free)
    checked = f"loaded back, it differs by {program.relative_error:.1e} (relative)"
    return Written(sentence_of(job, program.convolutions, checked, dynamic_batch=free), program)


PT2 = Target(".pt2", "a torch.export program", _write, "macs", FOR_RUNTIMES, (FIXED_BATCH,))
