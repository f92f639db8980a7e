"""A compiled module as a Core ML package (`.mlpackage`, an ML program).

Conversion needs no Mac; running does.  So what is checked here is the package as it reads back: its
specification loads and its convolutions are counted.  The old neural-network format is not offered:
nothing outside a Mac can execute or check it.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repfx.errors import UserError, first_line
from repfx.export.program import (
    FOR_RUNTIMES,
    ExportError,
    export_program,
    flat_outputs,
    port_names,
    sentence_of,
)
from repfx.export.targets import Job, Option, Target, Written
from repfx.extras import require
from repfx.io import check_writable, whole_output

PACKAGES = ("coremltools",)  # the extra `coreml`
Precision = Literal["fp16", "fp32"]
PRECISIONS = ("fp16", "fp32")
SYSTEMS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")  # the first with ML programs, and later
LARGEST_BATCH = 64  # of a free-batch package; Core ML wants an upper bound


@dataclass(frozen=True)
class CoreMLPackage:
    """What was written, as it reads back."""

    path: Path
    operations: Counter[str]  # MIL operations by type, constants left out
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: Precision
    target: str

    @property
    def convolutions(self) -> int:
        """`conv` and `conv_transpose` operations of the program."""
        return self.operations["conv"] + self.operations["conv_transpose"]


def to_coreml(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: str | Path,
    *,
    precision: Precision = "fp16",
    minimum_deployment_target: str = "iOS16",
    dynamic_batch: bool = False,
) -> CoreMLPackage:
    """Convert `module` for inputs like `example_inputs` (B, C, H, W) and save the package at `path`.

    Inputs and outputs are float32 arrays whatever the `precision` inside; the inputs are named `input`
    or `input_0, ...`, outputs `output` or `output_0, ...`.  The batch is the example's, or 1 to 64
    with `dynamic_batch`.  Raises `UserError`: `ExportError` where an operation has no Core ML form.
    """
    path = Path(path)
    require(f"{path}: writing a Core ML package", *PACKAGES)
    check_writable(path, directory=True)
    _check_options(precision, minimum_deployment_target)
    if any(value.dtype != torch.float32 for value in example_inputs):
        raise UserError(f"{path}: Core ML conversion starts from float32; call .float() on model and inputs.")
    with torch.no_grad():
        outputs = len(flat_outputs(module(*example_inputs)))
    program = export_program(module, example_inputs, dynamic_batch=dynamic_batch, largest_batch=LARGEST_BATCH)
    ct = _coremltools()
    # the converter draws progress bars of its own on stderr
    with whole_output(path, directory=True) as staged, redirect_stderr(io.StringIO()):
        package = _converted(
            path,
            program,
            inputs=_input_types(example_inputs, dynamic_batch),
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in port_names("output", outputs)],
            minimum_deployment_target=getattr(ct.target, minimum_deployment_target),
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
        )
        package.save(str(staged))
        description = _specification(staged).description
        operations = coreml_operations(staged)
    return CoreMLPackage(
        path,
        operations,
        tuple(entry.name for entry in description.input),
        tuple(entry.name for entry in description.output),
        precision,
        minimum_deployment_target,
    )


def _check_options(precision: str, system: str) -> None:
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; Core ML computes in {' or '.join(PRECISIONS)}.")
    if system not in SYSTEMS:
        raise UserError(f"unknown deployment target {system!r}; it is {' or '.join(SYSTEMS)}.")


def _input_types(example_inputs: tuple[Tensor, ...], dynamic_batch: bool) -> list[Any]:
    """What the converter wants to know of each input: its name and its sizes."""
    ct = _coremltools()
    types = []
    for name, value in zip(port_names("input", len(example_inputs)), example_inputs):
        batch, *sizes = value.shape
        taken = ct.RangeDim(1, LARGEST_BATCH) if dynamic_batch else batch
        types.append(ct.TensorType(name=name, shape=(taken, *sizes), dtype=np.float32))
    return types


def _converted(path: Path, program: ExportedProgram, **options: object) -> Any:
    """The program as coremltools gives it.  Raises `ExportError`, and `OSError` on a full disk."""
    try:
        return _coremltools().convert(
            program.run_decompositions({}), convert_to="mlprogram", skip_model_load=True, **options
        )
    except Exception as error:  # the converter raises whatever its translations meet
        if "FileWriter" in str(error):
            raise OSError("the converter could not write its temporary files, as on a full disk") from error
        raise ExportError(f"{path}: Core ML cannot express this module: {first_line(error)}.") from error


def coreml_operations(path: str | Path) -> Counter[str]:
    """The MIL operations of a package's main function by type, constants left out."""
    program = _specification(Path(path)).mlProgram
    if "main" not in program.functions:
        raise UserError(f"{path}: holds no ML program; it may be of the old neural-network format.")
    blocks = program.functions["main"].block_specializations.values()
    types = (operation.type for block in blocks for operation in block.operations)
    return Counter(type_ for type_ in types if type_ != "const")


def count_coreml_convs(path: str | Path) -> int:
    """How many convolutions the package executes (`conv` and `conv_transpose`)."""
    operations = coreml_operations(path)
    return operations["conv"] + operations["conv_transpose"]


def _specification(path: Path) -> Any:
    """The package's protobuf specification, read without the Core ML framework."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such Core ML package.")
    require(f"{path}: reading a Core ML package", *PACKAGES)
    try:
        return _coremltools().models.MLModel(str(path), skip_model_load=True).get_spec()
    except Exception as error:  # a damaged package raises almost anything
        raise UserError(f"{path}: is not a Core ML package that reads back: {first_line(error)}.") from error


def _coremltools() -> Any:
    """coremltools, without its complaints about the Mac-only half that is absent elsewhere."""
    with _silent_logging():
        import coremltools

    return coremltools


@contextmanager
def _silent_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _write(job: Job) -> Written:
    package = to_coreml(job.module, job.inputs, job.path, **job.options)  # type: ignore[arg-type]  # as checked
    checked = (
        f"{package.precision} for {package.target} and later; read back as a specification, "
        "not run: Core ML runs on Apple systems only"
    )
    return Written(sentence_of(job, package.convolutions, checked, dynamic_batch=False), package)


PRECISION = Option("precision", "fp16", "what the network computes in", PRECISIONS)
SYSTEM = Option("minimum_deployment_target", "iOS16", "the oldest system", SYSTEMS)
CORE_ML = Target(
    ending=".mlpackage",
    about="Core ML",
    write=_write,
    objective="macs",
    because=FOR_RUNTIMES,
    options=(PRECISION, SYSTEM),
    is_directory=True,
    needs=PACKAGES,
)
