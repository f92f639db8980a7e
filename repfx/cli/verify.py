"""`repfx verify`: measure whether the fused model equals the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import repfx
from repfx.cli import options as given
from repfx.cli.subject import Request, check_patterns, load_subject
from repfx.cli.terminal import Terminal
from repfx.errors import UserError
from repfx.io import load_fused

HELP = """Fuse MODEL in memory and compare it with the original, in float64, on several probes.

With --fused the comparison is with a file written earlier. Exit code 0: equal; 1: not equal.

\b
Examples:
  repfx verify repnext_m1 --checkpoint m1.pth
  repfx verify repnext_m1 --checkpoint m1.pth --fused m1.safetensors
  repfx verify timm:mobileone_s0 --random-statistics
"""


def verify(
    model: given.Model,
    fused: Annotated[
        Path | None,
        typer.Option(
            "--fused", metavar="FILE", help="Fused weights (.safetensors) to compare with, instead of fusing now."
        ),
    ] = None,
    random_statistics: Annotated[
        bool,
        typer.Option(
            "--random-statistics",
            help="Give every batch norm random statistics and scales first: a fresh one hides mistakes.",
        ),
    ] = False,
    checkpoint: given.CheckpointFile = None,
    checkpoint_key: given.CheckpointKey = None,
    objective: given.Objective = None,
    input_size: given.InputSize = None,
    exclude: given.Exclude = None,
    num_classes: given.NumClasses = None,
    model_option: given.ModelOption = None,
    pretrained: given.Pretrained = False,
    trust: given.Trust = False,
    quiet: given.Quiet = False,
    json: given.Json = False,
    debug: given.Debug = False,
) -> int:
    terminal = Terminal(quiet, json, debug)
    if fused is not None and (objective or exclude):
        raise UserError("--fused: the file records its own --objective and --exclude; leave them out.")
    if fused is not None and random_statistics:
        raise UserError("--fused: random statistics cannot equal weights saved earlier; leave one out.")
    chosen = given.chosen_objective(objective)
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
    if random_statistics:
        repfx.randomize_statistics(subject.model)
    with terminal.progress() as update:
        if fused is None:
            other = repfx.reparameterize(
                subject.model,
                subject.inputs,
                objective=chosen,
                exclude=patterns,
                verify=False,
                progress=update,
            )
        else:
            update(f"rebuilding {fused}", 0.2)
            other = load_fused(subject.model, fused)
        update("comparing", 0.8)
        equality = repfx.verify(subject.model, other, example_inputs=subject.inputs)
    terminal.show(str(equality))
    terminal.show_json({**vars(equality), "equal": equality.equal})
    return 0 if equality.equal else 1
