"""Writing a compiled module for a runtime: Core ML, ONNX, or a program of torch.export; or what others add.

Every writer takes the compiled module and example inputs, and leaves the whole file or nothing.
Spatial sizes are fixed to the example's, the batch is free unless said otherwise, and whatever the
module computes from sizes alone (border terms) is stored as a constant.
"""

from repfx.export.coreml import CORE_ML, CoreMLPackage, Precision, coreml_operations, count_coreml_convs, to_coreml
from repfx.export.onnx import ONNX, OnnxFile, to_onnx
from repfx.export.program import ExportError
from repfx.export.pt2 import PT2, SavedProgram, to_pt2
from repfx.export.safetensors import SAFETENSORS
from repfx.export.targets import (
    TARGETS,
    Job,
    Option,
    Target,
    Written,
    check_target,
    recommended_objective,
    register,
    target_of,
    write,
)

for _target in (SAFETENSORS, PT2, ONNX, CORE_ML):
    register(_target)


__all__ = [
    "TARGETS",
    "CoreMLPackage",
    "ExportError",
    "Job",
    "OnnxFile",
    "Option",
    "Precision",
    "SavedProgram",
    "Target",
    "Written",
    "check_target",
    "coreml_operations",
    "count_coreml_convs",
    "recommended_objective",
    "register",
    "target_of",
    "to_coreml",
    "to_onnx",
    "to_pt2",
    "write",
]
