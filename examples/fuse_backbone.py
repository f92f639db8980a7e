"""A backbone that returns feature maps, fused in place of the one inside a larger model.

    python examples/fuse_backbone.py

Channel orders that a feature map shows to the outside stay as they were, so the neck needs no change.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

import repfx
import repnext  # noqa: F401  # registers the family with timm


class Detector(nn.Module):
    """A backbone with four feature maps and a 1x1 convolution on each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("repnext_nano", features_only=True)
        self.neck = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in self.backbone.feature_info.channels())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [neck(feature) for neck, feature in zip(self.neck, self.backbone(x))]


def main() -> None:
    """Replace the backbone, keep everything else."""
    model = Detector().eval()
    repfx.randomize_statistics(model)
    x = torch.randn(1, 3, 96, 64)
    before = model(x)
    model.backbone = repfx.reparameterize(model.backbone, (x,))
    counts = repfx.report(model.backbone)
    print(f"{counts.before.convolutions} convolutions -> {counts.after.convolutions}")
    for old, new in zip(before, model(x)):
        print(tuple(new.shape), "equal" if torch.allclose(old, new, rtol=1e-3, atol=1e-4) else "DIFFERENT")


if __name__ == "__main__":
    main()
