"""A block that nobody has published: fuse it, read the report, ask why something stayed.

python examples/python_api.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import repfx


class Block(nn.Module):
    """A biased 1x5 then 5x1 pair, a dilated 3x3, a scaled identity; summed, normalised, activated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.row = nn.Conv2d(channels, channels, (1, 5), padding=(0, 2), groups=channels)
        self.column = nn.Conv2d(channels, channels, (5, 1), padding=(2, 0), groups=channels)
        self.dilated = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=channels, bias=False)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.column(self.row(x)) + self.dilated(x) + self.scale * x))


def main() -> None:
    """Two blocks in a row, then three questions about the result."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), Block(16), Block(16)).eval()
    repfx.randomize_statistics(model)  # an untrained batch norm would hide mistakes
    x = torch.randn(1, 3, 64, 48)

    fused = repfx.reparameterize(model, (x,))
    for merge in repfx.report(fused).merges:
        print(f"{merge.path}: {merge.before}  ->  {merge.after}")
    for decline in repfx.report(fused).declines:
        print(f"declined: {decline}")
    print(repfx.verify(model, fused, (x,)))
    print("smaller than the kernel:", torch.allclose(model(x[..., :7, :3]), fused(x[..., :7, :3]), atol=1e-5))

    planned = repfx.explain(model, (x,), exclude=["1.norm"])
    print(f"with 1.norm excluded, {planned.after.batch_norms} batch norm would be left")


if __name__ == "__main__":
    main()
