"""The module that is meant: what data-parallel, `torch.compile` and weight-averaging wrappers were put around."""

from __future__ import annotations

import sys

import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from repfx.capture.exported_program import is_exported, plain_graph
from repfx.errors import UserError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside all wrappers; the graph of an exported one.

    Raises `UserError` for a TorchScript module, whose code is not Python any more.
    """
    inner = _inside(model)
    while inner is not model:
        model, inner = inner, _inside(inner)
    is_program = isinstance(model, fx.GraphModule) and is_exported(model)
    return plain_graph(model) if is_program else model  # type: ignore[arg-type]


def _inside(model: nn.Module) -> nn.Module:
    """What the outermost wrapper holds; the module itself, where there is none."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"{model.original_name} is a TorchScript module, whose code torch.fx cannot read; "
            "pass the module that it was made from, and script the result"
        )
    if _is_compiled(model):
        original: nn.Module = model._orig_mod  # type: ignore[assignment]
        return original
    if isinstance(model, _WRAPPERS):
        held: nn.Module = model.module
        return held
    return model


def _is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` made it.  Its module is a slow import, and loaded where it is used."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(model, compiler.OptimizedModule)
