"""A compiled model as weights alone, and back.

A compiled model is saved as `.safetensors`: tensors, no code, no graph.  Every decision of the
compiler depends on structure only, so the architecture compiled again with the recorded objective,
exclusions and input size is the same module, and the weights fit it strictly or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import repfx
from repfx.errors import UserError, first_line
from repfx.io.atomic import whole_output
from repfx.io.checkpoint import check_fit, tensors_of
from repfx.io.model_names import build_model, is_registry_name
from repfx.io.weights import open_safetensors
from repfx.rewriting import OBJECTIVES, Objective

FORMAT = "1"  # of the metadata below
MAX_ELEMENTS = 2**26  # of a recorded example input; 256 MiB of float32


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
            shape = _field(metadata, "repfx.input_shape", _is_no_shape_or_one)
            return FusedRecord(
                objective=metadata["repfx.objective"],
                model=metadata["repfx.model"],
                options=_field(metadata, "repfx.options", _is_mapping),
                exclude=tuple(_field(metadata, "repfx.exclude", _is_list_of_texts)),
                input_shape=None if shape is None else tuple(shape),
                version=metadata["repfx.version"],
            )
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: its repfx metadata is damaged: {first_line(error)}.") from error


def _field(metadata: Mapping[str, str], name: str, is_valid: Callable[[object], bool]) -> Any:
    value = json.loads(metadata[name])
    if not is_valid(value):
        raise ValueError("a field has the wrong type")
    return value


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_no_shape_or_one(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, list):
        return False
    return all(type(size) is int and size > 0 for size in value) and math.prod(value) <= MAX_ELEMENTS


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


def load_fused(
    model: nn.Module | str,
    path: str | Path,
    *,
    options: Mapping[str, object] | None = None,
    objective: Objective | None = None,
) -> nn.Module:
    """Rebuild a compiled module from its architecture and the file that `save_fused` wrote.

    `model` is the multi-branch module, whose own weights do not matter, or its name; a registry name
    takes the recorded number of classes unless `options` says otherwise.  `objective` is the one that the file
    records, where it is an object of the caller's that no name leads to.  The result has the dtype of the file.
    Raises `UserError` where the file is no such file or does not fit.
    """
    path = Path(path)
    tensors, metadata = open_safetensors(path)
    record = FusedRecord.from_metadata(path, metadata)
    objective = _recorded_objective(path, record, objective)
    if isinstance(model, str):
        chosen = {**_recorded_classes(model, record, tensors), **(options or {})}
        model = build_model(model, options=chosen).module
    example = None if record.input_shape is None else (torch.zeros(record.input_shape),)
    fused = repfx.reparameterize(model, example, objective=objective, exclude=record.exclude, verify=False)
    floats = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(floats) == 1:
        fused.to(floats.pop())
    try:
        check_fit(str(path), tensors, tensors_of(fused))
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; {_provenance(record)}.") from error
    fused.load_state_dict(tensors, strict=False)
    return fused


def _recorded_objective(path: Path, record: FusedRecord, given: Objective | None) -> Objective:
    """The objective that a file names: the caller's, or one that its name leads to.  Raises `UserError`."""
    if given is not None:
        if given.name != record.objective:
            raise UserError(f"{path}: was fused with objective {record.objective!r}, not with {given.name!r}.")
        return given
    found = OBJECTIVES.find(record.objective)
    if found is None:
        raise UserError(
            f"{path}: was fused with objective {record.objective!r}, unknown to this repfx; install the package "
            "that brings it, or give load_fused that objective."
        )
    return found


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
