"""A model of any dtype computed in float64, constants that its code makes and casts that it does included.

    torch.tensor([1.0, 2.0]), torch.eye(3), x.float(), x.to(torch.bfloat16)      all are float64

so that what remains between two models is a wrong fold and no rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_LOWER = (torch.float32, torch.float16, torch.bfloat16)
_BITS = ("aten::view", "aten::view_copy")  # what reads memory as another dtype stays what it is


class InDouble(TorchDispatchMode):
    """While it is open, every operation takes and makes float64 where the code says float32 or half.

    `rounds_to` is then the dtype that the code has asked for though it is narrower than `own`, the model's: such a
    rounding is part of what the model computes, and is left out here.
    """

    def __init__(self, own: torch.dtype) -> None:
        super().__init__()
        self.own = own
        self.rounds_to: torch.dtype | None = None

    def __enter__(self) -> Any:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadname == "dtype" and func._schema.name in _BITS:
            return func(*args, **kwargs)
        kept = _written(func, args, kwargs) if func._schema.is_mutable else ()
        asked = kwargs.get("dtype")
        if asked in _LOWER and torch.finfo(asked).eps > torch.finfo(self.own).eps:
            self.rounds_to = asked
        return func(*[_raised(a, kept) for a in args], **{name: _raised(a, kept) for name, a in kwargs.items()})


def _raised(value: Any, kept: Sequence[Any]) -> Any:
    """The argument with float64 in the place of what is less, but for what is to be `kept`."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _LOWER and not any(value is other for other in kept) else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _LOWER else value
    if type(value) in (list, tuple):
        return type(value)([_raised(item, kept) for item in value])
    return value


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to: their dtype is theirs."""
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(kwargs.get(argument.name) if position >= len(args) else args[position])
    return found
