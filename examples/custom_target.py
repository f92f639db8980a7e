"""An export target of one's own: the fused weights as NumPy arrays.  docs/extending.md explains it.

python examples/custom_target.py
"""

from __future__ import annotations

from pathlib import Path

import numpy
import timm
import torch

import repfx
import repnext  # noqa: F401  (registers the family with timm)
from repfx.export import Job, Option, Target, Written, register, write
from repfx.io import whole_output


def write_npz(job: Job) -> Written:
    """All weights of the fused module, by name."""
    arrays = {name: value.numpy() for name, value in job.module.state_dict().items()}
    save = numpy.savez_compressed if job.options["compressed"] else numpy.savez
    with whole_output(job.path) as staged:  # the whole file or none
        save(staged, **arrays)
    return Written(f"{len(arrays)} arrays", {"path": job.path, "arrays": len(arrays)})


NPZ = Target(
    ending=".npz",
    about="the fused weights as NumPy arrays",
    write=write_npz,
    objective="macs",
    because="NumPy multiplies as fast as it reads",
    options=(Option("compressed", True, "whether the archive is compressed"),),
)


def main() -> None:
    """Write a trained network as NumPy arrays, and read one back."""
    register(NPZ)
    x = torch.randn(1, 3, 64, 64)
    fused = repfx.reparameterize(timm.create_model("repnext_nano", pretrained=True).eval(), (x,), objective="macs")
    written = write(Job(fused, (x,), Path("nano.npz"), {"compressed": False}))
    print(f"wrote nano.npz: {written.sentence}")
    head = numpy.load("nano.npz")["head.weight"]
    print(f"equal: {numpy.array_equal(head, fused.get_parameter('head.weight').detach())}")


if __name__ == "__main__":
    main()
