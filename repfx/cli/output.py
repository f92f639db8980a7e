"""Writing a compiled model by the ending of its output path, and saying what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from repfx import export
from repfx.cli.subject import Request
from repfx.cli.terminal import Terminal
from repfx.errors import UserError
from repfx.io import check_writable, save_fused


@dataclass(frozen=True)
class Wish:
    """Where to write and how, as the command line says it."""

    path: Path
    precision: export.Precision = "fp16"
    target: str = "iOS16"
    fixed_batch: bool = False

    def check(self) -> None:
        """Raise `UserError` unless the path could be written as things stand."""
        export.recommended_objective(self.path)
        export.require_packages(self.path)
        check_writable(self.path, directory=self.path.suffix == ".mlpackage")
        if self.target not in export.TARGETS:
            raise UserError(f"unknown deployment target {self.target!r}; it is {' or '.join(export.TARGETS)}.")


@dataclass(frozen=True)
class Written:
    """What stands at the path now, in one line for people and one record for programs."""

    sentence: str
    record: object


def write_output(
    fused: nn.Module,
    inputs: tuple[Tensor, ...],
    wish: Wish,
    request: Request,
    exclude: tuple[str, ...],
    terminal: Terminal,
) -> Written:
    """Write `fused` at the wished path.  Raises `UserError`, leaving the path as it was."""
    free = not wish.fixed_batch
    with terminal.chatter_hidden():
        match wish.path.suffix:
            case ".safetensors":
                record = save_fused(
                    fused,
                    wish.path,
                    model=request.spec,
                    options=request.options,
                    exclude=exclude,
                    example_inputs=inputs,
                )
                return Written(
                    f"wrote {wish.path}: the fused weights and no code; `repfx load {wish.path}` rebuilds the model",
                    {"path": wish.path, "record": record},
                )
            case ".pt2":
                program = export.to_pt2(fused, inputs, wish.path, dynamic_batch=free)
                sentence = f"loaded back, it differs by {program.relative_error:.1e} (relative)"
                return Written(_line(wish, program.convolutions, sentence, inputs, free), program)
            case ".onnx":
                file = export.to_onnx(fused, inputs, wish.path, dynamic_batch=free)
                sentence = f"opset {file.opset}; run by onnxruntime, it differs by {file.relative_error:.1e} (relative)"
                return Written(_line(wish, file.convolutions, sentence, inputs, free), file)
            case ".mlpackage":
                package = export.to_coreml(
                    fused, inputs, wish.path, precision=wish.precision, minimum_deployment_target=wish.target
                )
                sentence = (
                    f"{package.precision} for {package.target} and later; read back as a specification, "
                    "not run: Core ML runs on Apple systems only"
                )
                return Written(_line(wish, package.convolutions, sentence, inputs, False), package)
            case ending:
                raise AssertionError(f"no writer for {ending}")


def _line(wish: Wish, convolutions: int, sentence: str, inputs: tuple[Tensor, ...], free: bool) -> str:
    batch = "any batch of" if free else f"batch {inputs[0].shape[0]} of"
    size = "x".join(map(str, inputs[0].shape[1:]))
    return f"wrote {wish.path}: {convolutions} convolutions, {batch} {size}; {sentence}"
