"""Which methods and functions of torch return their argument's own memory: the tables, held against every one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repfx.capture import in_place as inplace

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128)  # fmt: skip
TENSORS = [torch.ones(4, 4, dtype=dtype) for dtype in DTYPES] + [torch.rand(4), torch.rand(2, 4, 4, 4)]
ARGUMENTS: tuple[tuple[Any, ...], ...] = (
    (0,), (2,), (0, 1), (0, 0, 1), ([4, 4],), ((4, 4), (4, 1)), (torch.rand(4, 4),), (0, (2, 2)), (0, [0, 1]), (-1,),
)  # fmt: skip
CALLS = [(tensor, ()) for tensor in TENSORS] + [(TENSORS[0], arguments) for arguments in ARGUMENTS]
NOT_CALLED = {  # they change this process, wait, or write files
    "save", "load", "compile", "seed", "fork", "wait", "share_memory_", "register_hook", "backward", "cuda", "xpu",
    "import_ir_module", "import_ir_module_from_buffer", "get_file_path", "manual_seed", "storage", "untyped_storage",
}  # fmt: skip
IN_PLACE_IF_ASKED = {  # `F.relu(y, True)`: told by an argument, which the tracer reads
    "elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6", "selu", "silu", "threshold",
}  # fmt: skip


def shares(value: Any, tensor: Tensor) -> bool:
    found = value if isinstance(value, tuple | list) else [value]
    strided = [t for t in found if isinstance(t, Tensor) and t.layout is torch.strided and t.numel()]
    return any(t.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for t in strided)


def functions() -> Iterator[tuple[str, Callable[..., Any] | None]]:
    """Every method of tensors (no function: it is called by its name) and function of torch's."""
    for name in dir(Tensor):
        if callable(getattr(Tensor, name)):
            yield name, None
    for space in (torch, F, torch.fft, torch.linalg, torch.special):
        for name in dir(space):
            function = getattr(space, name)
            if inspect.isbuiltin(function) or inspect.isfunction(function):
                yield name, function


def returns_its_argument(name: str, function: Callable[..., Any] | None) -> bool:
    for tensor, arguments in CALLS:
        own = tensor.clone()
        with suppress(Exception):  # not a call of this function
            value = getattr(own, name)(*arguments) if function is None else function(own, *arguments)
            if shares(value, own):
                return True
    return False


def told(name: str, function: Callable[..., Any] | None) -> bool:
    """Whether the tables know it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_method(name, (x,)) if function is None else graph.call_function(function, (x,))
    return x in inplace._viewed(node, nn.Module())


def test_what_returns_its_argument_is_known_to() -> None:
    missed, seen = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, function in functions():
            skipped = name.startswith(("_", "set_", "use_")) or name.endswith("_") or name in NOT_CALLED
            if skipped or name in IN_PLACE_IF_ASKED or not returns_its_argument(name, function):
                continue
            seen += 1
            if not told(name, function):
                missed.append(name)
    assert not missed
    assert seen > 80


def test_attributes_that_are_the_same_memory_are_known_to_be() -> None:
    for name in dir(Tensor):
        if name.startswith("_") or callable(getattr(Tensor, name)):
            continue
        for tensor in TENSORS:
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if shares(getattr(tensor, name), tensor):
                    graph = fx.Graph()
                    x = graph.placeholder("x")
                    assert x in inplace._viewed(graph.call_function(getattr, (x, name)), nn.Module()), name
