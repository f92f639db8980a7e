"""Writing a compiled module for a runtime: Core ML, ONNX, or a program of torch.export.

Every writer takes the compiled module and example inputs, and leaves the whole file or nothing.
Spatial sizes are fixed to the example's, the batch is free unless said otherwise, and whatever the
module computes from sizes alone (border terms) is stored as a constant.
"""

from __future__ import annotations

from pathlib import Path

from repfx.errors import UserError
from repfx.export.coreml import TARGETS, CoreMLPackage, Precision, coreml_operations, count_coreml_convs, to_coreml
from repfx.export.onnx import OnnxFile, to_onnx
from repfx.export.program import ExportError
from repfx.export.pt2 import SavedProgram, to_pt2

RECOMMENDED_OBJECTIVE = {".safetensors": "single-branch", ".pt2": "macs", ".onnx": "macs", ".mlpackage": "macs"}
OBJECTIVE_BECAUSE = {
    "single-branch": "the fewest convolutions; the default where weights are saved for PyTorch",
    "macs": "recommended for this runtime, where enlarged kernels cost more time than they save",
}


def recommended_objective(path: str | Path) -> str:
    """The objective that suits the runtime that `path`'s ending names.  Raises `UserError`."""
    ending = Path(path).suffix
    if ending not in RECOMMENDED_OBJECTIVE:
        known = ", ".join(RECOMMENDED_OBJECTIVE)
        raise UserError(f"{path}: unknown ending {ending or '(none)'!r}; an output ends in {known}.")
    return RECOMMENDED_OBJECTIVE[ending]


__all__ = [
    "OBJECTIVE_BECAUSE",
    "RECOMMENDED_OBJECTIVE",
    "TARGETS",
    "CoreMLPackage",
    "ExportError",
    "OnnxFile",
    "Precision",
    "SavedProgram",
    "coreml_operations",
    "count_coreml_convs",
    "recommended_objective",
    "to_coreml",
    "to_onnx",
    "to_pt2",
]
