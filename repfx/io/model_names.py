"""Naming a model: one grammar for the command line, the checkpoints and the examples.

    repnext_m1                    repnext's or timm's registry
    timm:NAME                     timm's registry
    torchvision:NAME              torchvision's registry
    package.module:factory        a function, class or module object of an importable package
    path/to/file.py:factory       the same, from a file
    path/to/model.pt2             a program saved by torch.export

Registry names build without touching the network unless pretrained weights are asked for.
`module:factory` and `file.py:factory` run that code: naming them is the request to do so.  A `.pt2`
file looks like data but is a program whose loader evaluates what is stored in it, so it is refused
unless the caller trusts it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from repfx.capture import plain_module
from repfx.errors import UserError, first_line
from repfx.extras import require

GRAMMAR = (
    "repnext_m1, timm:NAME, torchvision:NAME, package.module:factory, path/to/file.py:factory or path/to/model.pt2"
)

CHECKPOINT_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
TORCHVISION_SIZES = {"inception_v3": (3, 299, 299)}  # of those that want another size than most
WITHOUT_INITIALISATION = {name: {"init_weights": False} for name in ("googlenet", "inception_v3")}  # which takes long


@dataclass(frozen=True)
class NamedModel:
    """A model as the user named it, in evaluation mode."""

    spec: str
    module: nn.Module
    input_size: tuple[int, ...] | None = None  # (C, H, W) as its registry or program states it


def build_model(
    spec: str,
    *,
    options: Mapping[str, object] | None = None,
    pretrained: bool = False,
    trust: bool = False,
) -> NamedModel:
    """Build the model that `spec` names, with keyword `options` for its factory, in eval mode.

    Raises `UserError` for an unknown name (with the closest known ones), a factory that fails or
    returns no module, an option the factory does not take, and a `.pt2` that is not trusted.
    """
    options = dict(options or {})
    if spec.endswith(".pt2"):
        return _from_program(Path(spec), options, pretrained, trust)
    source, name = _parts(spec)
    if source in ("", "timm"):
        return _from_timm(spec, name, options, pretrained)
    if source == "torchvision":
        return _from_torchvision(spec, name, options, pretrained)
    if pretrained:
        raise UserError(f"{spec}: --pretrained works for registry names only; use a checkpoint file.")
    return _from_factory(spec, source, name, options)


def is_registry_name(spec: str) -> bool:
    """Whether building `spec` runs no code of the user's: a timm, repnext or torchvision name."""
    source, _, _ = spec.rpartition(":")
    return source in ("", "timm", "torchvision") and not spec.endswith((".pt2", ".py"))


def _parts(spec: str) -> tuple[str, str]:
    """What stands before the last colon, and after it.  Raises `UserError` for what is no model name."""
    if spec.endswith(".py"):
        raise UserError(f"{spec}: name the factory in the file too, as in {spec}:make_model.")
    if Path(spec).suffix in CHECKPOINT_ENDINGS:
        raise UserError(f"{spec}: is a checkpoint, not a model; name its architecture and pass --checkpoint.")
    source, colon, name = spec.rpartition(":")
    if colon and not (source and name):
        raise UserError(f"{spec!r} is not a model name; write {GRAMMAR}.")
    return source, name


def _from_timm(spec: str, name: str, options: dict[str, object], pretrained: bool) -> NamedModel:
    require(f"{spec!r}: a name of timm's or repnext's", "timm")
    import timm

    importlib.import_module("repnext")  # registers its variants with timm
    if not timm.is_model(name):
        raise UserError(_unknown(spec, name, timm.list_models()))
    try:
        model = timm.create_model(name, pretrained=pretrained, **cast("dict[str, Any]", options))
    except Exception as error:  # a registry's factories raise whatever they like
        raise UserError(_failed(spec, error, pretrained)) from error
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    return NamedModel(spec, model.eval(), tuple(size) if size else None)


def _from_torchvision(spec: str, name: str, options: dict[str, object], pretrained: bool) -> NamedModel:
    require(f"{spec!r}: a name of torchvision's", "torchvision")
    import torchvision

    known = torchvision.models.list_models()
    if name not in known:
        raise UserError(_unknown(spec, name, known))
    weights = "DEFAULT" if pretrained else None
    if not pretrained:
        taken = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        untrained = {"weights_backbone": None} if "weights_backbone" in taken else {}
        options = {**untrained, **WITHOUT_INITIALISATION.get(name, {}), **options}
    try:
        model = torchvision.models.get_model(name, weights=weights, **options)
    except Exception as error:  # a registry's factories raise whatever they like
        raise UserError(_failed(spec, error, pretrained)) from error
    return NamedModel(spec, model.eval(), TORCHVISION_SIZES.get(name, (3, 224, 224)))


def _from_factory(spec: str, source: str, name: str, options: dict[str, object]) -> NamedModel:
    module = _python_file(source) if source.endswith(".py") else _python_module(spec, source)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(_unknown(spec, name, public, kind=f"name in {source}"))
    found = getattr(module, name)
    made = found if isinstance(found, nn.Module) else _called(spec, name, found, options)
    return NamedModel(spec, made.eval())


def _called(spec: str, name: str, factory: object, options: dict[str, object]) -> nn.Module:
    """The module that a factory makes.  Raises `UserError`."""
    if not callable(factory):
        raise UserError(f"{spec}: {name} is a {type(factory).__name__}, neither a module nor a factory of one.")
    try:
        made = factory(**options)
    except (Exception, SystemExit) as error:  # the user's code raises whatever it likes
        raise UserError(_failed(spec, error)) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{spec}: {name}() returned a {type(made).__name__}, not a torch.nn.Module.")
    return made


def _python_module(spec: str, source: str) -> object:
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        missing = error.name or source
        if source == missing or source.startswith(f"{missing}."):
            raise UserError(f"{spec!r}: there is no module {missing!r}; a model is {GRAMMAR}.") from error
        raise UserError(f"{spec}: importing {source} failed: no module named {missing!r}.") from error
    except (Exception, SystemExit) as error:  # the user's code raises whatever it likes
        raise UserError(f"{spec}: importing {source} failed: {first_line(error)}.") from error


def _python_file(source: str) -> object:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source}: there is no such file.")
    name = f"_repfx_user_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UserError(f"{source}: cannot be imported as Python code.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and torch.fx look classes up there
    import passes  # noqa: F401  (ours, before a neighbour of the file by that name)

    if str(path.parent.resolve()) not in sys.path:
        sys.path.insert(0, str(path.parent.resolve()))  # as if the file were run: its neighbours import
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code raises whatever it likes
        del sys.modules[name]
        raise UserError(f"{source}: importing it failed: {first_line(error)}.") from error
    return module


def _from_program(path: Path, options: dict[str, object], pretrained: bool, trust: bool) -> NamedModel:
    import torch

    if options or pretrained:
        raise UserError(f"{path}: a saved program takes no model options; leave them out.")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    if not trust:
        raise UserError(
            f"{path}: a .pt2 file is a program and loading it can run code stored in it; "
            "pass --trust (trust=True) if you know where it comes from."
        )
    try:
        program = torch.export.load(path)
        module = plain_module(program)
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"{path}: is not a program that this torch can load: {first_line(error)}.") from error
    return NamedModel(str(path), module, _program_input_size(program))


def _program_input_size(program: object) -> tuple[int, ...] | None:
    """(C, H, W) of the only tensor input, where those sizes are fixed."""
    graph = program.graph_module.graph  # type: ignore[attr-defined]  # torch.export.ExportedProgram
    users = set(program.graph_signature.user_inputs)  # type: ignore[attr-defined]
    values = [n.meta["val"] for n in graph.nodes if n.op == "placeholder" and n.name in users]
    if len(values) != 1 or not hasattr(values[0], "shape"):
        return None
    size = tuple(values[0].shape)[1:]
    return size if all(isinstance(n, int) for n in size) else None


def _unknown(spec: str, name: str, known: Iterable[str], kind: str = "model") -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"a model is {GRAMMAR}."
    return f"{spec!r}: unknown {kind}; {hint}"


def _failed(spec: str, error: BaseException, pretrained: bool = False) -> str:
    action = "getting its pretrained weights" if pretrained else "building it"
    return f"{spec}: {action} failed: {first_line(error)}."
