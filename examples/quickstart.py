"""The main job: a trained multi-branch network becomes a single-branch one, and a Core ML package.

    python examples/quickstart.py [DIRECTORY]

Takes `repnext_nano`, trained on Fashion-MNIST and shipped with its weights and 500 test images; nothing is
downloaded.  Fuses it, classifies the images with both networks, and writes DIRECTORY/repnext_nano.mlpackage.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import repfx
import repnext
from repfx.export import recommended_objective, to_coreml


def main(directory: Path) -> None:
    """Fuse, compare, export."""
    directory.mkdir(exist_ok=True)
    model = timm.create_model("repnext_nano", pretrained=True).eval()
    inputs, labels = repnext.test_images()

    fused = repfx.reparameterize(model, (inputs[:1],))
    print(row("executed in one forward", "before", "after"))
    for what, before, after in repfx.report(fused).counts():
        print(row(what, before, after))

    old, new = logits(model, inputs), logits(fused, inputs)
    same = int((old.argmax(1) == new.argmax(1)).sum())
    print(row("test accuracy", accuracy(old, labels), accuracy(new, labels)))
    print(f"{same} of {len(labels)} images are classified alike; float64 {repfx.report(fused).equivalence}")

    path = directory / "repnext_nano.mlpackage"
    objective = recommended_objective(path)
    phone = repfx.reparameterize(model, (inputs[:1],), objective=objective)
    package = to_coreml(phone, (inputs[:1],), path)
    print(f"wrote {path}: objective {objective}, {package.convolutions} convolutions, {package.precision}")


def row(what: str, before: str, after: str) -> str:
    """One line of the table."""
    return f"{what:<26}{before:>12}{after:>12}"


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Class scores (N, 10)."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in inputs.split(100)])


def accuracy(scores: Tensor, labels: Tensor) -> str:
    """Share of images whose highest score is the label's."""
    return f"{float((scores.argmax(1) == labels).float().mean()):.1%}"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
