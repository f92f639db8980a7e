"""Loading weights strictly, and saving a compiled model as weights alone.

A compiled model is saved as `.safetensors`: tensors, no code, no graph.  Every decision of the
compiler depends on structure only, so the architecture compiled again with the recorded objective,
exclusions and input size is the same module, and the weights fit it strictly or not at all.

It refuses to guess: a name or a shape that does not fit is an error that counts them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import repfx
from repfx.compiler import OBJECTIVES
from repfx.errors import UserError, first_line
from repfx.io.atomic import whole_output
from repfx.io.model_names import build_model, is_registry_name
from repfx.io.weights import Checkpoint, listed, open_safetensors, read_checkpoint

PREFIXES = ("module.", "_orig_mod.", "model.")  # data-parallel, torch.compile, Lightning
BOOKKEEPING = ("n_averaged", "num_batches_tracked")  # counters that no evaluation reads
FORMAT = "1"  # of the metadata below


@dataclass(frozen=True)
class FusedRecord:
    """What a file of fused weights says about how it was made."""

    objective: str
    model: str = ""  # as the user named it; "" if built in Python
    options: Mapping[str, object] = field(default_factory=dict)  # keyword arguments of its factory
    exclude: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None  # of the example input given to the compiler, if any
    version: str = ""  # of repfx

    def to_metadata(self) -> dict[str, str]:
        """As safetensors metadata, which maps text to text."""
        return {
            "format": "pt",
            "repfx.format": FORMAT,
            "repfx.version": self.version,
            "repfx.objective": self.objective,
            "repfx.model": self.model,
            "repfx.options": json.dumps(dict(self.options)),
            "repfx.exclude": json.dumps(list(self.exclude)),
            "repfx.input_shape": json.dumps(self.input_shape),
        }

    @staticmethod
    def from_metadata(path: Path, metadata: Mapping[str, str]) -> FusedRecord:
        """Read back, every type checked: the file may come from anywhere.  Raises `UserError`."""
        if "repfx.format" not in metadata:
            raise UserError(f"{path}: was not written by repfx; it can serve as --checkpoint only.")
        if metadata["repfx.format"] != FORMAT:
            raise UserError(f"{path}: was written by a newer repfx ({metadata.get('repfx.version')}); upgrade.")
        try:
            options = json.loads(metadata["repfx.options"])
            exclude = json.loads(metadata["repfx.exclude"])
            shape = json.loads(metadata["repfx.input_shape"])
            valid = (
                isinstance(options, dict)
                and isinstance(exclude, list)
                and all(isinstance(pattern, str) for pattern in exclude)
                and (shape is None or (isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)))
                and (shape is None or math.prod(shape) <= MAX_ELEMENTS)
            )
            if not valid:
                raise ValueError("a field has the wrong type")
            return FusedRecord(
                metadata["repfx.objective"],
                metadata["repfx.model"],
                options,
                tuple(exclude),
                None if shape is None else tuple(shape),
                metadata["repfx.version"],
            )
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: its repfx metadata is damaged: {first_line(error)}.") from error


MAX_ELEMENTS = 2**26  # of a recorded example input; 256 MiB of float32


def load_checkpoint(model: nn.Module, path: str | Path, *, key: str | None = None, trust: bool = False) -> Checkpoint:
    """Load the file's tensors into `model` strictly and in place; return what was read.

    Common prefixes (`module.`, `_orig_mod.`, Lightning's `model.`, one that all names share) are dropped
    where that makes the names fit.  Raises `UserError` naming the counts and first names of whatever does not.
    """
    checkpoint = read_checkpoint(path, key=key, trust=trust)
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    tensors = _fitting_names(checkpoint, wanted)
    check_fit(f"{checkpoint.path}", tensors, wanted)
    model.load_state_dict(tensors, strict=False)
    return replace(checkpoint, tensors=tensors)


def check_fit(subject: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise one sentence unless `tensors` has exactly the names and shapes of `wanted`, all finite."""
    counter = BOOKKEEPING[1]
    missing = [name for name in wanted if name not in tensors and not name.endswith(counter)]
    unexpected = [name for name in tensors if name not in wanted and not name.endswith(BOOKKEEPING)]
    shapes = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({listed(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({listed(unexpected)})")
    if shapes:
        first = shapes[0]
        sizes = f"{first} is {_shape(tensors[first])}, the model's is {_shape(wanted[first])}"
        problems.append(f"{len(shapes)} of another shape ({sizes})")
    if problems:
        hint = _head_hint(tensors, wanted, shapes) if not missing and not unexpected else ""
        raise UserError(f"{subject}: does not fit the model: {', '.join(problems)}{hint}.")
    for name, value in tensors.items():
        if name in wanted and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{subject}: {name} holds values that are not finite; the training diverged.")


def save_fused(
    fused: nn.Module,
    path: str | Path,
    *,
    model: str = "",
    options: Mapping[str, object] | None = None,
    exclude: Sequence[str] = (),
    example_inputs: tuple[Tensor, ...] | None = None,
) -> FusedRecord:
    """Write the weights of a compiled module to a `.safetensors` file, with how it was made.

    `model`, `options`, `exclude` and `example_inputs` are what `build_model` and `reparameterize`
    were given.  The file appears whole or not at all.  Raises `UserError`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: fused weights are saved as .safetensors.")
    shape = tuple(example_inputs[0].shape) if example_inputs else None
    record = FusedRecord(
        repfx.report(fused).objective, model, dict(options or {}), tuple(exclude), shape, repfx.__version__
    )
    tensors = _savable(fused)
    with whole_output(path) as staged:
        try:
            save_file(tensors, staged, metadata=record.to_metadata())
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be written: {first_line(error)}.") from error
    return record


def read_fused_record(path: str | Path) -> FusedRecord:
    """How the file of fused weights was made, without building anything.  Raises `UserError`."""
    return FusedRecord.from_metadata(Path(path), open_safetensors(Path(path))[1])


def load_fused(model: nn.Module | str, path: str | Path, *, options: Mapping[str, object] | None = None) -> nn.Module:
    """Rebuild a compiled module from its architecture and the file that `save_fused` wrote.

    `model` is the multi-branch module, whose own weights do not matter, or its name; a registry name
    takes the recorded number of classes unless `options` says otherwise.  The result has the dtype
    of the file.  Raises `UserError` where the file is no such file or does not fit.
    """
    path = Path(path)
    tensors, metadata = open_safetensors(path)
    record = FusedRecord.from_metadata(path, metadata)
    if record.objective not in OBJECTIVES:
        raise UserError(f"{path}: was fused with objective {record.objective!r}, unknown to this repfx.")
    if isinstance(model, str):
        chosen = {**_recorded_classes(model, record, tensors), **(options or {})}
        model = build_model(model, options=chosen).module
    example = None if record.input_shape is None else (torch.zeros(record.input_shape),)
    fused = repfx.reparameterize(model, example, objective=record.objective, exclude=record.exclude, verify=False)
    floats = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(floats) == 1:
        fused.to(floats.pop())
    wanted = {name: value for name, value in fused.state_dict().items() if isinstance(value, Tensor)}
    try:
        check_fit(str(path), tensors, wanted)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; {_provenance(record)}.") from error
    fused.load_state_dict(tensors, strict=False)
    return fused


def _savable(fused: nn.Module) -> dict[str, Tensor]:
    """The state as contiguous tensors that share no memory.  Raises `UserError` for what has no values."""
    state = fused.state_dict()
    seen: set[int] = set()
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name}: holds a {type(value).__name__}, which safetensors cannot store.")
        if value.is_meta or value.layout is not torch.strided:
            raise UserError(f"{name}: has no plain values to save; move the model off the meta device first.")
        storage = value.untyped_storage().data_ptr()
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.numel() * value.element_size()
        own = whole and storage not in seen
        tensors[name] = value if own else value.clone(memory_format=torch.contiguous_format)
        seen.add(storage)
    return tensors


def _recorded_classes(model: str, record: FusedRecord, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The recorded number of classes, believed only for a registry name and if some tensor has it."""
    classes = record.options.get("num_classes")
    sizes = {value.shape[0] for value in tensors.values() if value.ndim}
    known = is_registry_name(model) and type(classes) is int and classes in sizes
    return {"num_classes": classes} if known else {}


def _provenance(record: FusedRecord) -> str:
    of = f" from {record.model}" if record.model else ""
    with_ = f" with {json.dumps(dict(record.options))}" if record.options else ""
    return (
        f"the file was fused{of}{with_}, objective {record.objective}, by repfx {record.version} "
        f"(this is {repfx.__version__})"
    )


def _fitting_names(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names, with prefixes dropped or not, that most of `wanted` has."""
    candidates = [dict(checkpoint.tensors)]
    for _ in range(3):
        latest = list(candidates)
        for tensors in latest:
            first = {f"{name.partition('.')[0]}." for name in tensors}
            shared = first if len(first) == 1 else set()  # one wrapper module around everything
            for prefix in {*PREFIXES, *shared}:
                if any(name.startswith(prefix) for name in tensors):
                    candidates.append(_without(tensors, prefix, drop_others=checkpoint.lightning))
    if not any("_orig_mod." in name for name in wanted):
        candidates += [{n.replace("_orig_mod.", ""): v for n, v in c.items()} for c in candidates]
    return max(candidates, key=lambda tensors: sum(name in wanted for name in tensors))


def _without(tensors: Mapping[str, Tensor], prefix: str, *, drop_others: bool) -> dict[str, Tensor]:
    """The prefix off every name.  Lightning files also hold losses and metrics, which then go."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) or not drop_others
    }


def _head_hint(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], shapes: list[str]) -> str:
    """`--num-classes` advice, where all that differs is one leading size, the same everywhere."""
    pairs = {(tensors[n].shape[:1], wanted[n].shape[:1]) for n in shapes}
    inner = all(tensors[n].shape[1:] == wanted[n].shape[1:] for n in shapes)
    ((given, _), *others) = pairs
    if others or not inner or not given:
        return ""
    return f"; its head is for another number of classes, so pass --num-classes {given[0]}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
