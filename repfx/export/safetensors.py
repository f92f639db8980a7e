"""A compiled module as weights alone, which `repfx load` and `repfx.io.load_fused` rebuild the module around."""

from __future__ import annotations

from repfx.export.targets import Job, Target, Written
from repfx.io import save_fused


def _write(job: Job) -> Written:
    record = save_fused(
        job.module,
        job.path,
        model=job.model,
        options=job.model_options,
        exclude=job.exclude,
        example_inputs=job.inputs,
    )
    sentence = f"the fused weights and no code; `repfx load {job.path}` rebuilds the model"
    return Written(sentence, {"path": job.path, "record": record})


ABOUT = "fused weights, no code; `repfx load` rebuilds the model"
BECAUSE = "the fewest convolutions; the default where weights are saved for PyTorch"
SAFETENSORS = Target(".safetensors", ABOUT, _write, "single-branch", BECAUSE)
