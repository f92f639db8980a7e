"""`repfx draw`: a picture of one module before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import repfx
from repfx.cli import options as given
from repfx.cli.subject import Request, load_subject
from repfx.cli.terminal import Terminal
from repfx.drawing import check_drawable, operations_of
from repfx.drawing import draw as draw_to

HELP = """Draw the module AT of MODEL, before and after fusing, side by side.

\b
Examples:
  repfx draw repnext_m0 --at stages.0.blocks.0 -o block.png
  repfx draw timm:mobileone_s0 --at stages.0.0 --objective macs -o block.svg
"""


def draw(
    model: given.Model,
    at: Annotated[
        str,
        typer.Option("--at", metavar="AT", help="Module path, as in stages.0.blocks.0.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="Picture: .png, .svg or .pdf.", show_default=False)
    ],
    objective: given.Objective = None,
    input_size: given.InputSize = None,
    num_classes: given.NumClasses = None,
    model_option: given.ModelOption = None,
    quiet: given.Quiet = False,
    debug: given.Debug = False,
) -> int:
    terminal = Terminal(quiet, False, debug)
    check_drawable(out)
    chosen = given.chosen_objective(objective)
    request = Request(
        model,
        given.parsed_options(model_option, num_classes),
        input_size=given.parsed_size(input_size),
        weights_matter=False,
    )
    subject = load_subject(request, terminal)
    operations_of(subject.model, at)  # a wrong path is told before the work
    with terminal.progress() as update:
        fused = repfx.reparameterize(subject.model, subject.inputs, objective=chosen, verify=False, progress=update)
        update(f"drawing {out}", 0.95)
        draw_to(subject.model, fused, at, out)
    terminal.show(f"wrote {out}: {at} before and after, objective {chosen}")
    return 0
