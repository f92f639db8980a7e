"""`repfx fuse`: a multi-branch model and its weights in, the single-branch file out."""

from __future__ import annotations

from typing import Annotated

import typer

import repfx
from repfx.cli import options as given
from repfx.cli.output import Wish, write_output
from repfx.cli.subject import Request, check_patterns, load_subject
from repfx.cli.terminal import Terminal
from repfx.errors import MismatchError

HELP = """Fuse MODEL and write it by the ending of OUT.

\b
{targets}

Prints what was merged, what was declined and why, the operations before and after, and the measured
difference. OUT appears whole or not at all.

\b
Examples:
  repfx fuse repnext_nano --pretrained -o nano.safetensors
  repfx fuse repnext_m1 --checkpoint m1.pth -o m1.mlpackage
  repfx fuse timm:mobileone_s0 --num-classes 10 -c mine.ckpt -o mine.onnx
  repfx fuse mynet.py:make_net --input-size 3,160,96 -o net.pt2
"""


def fuse(
    model: given.Model,
    out: given.Out,
    checkpoint: given.CheckpointFile = None,
    checkpoint_key: given.CheckpointKey = None,
    objective: given.Objective = None,
    input_size: given.InputSize = None,
    exclude: given.Exclude = None,
    num_classes: given.NumClasses = None,
    model_option: given.ModelOption = None,
    pretrained: given.Pretrained = False,
    precision: given.Precision = None,
    minimum_deployment_target: Annotated[
        str | None,
        typer.Option(metavar="SYSTEM", help="{option minimum_deployment_target}"),
    ] = None,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="{option fixed_batch}")] = False,
    target_option: given.TargetOption = None,
    trust: given.Trust = False,
    quiet: given.Quiet = False,
    json: given.Json = False,
    debug: given.Debug = False,
) -> int:
    terminal = Terminal(quiet, json, debug)
    target_options = given.parsed_target_options(
        target_option,
        precision=precision,
        minimum_deployment_target=minimum_deployment_target,
        fixed_batch=fixed_batch or None,
    )
    wish = Wish(out, target_options)
    target = wish.check()
    chosen = given.chosen_objective(objective, target.objective)
    because = "as asked" if objective else target.because
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
    terminal.show(report, f"objective {chosen}: {because}.", f"wrote {out}: {written.sentence}")
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
