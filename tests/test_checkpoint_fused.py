"""Fused weights: saved without code, rebuilt from the architecture, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import repfx
from repfx.errors import UserError
from repfx.io import FusedRecord, load_fused, read_fused_record, save_fused
from repfx.rewriting import OBJECTIVES
from tests.outside import SIZE, TINY_SOURCE, Tiny, tiny

INPUT = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT)


@pytest.mark.parametrize("objective", OBJECTIVES.own)
@pytest.mark.parametrize("shapes", [True, False], ids=["with shapes", "structure only"])
def test_round_trip_is_bit_equal(objective: str, shapes: bool, tmp_path: Path) -> None:
    inputs = (INPUT,) if shapes else None
    fused = repfx.reparameterize(tiny(), inputs, objective=objective)
    save_fused(fused, tmp_path / "f.safetensors", model="tiny", example_inputs=inputs)
    torch.manual_seed(1)
    rebuilt = load_fused(Tiny().eval(), tmp_path / "f.safetensors")  # other weights, same structure
    assert torch.equal(outputs(rebuilt), outputs(fused))
    assert repfx.report(rebuilt).objective == objective


def test_the_model_may_be_named(tmp_path: Path) -> None:
    fused = repfx.reparameterize(tiny(), (INPUT,))
    save_fused(fused, tmp_path / "f.safetensors", model=TINY_SOURCE, example_inputs=(INPUT,))
    assert torch.equal(outputs(load_fused(TINY_SOURCE, tmp_path / "f.safetensors")), outputs(fused))


def test_exclusions_are_recorded(tmp_path: Path) -> None:
    fused = repfx.reparameterize(tiny(), (INPUT,), exclude=("blocks.0",))
    path = tmp_path / "f.safetensors"
    save_fused(fused, path, exclude=("blocks.0",), example_inputs=(INPUT,))
    assert read_fused_record(path).exclude == ("blocks.0",)
    assert torch.equal(outputs(load_fused(tiny(), path)), outputs(fused))


def test_half_precision_comes_back_as_saved(tmp_path: Path) -> None:
    fused = repfx.reparameterize(tiny(), (INPUT,)).to(torch.bfloat16)
    save_fused(fused, tmp_path / "f.safetensors", example_inputs=(INPUT,))
    rebuilt = load_fused(tiny(), tmp_path / "f.safetensors")
    assert {value.dtype for value in rebuilt.parameters()} == {torch.bfloat16}


def test_shared_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)
            self.b = nn.Conv2d(3, 3, 3, padding=1)
            self.b.weight = self.a.weight
            self.a.weight.data = self.a.weight.data.to(memory_format=torch.channels_last)
            self.register_buffer("part", torch.arange(12.0).view(3, 4)[:, 1:])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x))).mean((2, 3)) + self.part.sum()

    fused = repfx.reparameterize(Tied().eval(), (INPUT,))
    save_fused(fused, tmp_path / "f.safetensors", example_inputs=(INPUT,))
    assert torch.equal(outputs(load_fused(Tied().eval(), tmp_path / "f.safetensors")), outputs(fused))


def test_another_architecture_is_refused_with_provenance(tmp_path: Path) -> None:
    fused = repfx.reparameterize(tiny(), (INPUT,))
    save_fused(fused, tmp_path / "f.safetensors", model="tiny", example_inputs=(INPUT,))
    with pytest.raises(UserError, match=r"does not fit the model.*fused from tiny.*by repfx") as error:
        load_fused(tiny(width=12), tmp_path / "f.safetensors")
    assert "\n" not in str(error.value)


def test_files_that_hold_no_fused_weights(tmp_path: Path) -> None:
    save_file(dict(tiny().state_dict()), tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="was not written by repfx"):
        load_fused(tiny(), tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_fused(tiny(), tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match=r"saved as \.safetensors"):
        save_fused(repfx.reparameterize(tiny(), (INPUT,)), tmp_path / "f.pth")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("repfx.format", "99", "newer repfx"),
        ("repfx.objective", "fastest", "unknown to this repfx"),
        ("repfx.options", "[", "metadata is damaged"),
        ("repfx.exclude", "[3]", "metadata is damaged"),
        ("repfx.input_shape", "[1, 3, 99999, 99999]", "metadata is damaged"),
        ("repfx.input_shape", "[1, -3]", "metadata is damaged"),
    ],
)
def test_damaged_metadata_is_refused(field: str, value: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_fused(repfx.reparameterize(tiny(), (INPUT,)), path, example_inputs=(INPUT,))
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), field: value}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(UserError, match=reason):
        load_fused(tiny(), path)


def test_recorded_options_reach_no_factory_but_the_number_of_classes(tmp_path: Path) -> None:
    """A file that asks for another checkpoint to be read is not obeyed."""
    path = tmp_path / "f.safetensors"
    save_fused(repfx.reparameterize(tiny(), (INPUT,)), path, model="resnet10t", example_inputs=(INPUT,))
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "repfx.options": json.dumps({"checkpoint_path": "/x", "num_classes": 10**12})}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(UserError, match="does not fit the model"):
        load_fused("resnet10t", path)


def test_an_existing_file_survives_a_failed_save(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_text("before")
    fused = repfx.reparameterize(tiny(), (INPUT,))
    fused.to("meta")
    with pytest.raises(UserError, match="meta device"):
        save_fused(fused, path)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.safetensors"]


def test_record_survives_its_own_metadata() -> None:
    record = FusedRecord("macs", "m", {"num_classes": 3}, ("a.*",), (1, 3, 8, 8), "0.1")
    assert FusedRecord.from_metadata(Path("x"), record.to_metadata()) == record
