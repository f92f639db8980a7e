"""`repfx fuse`: a multi-branch model and its weights in, the single-branch file out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import repfx
from repfx import export
from repfx.cli import options as given
from repfx.cli.output import Wish, write_output
from repfx.cli.subject import Request, check_patterns, load_subject
from repfx.cli.terminal import Terminal
from repfx.errors import MismatchError

HELP = """Fuse MODEL and write it by the ending of OUT.

\b
.safetensors  fused weights, no code; `repfx load` rebuilds the model
.pt2          a torch.export program
.onnx         checked by onnx and compared in onnxruntime
.mlpackage    Core ML

Prints what was merged, what was declined and why, the operations before and after, and the measured
difference. OUT appears whole or not at all.

\b
Examples:
  repfx fuse repnext_nano --pretrained -o nano.safetensors
  repfx fuse repnext_m1 --checkpoint m1.pth -o m1.mlpackage
  repfx fuse timm:mobileone_s0 --num-classes 10 -c mine.ckpt -o mine.onnx
  repfx fuse mynet.py:make_net --input-size 3,160,96 -o net.pt2
"""


class Precision(str, Enum):  # noqa: UP042  # typer shows the values of a str enum
    """What Core ML computes in."""

    FP16 = "fp16"
    FP32 = "fp32"


def fuse(
    model: given.Model,
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="Output: .safetensors, .pt2, .onnx or .mlpackage.",
            show_default=False,
        ),
    ],
    checkpoint: given.CheckpointFile = None,
    checkpoint_key: given.CheckpointKey = None,
    objective: given.Objective = None,
    input_size: given.InputSize = None,
    exclude: given.Exclude = None,
    num_classes: given.NumClasses = None,
    model_option: given.ModelOption = None,
    pretrained: given.Pretrained = False,
    precision: Annotated[Precision, typer.Option(help="Core ML only: what the network computes in.")] = Precision.FP16,
    minimum_deployment_target: Annotated[
        str,
        typer.Option(metavar="TARGET", help=f"Core ML only: the oldest system, {', '.join(export.TARGETS)}."),
    ] = "iOS16",
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help=".pt2 and .onnx: a batch of one instead of any batch.")
    ] = False,
    trust: given.Trust = False,
    quiet: given.Quiet = False,
    json: given.Json = False,
    debug: given.Debug = False,
) -> int:
    terminal = Terminal(quiet, json, debug)
    wish = Wish(out, precision.value, minimum_deployment_target, fixed_batch)
    wish.check()
    chosen = given.chosen_objective(objective, export.recommended_objective(out))
    because = "as asked" if objective else export.OBJECTIVE_BECAUSE[chosen]
    request = Request(
        model,
        given.parsed_options(model_option, num_classes),
        pretrained,
        checkpoint,
        checkpoint_key,
        given.parsed_size(input_size),
        trust,
    )
    subject = load_subject(request, terminal)
    patterns = tuple(exclude or ())
    check_patterns(subject.model, patterns)
    with terminal.progress() as update:
        fused = repfx.reparameterize(subject.model, subject.inputs, objective=chosen, exclude=patterns, progress=update)
        report = repfx.report(fused)
        equality = report.equivalence or repfx.verify(subject.model, fused, example_inputs=subject.inputs)
        if equality.tensors and not equality.equal:
            raise MismatchError(f"the fused {model} is {equality}; that is our bug")
        update(f"writing {out}", 0.95)
        written = write_output(fused, subject.inputs, wish, request, patterns, terminal)
    terminal.show(report, f"objective {chosen}: {because}.", written.sentence)
    terminal.show_json(
        {
            "objective": chosen,
            "objective_because": because,
            "report": report,
            "equivalence": {**vars(equality), "equal": equality.equal},
            "output": written.record,
        }
    )
    return 0
