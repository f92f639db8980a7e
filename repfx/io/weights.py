"""Reading the weights out of files that nobody vouches for.

Owns: a file -> one flat dictionary of tensors.  Nothing stored in a file is executed: `.safetensors`
holds no code, everything else goes through torch's restricted unpickler.  Pickled modules and
TorchScript archives are programs, so they are refused unless the caller trusts them.  What the
tensors are for is not known here.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from repfx.errors import UserError, first_line

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
AVERAGED = (  # where training scripts keep averaged weights, which are those to deploy
    "state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "model_state_dict_ema", "ema_model_state_dict",
    "params_ema", "ema_params", "ema_net", "net_ema", "ema_weights", "g_ema", "ema", "swa_state_dict", "swa_model",
    "averaged_model",
)  # fmt: skip
PLAIN = (
    "state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net", "network", "weights", "params",
    "module", "state",
)  # fmt: skip
WRAPPERS = (*AVERAGED, *PLAIN)
_DEEPEST = 5
SHOWN = 3  # names listed in an error before "and n more"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file, by name, and the wrapper keys they were found under."""

    path: Path
    tensors: Mapping[str, Tensor]
    keys: tuple[str, ...] = ()
    lightning: bool = False


def read_checkpoint(path: str | Path, *, key: str | None = None, trust: bool = False) -> Checkpoint:
    """Read the tensors of a `.safetensors`, `.pth`, `.pt`, `.ckpt`, `.bin` or `.tar` file onto the CPU.

    `key` names the wrapper entry to take (by default averaged weights, then plain ones); `trust`
    allows pickled modules and TorchScript archives, which can run code.  Raises `UserError`.
    """
    path = Path(path)
    _check_readable(path)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise UserError(f"{path}: is empty; copy the checkpoint again.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`.")
    if head[8:9] == b"{":
        return Checkpoint(path, _read_safetensors(path))
    if _is_torchscript(path):
        return Checkpoint(path, _read_torchscript(path, trust))
    return _unwrap(path, _read_pickle(path, trust), key)


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the text metadata of a `.safetensors` file.  Raises `UserError`."""
    _check_readable(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: is not a complete safetensors file: {first_line(error)}.") from error


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name the checkpoint file in it.")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: is not readable.")
    if path.suffix == ".pt2":
        raise UserError(f"{path}: is an exported program, not a checkpoint; pass it as the model.")
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: unknown ending; a checkpoint ends in {', '.join(ENDINGS)}.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    tensors, _ = open_safetensors(path)
    return tensors


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def _read_torchscript(path: Path, trust: bool) -> dict[str, Tensor]:
    if not trust:
        raise UserError(
            f"{path}: is a TorchScript archive, a program; pass --trust (trust=True) if you know where it "
            "comes from, or save its state_dict()."
        )
    try:
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"{path}: is not a TorchScript archive that loads: {first_line(error)}.") from error


def _read_pickle(path: Path, trust: bool) -> object:
    """What the file holds; by default through the unpickler that builds tensors and plain data only."""
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old pickle protocol is no news to the user
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # hostile bytes raise almost anything
        code = _pickled_code(error)
        if code and not trust:
            raise UserError(
                f"{path}: holds pickled code ({code}), which would run on loading; pass --trust (trust=True) "
                "if you know where it comes from, or save its state_dict()."
            ) from error
        if not code:
            raise UserError(f"{path}: is not a checkpoint that torch can read{_cause(path, error)}.") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the file's own code raises whatever it likes
        raise UserError(f"{path}: unpickling failed: {first_line(error)}.") from error


def _harmless() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Types found in honest checkpoints that hold data only and run nothing when built."""
    scalar: Callable[..., object] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
    dtypes = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    old_scalar = (scalar, "numpy.core.multiarray.scalar")  # its name before numpy 2
    return [argparse.Namespace, scalar, old_scalar, np.dtype, *dtypes]


def _pickled_code(error: Exception) -> str:
    """The name of the class or function that the restricted unpickler refused, if that was the cause."""
    text = str(error)
    found = re.search(r"(?:GLOBAL|Unsupported global:|Trying to load|Unsupported class|find_class)\s+(?:GLOBAL )?"
                      r"[`']?([A-Za-z_][\w.]*)", text)  # fmt: skip
    return found[1].strip(".") if found else ""


def _cause(path: Path, error: Exception) -> str:
    if isinstance(error, EOFError):
        return ": it ends too early"
    with path.open("rb") as file:
        begins_as_archive = file.read(2) == b"PK"
    if begins_as_archive or zipfile.is_zipfile(path):
        return ": the archive is damaged or cut short"
    return ": it is neither a torch archive nor a pickle"


def _unwrap(path: Path, held: object, key: str | None) -> Checkpoint:
    """Follow the wrapper keys down to the dictionary of tensors."""
    keys: tuple[str, ...] = ()
    lightning = isinstance(held, Mapping) and "pytorch-lightning_version" in held
    if key is not None:
        held, keys = _entry(path, held, key)
    found = _search(held, keys, 0)
    if found is not None:
        return Checkpoint(path, *found, lightning)
    names = _names(held)
    what = f"a dictionary of {listed(names)}" if names else f"a {type(held).__name__}"
    raise UserError(f"{path}: holds {what} and no weights under {', '.join(WRAPPERS)}.")


def _entry(path: Path, held: object, key: str) -> tuple[object, tuple[str, ...]]:
    """What stands under a key, or under keys with dots between them: `ema.module`."""
    if isinstance(held, Mapping) and key in held:
        return held[key], (key,)
    keys = tuple(key.split("."))
    for name in keys:
        if not isinstance(held, Mapping) or name not in held:
            raise UserError(f"{path}: has no entry {key!r}; it has {listed(_names(held)) or 'none'}.")
        held = held[name]
    return held, keys


def _names(held: object) -> list[str]:
    return [str(name) for name in held] if isinstance(held, Mapping) else []


def _search(held: object, keys: tuple[str, ...], depth: int) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The first dictionary of tensors on the way down, averaged weights before plain ones, and the keys to it."""
    if isinstance(held, nn.Module):
        held = held.state_dict()
    if not isinstance(held, Mapping):
        return None
    tensors = _flat_tensors(held)
    if tensors:
        return tensors, keys
    if depth == _DEEPEST:
        return None
    # mmengine exchanges the two when it saves: its state_dict holds the averages
    order = ("state_dict", *WRAPPERS) if "message_hub" in held else WRAPPERS
    for name in order:
        inner = held.get(name)
        if not isinstance(inner, Mapping | nn.Module):
            continue
        found = _search(inner, (*keys, name), depth + 1)
        if found is not None:
            return found
    return None


def _flat_tensors(held: Mapping[Any, object]) -> dict[str, Tensor]:
    """`held` itself, if it is a dictionary of named tensors (extra plain state left out)."""
    if not all(isinstance(name, str) for name in held):
        return {}
    if any(isinstance(value, Mapping | nn.Module) for value in held.values()):
        return {}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def listed(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
