"""Writing a compiled module for a runtime: Core ML, ONNX, or a program of torch.export.

Every writer takes the compiled module and example inputs, and leaves the whole file or nothing.
Spatial sizes are fixed to the example's, the batch is free unless said otherwise, and whatever the
module computes from sizes alone (border terms) is stored as a constant.
"""

from __future__ import annotations

from pathlib import Path

from repfx.errors import UserError
from repfx.export.coreml import PACKAGES as COREML_PACKAGES
from repfx.export.coreml import TARGETS, CoreMLPackage, Precision, coreml_operations, count_coreml_convs, to_coreml
from repfx.export.onnx import PACKAGES as ONNX_PACKAGES
from repfx.export.onnx import OnnxFile, to_onnx
from repfx.export.program import ExportError
from repfx.export.pt2 import SavedProgram, to_pt2
from repfx.extras import require

RECOMMENDED_OBJECTIVE = {".safetensors": "single-branch", ".pt2": "macs", ".onnx": "macs", ".mlpackage": "macs"}
OBJECTIVE_BECAUSE = {
    "single-branch": "the fewest convolutions; the default where weights are saved for PyTorch",
    "macs": "recommended for this runtime, where enlarged kernels cost more time than they save",
}
PACKAGES = {".onnx": ONNX_PACKAGES, ".mlpackage": COREML_PACKAGES}  # beyond those that repfx itself needs


def recommended_objective(path: str | Path) -> str:
    """The objective that suits the runtime that `path`'s ending names.  Raises `UserError`."""
    ending = Path(path).suffix
    if ending not in RECOMMENDED_OBJECTIVE:
        known = ", ".join(RECOMMENDED_OBJECTIVE)
        raise UserError(f"{path}: unknown ending {ending or '(none)'!r}; an output ends in {known}.")
    return RECOMMENDED_OBJECTIVE[ending]


def require_packages(path: str | Path) -> None:
    """Raise `UserError` unless what writing `path` needs is installed."""
    require(f"{path}: writing it", *PACKAGES.get(Path(path).suffix, ()))


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
    "require_packages",
    "to_coreml",
    "to_onnx",
    "to_pt2",
]
