"""A call of an autograd function, as a module: it keeps the backward that it defines."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class CustomFunction(nn.Module):
    """y = function.apply(x, ...): a call of an autograd function, which keeps the backward that it defines."""

    def __init__(self, function: type[torch.autograd.Function], parts: int | None = None) -> None:
        """`parts`: how many values it returns; None: one, not in a tuple."""
        super().__init__()
        self.function, self.parts = function, parts

    def forward(self, *args: Any) -> Any:
        """As the function's."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        return self.function.__name__
