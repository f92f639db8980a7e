"""Packages that only some jobs need: which extra of this distribution brings each, and one sentence where it lacks.

`reparameterize` and what belongs to it need none of them.
"""

from __future__ import annotations

import importlib.util

from repfx.errors import UserError

EXTRA_OF = {  # package -> the extra of pyproject.toml that installs it
    "timm": "models",
    "torchvision": "models",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "coremltools": "coreml",
    "matplotlib": "plot",
}


def require(job: str, *packages: str) -> None:
    """Raise `UserError` unless all `packages` are installed; none is imported.

    Args:
        job: what needs them, as the subject of a sentence: "writing an .onnx file".
        packages: names to import; those that no extra brings are to be installed by their own name.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        extra = EXTRA_OF.get(missing[0])
        remedy = f'pip install "repfx[{extra}]"' if extra else f"pip install {' '.join(missing)}"
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{job} needs {' and '.join(missing)}, which {verb} not installed; {remedy}.")
