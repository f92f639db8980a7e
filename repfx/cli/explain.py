"""`repfx explain`: what `fuse` would do to a model, and why not more."""

from __future__ import annotations

import repfx
from repfx.cli import options as given
from repfx.cli.subject import Request, check_patterns, load_subject
from repfx.cli.terminal import Terminal

HELP = """Show what fusing MODEL would merge, what it would decline and why. Nothing is written.

\b
Examples:
  repfx explain repnext_m1
  repfx explain timm:repvit_m0_9 --objective macs
  repfx explain mypackage.nets:detector_backbone --input-size 3,640,640
"""


def explain(
    model: given.Model,
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
    chosen = given.chosen_objective(objective)
    request = Request(
        model,
        given.parsed_options(model_option, num_classes),
        pretrained,
        checkpoint,
        checkpoint_key,
        given.parsed_size(input_size),
        trust,
        weights_matter=checkpoint is not None,
    )
    subject = load_subject(request, terminal)
    patterns = tuple(exclude or ())
    check_patterns(subject.model, patterns)
    report = repfx.explain(subject.model, subject.inputs, objective=chosen, exclude=patterns)
    terminal.show(report)
    terminal.show_json({"objective": chosen, "report": report})
    return 0
