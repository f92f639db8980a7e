"""Evaluation mode, which every compiled model is in."""

from __future__ import annotations

from torch import nn

from repfx.errors import TrainingModeError


def check_mode(model: nn.Module) -> None:
    """Raise TrainingModeError if the model is in training mode and that matters."""
    if not model.training:
        return
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise TrainingModeError(
                f"{path or type(module).__name__} is a batch norm in training mode, whose output depends on the "
                "batch; call model.eval() first"
            )
    raise TrainingModeError(f"{type(model).__name__} is in training mode; call model.eval() first")
