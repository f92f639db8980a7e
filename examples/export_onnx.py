"""A fused network as an ONNX file, classifying real images in onnxruntime.

python examples/export_onnx.py [OUT.onnx]
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import timm

import repfx
import repnext
from repfx.export import recommended_objective, to_onnx


def main(path: Path) -> None:
    """Fuse for the runtime, write, run."""
    model = timm.create_model("repnext_nano", pretrained=True).eval()
    inputs, labels = repnext.test_images()
    fused = repfx.reparameterize(model, (inputs[:1],), objective=recommended_objective(path))
    file = to_onnx(fused, (inputs[:1],), path)
    print(f"wrote {path}: {dict(file.operations)}")

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": inputs.numpy()})
    right = int((scores.argmax(1) == labels.numpy()).sum())
    print(f"onnxruntime classifies {right} of {len(labels)} test images correctly")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "repnext_nano.onnx"))
