"""A compiled module as an `.onnx` file, checked by onnx and run by onnxruntime before it appears."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from repfx.errors import UserError, first_line
from repfx.export.program import (
    FIXED_BATCH,
    FOR_RUNTIMES,
    ExportError,
    export_program,
    flat_outputs,
    measured_error,
    port_names,
    sentence_of,
)
from repfx.export.targets import Job, Target, Written
from repfx.extras import require
from repfx.io import check_writable, whole_output

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra `onnx`
LARGEST = 2 * 1024**3 - 1  # bytes; what one protobuf message, and so one file, can hold


@dataclass(frozen=True)
class OnnxFile:
    """What was written, as it reads back."""

    path: Path
    operations: Counter[str]  # ONNX nodes by type, e.g. "Conv"
    relative_error: float  # of onnxruntime, against the module
    dynamic_batch: bool
    opset: int

    @property
    def convolutions(self) -> int:
        """Conv and ConvTranspose nodes."""
        return self.operations["Conv"] + self.operations["ConvTranspose"]


def to_onnx(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
) -> OnnxFile:
    """Export `module` for inputs like `example_inputs` (B, C, H, W) to one `.onnx` file at `path`.

    The file takes any batch (`dynamic_batch`) and the example's sizes; `opset` defaults to that of
    torch's exporter.  Inputs are named `input` or `input_0, ...`, outputs `output` or `output_0, ...`.
    Raises `UserError`: `ExportError` where an operation has no ONNX form.
    """
    path = Path(path)
    require(f"{path}: writing an .onnx file", *PACKAGES)
    import onnx

    check_writable(path)
    if sum(value.nbytes for value in module.state_dict().values() if isinstance(value, Tensor)) > LARGEST:
        raise UserError(f"{path}: the weights exceed the 2 GiB that one .onnx file holds; save .pt2 instead.")
    with torch.no_grad():
        outputs = len(flat_outputs(module(*example_inputs)))
    program = export_program(module, example_inputs, dynamic_batch=dynamic_batch)
    try:
        with torch.no_grad():  # as the program was traced: an attention decomposes otherwise where a mask is trained
            translated = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=port_names("input", len(example_inputs)),
                output_names=port_names("output", outputs),
            )
    except Exception as error:  # the exporter wraps whatever its translations raise
        raise ExportError(f"{path}: torch.onnx cannot export this module: {first_line(error)}.") from error
    assert translated is not None
    with whole_output(path) as staged:
        translated.save(staged, external_data=False)
        written = onnx.load(staged)
        onnx.checker.check_model(written, full_check=True)
        difference = _error_in_onnxruntime(module, staged, example_inputs, dynamic_batch)
    operations = Counter(node.op_type for node in written.graph.node)
    versions = [entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx")]
    return OnnxFile(path, operations, difference, dynamic_batch, max(versions))


def _error_in_onnxruntime(
    module: nn.Module, path: Path, example_inputs: tuple[Tensor, ...], dynamic_batch: bool
) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has no kernel for some operation in some dtype
        dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
        remedy = f"; it computes {', '.join(map(str, dtypes))}: call .float() on the model first" if dtypes else ""
        raise ExportError(
            f"onnxruntime cannot run the exported module, so it is not written: {first_line(error)}{remedy}."
        ) from error
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return measured_error(module, run, example_inputs, dynamic_batch=dynamic_batch)


def _write(job: Job) -> Written:
    free = not job.options["fixed_batch"]
    file = to_onnx(job.module, job.inputs, job.path, dynamic_batch=free)
    checked = f"opset {file.opset}; run by onnxruntime, it differs by {file.relative_error:.1e} (relative)"
    return Written(sentence_of(job, file.convolutions, checked, dynamic_batch=free), file)


ABOUT = "checked by onnx and compared in onnxruntime"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX = Target(".onnx", ABOUT, _write, "macs", FOR_RUNTIMES, (FIXED_BATCH,), needs=PACKAGES)
