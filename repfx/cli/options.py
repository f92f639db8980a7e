"""The options that commands share, each written once."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Annotated

import typer

from repfx.cli.current import complete_objective, complete_output
from repfx.errors import UserError
from repfx.rewriting import OBJECTIVES, SINGLE_BRANCH

MODEL_HELP = (
    "repnext_m1, timm:NAME, torchvision:NAME, package.module:factory, path/to/file.py:factory or path/to/model.pt2."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="FILE",
        help="Weights to load: .safetensors, .pth, .pt, .ckpt, .bin. No code in the file is run.",
    ),
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(
        "--checkpoint-key",
        metavar="KEY",
        help="Entry of the checkpoint to take; by default averaged (EMA) weights, then plain ones; ema.module "
        "for an entry in an entry.",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective", metavar="NAME", help="What to minimise: {objectives}.", autocompletion=complete_objective
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "-o",
        "--out",
        metavar="OUT",
        help="Output: {endings}.",
        show_default=False,
        autocompletion=complete_output,
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="C,H,W",
        help="Size of one input, without the batch. Default: what the model's registry says, or 3,224,224.",
    ),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target-option", metavar="KEY=VALUE", help="Option of the output's target. May be repeated."),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAME", help="{option precision}"),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Module path or glob to leave as it is. May be repeated."),
]
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", min=0, metavar="N", help="Classes of the model's head.")
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model-option", metavar="KEY=VALUE", help="Keyword argument of the model. May be repeated."),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Take the registry's trained weights. Those of repnext_nano are packaged; others are downloaded.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Allow files that can run code: pickled modules, TorchScript, .pt2."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what other libraries print.")]


def chosen_objective(name: str | None, default: str = SINGLE_BRANCH.name) -> str:
    """`name`, or `default` where none was given.  Raises `UserError` for an unknown one."""
    if name is None:
        return default
    if OBJECTIVES.find(name) is None:
        known = OBJECTIVES.names()
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it is {' or '.join(known)}."
        raise UserError(f"unknown objective {name!r}; {hint}")
    return name


def parsed_size(text: str | None) -> tuple[int, ...] | None:
    """`3,224,224` or `3x224x224` as numbers.  Raises `UserError`."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--input-size {text!r}: write positive whole numbers, as in 3,224,224.")
    return tuple(int(part) for part in parts)


def parsed_options(pairs: list[str] | None, num_classes: int | None) -> dict[str, object]:
    """The keyword arguments of the model.  Raises `UserError`."""
    classes = {} if num_classes is None else {"num_classes": num_classes}
    return {**classes, **_parsed_pairs(pairs, "--model-option", "drop_rate=0.1")}


def parsed_target_options(pairs: list[str] | None, **flags: object) -> dict[str, object]:
    """The options of the target, those that have flags of their own included, where given.  Raises `UserError`."""
    given = {name: value for name, value in flags.items() if value is not None}
    return {**given, **_parsed_pairs(pairs, "--target-option", "precision=fp32")}


def _parsed_pairs(pairs: list[str] | None, flag: str, example: str) -> dict[str, object]:
    """`KEY=VALUE` pairs; values are Python literals, else text.  Raises `UserError`."""
    options: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{flag} {pair!r}: write KEY=VALUE, as in {example}.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
