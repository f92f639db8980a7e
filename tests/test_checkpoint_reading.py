"""Reading weights from files that nobody vouches for, and loading them strictly."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from repfx.errors import UserError
from repfx.io import load_checkpoint
from repfx.io.weights import read_checkpoint
from tests.outside import Trap, hostile_files, tiny


def one_sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, once it is seen to be a single finished line."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


def equal_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


STATE = tiny().state_dict()
OTHER = {name: value * 0 for name, value in STATE.items()}
LAYOUTS = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "lr": 0.1},
    "model": {"model": STATE, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": {"model_state_dict": STATE},
    "ema": {"model": {k: v * 0 for k, v in STATE.items()}, "state_dict_ema": STATE},
    "ema absent": {"model": STATE, "model_ema": None},
    "ema of nothing": {"model": STATE, "ema": {"decay": 0.999, "updates": 3}},
    "basicsr": {"params": OTHER, "params_ema": STATE},
    "rt-detr": {"model": OTHER, "ema": {"module": STATE, "updates": 100}, "optimizer": {"state": {}}},
    "super-gradients": {"net": OTHER, "ema_net": STATE, "acc": torch.tensor(0.5)},
    "deepspeed": {"module": STATE, "optimizer": None},
    "swa": {"state_dict": OTHER, "swa_state_dict": {"n_averaged": torch.tensor(2), **prefixed("module.", STATE)}},
    "mmengine": {"meta": {"epoch": 1}, "message_hub": {"log": 1}, "state_dict": STATE, "ema_state_dict": OTHER},
    "diffusion": {"ema_model": {"state_dict": {"model": STATE}}, "model": OTHER},
    "nested": {"checkpoint": 1, "state_dict": {"model": STATE}},
    "data parallel": {"state_dict": prefixed("module.", STATE)},
    "compiled": prefixed("_orig_mod.", STATE),
    "compiled inside": {name.replace("blocks.", "blocks._orig_mod."): value for name, value in STATE.items()},
    "both": prefixed("module._orig_mod.", STATE),
    "one wrapper module": prefixed("layers.", STATE),
    "averaged": {"n_averaged": torch.tensor(4), **prefixed("module.", STATE)},
    "lightning": {
        "pytorch-lightning_version": "2.4",
        "state_dict": {**prefixed("model.", STATE), "loss.weight": torch.ones(3)},
    },
    "with arguments": {"model": STATE, "args": argparse.Namespace(lr=0.1, layers=[1, 2])},
    "with numpy numbers": {"model": STATE, "best": np.float64(0.75), "epoch": np.int64(3)},
    "half": {name: value.half() if value.is_floating_point() else value for name, value in STATE.items()},
    "before num_batches_tracked": {n: v for n, v in STATE.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_common_layouts_load(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout], path)
    model = tiny()
    nn.init.zeros_(model.head.weight)
    load_checkpoint(model, path)
    if layout == "half":
        assert torch.equal(model.head.weight, STATE["head.weight"].half().float())
    else:
        assert equal_state(model, tiny())


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt", ".bin", ".pth.tar", ".pth"])
def test_endings_and_contents_may_disagree(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    save_file(dict(STATE), path)
    assert read_checkpoint(path).tensors.keys() == STATE.keys()


def test_a_key_chooses_among_several_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": STATE, "model_ema": {k: v * 0 for k, v in STATE.items()}}, path)
    assert float(read_checkpoint(path).tensors["head.weight"].abs().max()) == 0
    assert read_checkpoint(path, key="model").keys == ("model",)
    torch.save({"ema": {"module": STATE, "other": OTHER}}, path)
    assert read_checkpoint(path).keys == ("ema", "module")
    assert read_checkpoint(path, key="ema.other").keys == ("ema", "other")
    torch.save({"model": STATE, "model_ema": OTHER}, path)
    with pytest.raises(UserError, match="no entry 'mdoel'; it has model, model_ema") as error:
        read_checkpoint(path, key="mdoel")
    one_sentence(error)


REFUSED = {
    "empty": "is empty",
    "text": "neither a torch archive nor a pickle",
    "lfs": "Git LFS pointer",
    "module": r"holds pickled code \(tests.outside.Tiny\).*--trust",
    "trap": r"holds pickled code \(tests.outside._spring\)",
    "trap_legacy": "is not a checkpoint|holds pickled code",
    "script": "TorchScript archive.*--trust",
    "cut": "damaged or cut short",
    "number": "holds a int",
    "noise": "is not a checkpoint",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_hostile_files_are_refused_and_run_nothing(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED[kind]) as error:
        load_checkpoint(tiny(), hostile_files(tmp_path)[kind])
    one_sentence(error)
    assert not (tmp_path / "ran").exists()


def test_the_trap_works_when_trusted(tmp_path: Path) -> None:
    """Without this the test above could pass because the trap never springs."""
    torch.save({"state_dict": {**STATE, "x": Trap(tmp_path / "ran")}}, tmp_path / "trap.pth")
    read_checkpoint(tmp_path / "trap.pth", trust=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["module", "script"])
def test_trusted_programs_give_their_weights(kind: str, tmp_path: Path) -> None:
    model = tiny()
    nn.init.zeros_(model.head.weight)
    load_checkpoint(model, hostile_files(tmp_path)[kind], trust=True)
    assert equal_state(model, tiny())


def test_places_that_hold_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "program.pt2").write_text("x")
    for name, reason in (
        ("", "is a directory"),
        ("absent.pth", "no such file"),
        ("notes.txt", "unknown ending"),
        ("cut.safetensors", "not a complete safetensors"),
        ("program.pt2", "pass it as the model"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            read_checkpoint(tmp_path / name)
        one_sentence(error)


def test_misfits_are_counted_in_one_sentence(tmp_path: Path) -> None:
    state = dict(STATE)
    state["extra"] = state.pop("stem.bias")
    state["stem.weight"] = torch.zeros(8, 3, 5, 5)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError) as error:
        load_checkpoint(tiny(), tmp_path / "weights.pth")
    text = one_sentence(error)
    assert "1 missing (stem.bias), 1 unexpected (extra), 1 of another shape" in text
    assert "stem.weight is 8x3x5x5, the model's is 8x3x3x3" in text


def test_another_number_of_classes_names_the_option(tmp_path: Path) -> None:
    torch.save(tiny(num_classes=7).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="its head is for another number of classes, so pass --num-classes 7") as error:
        load_checkpoint(tiny(), tmp_path / "weights.pth")
    one_sentence(error)


def test_a_failed_load_changes_nothing(tmp_path: Path) -> None:
    torch.save({n: v * 2 for n, v in tiny(num_classes=7).state_dict().items()}, tmp_path / "weights.pth")
    model = tiny()
    with pytest.raises(UserError):
        load_checkpoint(model, tmp_path / "weights.pth")
    assert equal_state(model, tiny())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    torch.save({**STATE, "head.bias": torch.full((5,), float("nan"))}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"head\.bias holds values that are not finite"):
        load_checkpoint(tiny(), tmp_path / "weights.pth")
