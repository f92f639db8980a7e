"""`repfx load`: rebuild a fused model from its weights, check it, and write it for a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from repfx.cli import options as given
from repfx.cli.current import complete_output
from repfx.cli.output import Wish, write_output
from repfx.cli.subject import Request, example_for
from repfx.cli.terminal import Terminal
from repfx.errors import UserError
from repfx.io import FusedRecord, is_registry_name, load_fused, read_fused_record
from repfx.verification import count_operations

HELP = """Rebuild the model that FILE holds the fused weights of, and check that they fit and run.

FILE records the model's name, which is believed for names of a registry only; give MODEL otherwise.
With -o the model is written on, by the ending of OUT.

\b
Examples:
  repfx load nano.safetensors
  repfx load nano.safetensors -o nano.mlpackage
  repfx load net.safetensors mynet.py:make_net
"""


def load(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `repfx fuse -o FILE.safetensors` wrote.", show_default=False)
    ],
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=given.MODEL_HELP, show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="Also write the model; the ending is as in repfx fuse.",
            autocompletion=complete_output,
        ),
    ] = None,
    input_size: given.InputSize = None,
    num_classes: given.NumClasses = None,
    model_option: given.ModelOption = None,
    precision: given.Precision = None,
    target_option: given.TargetOption = None,
    quiet: given.Quiet = False,
    json: given.Json = False,
    debug: given.Debug = False,
) -> int:
    terminal = Terminal(quiet, json, debug)
    wish = None if out is None else Wish(out, given.parsed_target_options(target_option, precision=precision))
    if wish is not None:
        wish.check()
    record = read_fused_record(file)
    name = _model_name(file, model, record)
    options = given.parsed_options(model_option, num_classes)
    with terminal.progress() as update:
        update(f"rebuilding {name}", 0.1)
        with terminal.chatter_hidden():
            fused = load_fused(name, file, options=options)
        size = given.parsed_size(input_size) or (record.input_shape or (1, 3, 224, 224))[1:]
        inputs = example_for(fused, str(file), size)
        with torch.no_grad():
            counts = count_operations(fused, inputs)
        written = None
        if wish is not None:
            update(f"writing {wish.path}", 0.8)
            request = Request(name, {**record.options, **options})
            written = write_output(fused, inputs, wish, request, record.exclude, terminal)
    terminal.show(
        f"{file}: {name}, objective {record.objective}, fused by repfx {record.version}; the weights fit: "
        f"{counts.convolutions} convolutions, {counts.batch_norms} batch norms, {counts.parameters:,} parameters",
        *([f"wrote {out}: {written.sentence}"] if written else []),
    )
    terminal.show_json(
        {
            "record": record,
            "counts": counts,
            "output": written.record if written else None,
        }
    )
    return 0


def _model_name(file: Path, model: str | None, record: FusedRecord) -> str:
    """MODEL, else the recorded name if building it runs nobody's code.  Raises `UserError`."""
    if model is not None:
        return model
    if not record.model or not is_registry_name(record.model):
        said = f"was fused from {record.model!r}, which is code" if record.model else "records no model name"
        raise UserError(f"{file}: {said}; name the model to rebuild, as in repfx load {file} MODEL.")
    return record.model
