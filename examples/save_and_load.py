"""Fused weights as one file without code, loaded back into a structure that is derived afresh.

python examples/save_and_load.py [OUT.safetensors]
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch

import repfx
import repnext  # noqa: F401  # registers repnext_nano with timm
from repfx.io import load_fused, read_fused_record, save_fused


def main(path: Path) -> None:
    """Fuse, save, load, compare bit by bit."""
    model = timm.create_model("repnext_nano", pretrained=True).eval()
    fused = repfx.reparameterize(model)
    save_fused(fused, path, model="repnext_nano")
    print(f"wrote {path}: {path.stat().st_size / 2**20:.2f} MiB")

    print(read_fused_record(path))
    loaded = load_fused("repnext_nano", path)  # the name, not the trained model: only structure is needed
    x = torch.randn(2, 3, 64, 64)
    print("bit-equal:", torch.equal(fused(x), loaded(x)))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "repnext_nano.safetensors"))
