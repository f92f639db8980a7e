"""What type a traced value has, from what computes it.

`isinstance(x, Tensor)`, `type(n)`, `hasattr(out, "logits")`: a model's code asks, and the graph often tells.
Where it does not, the answer is None, which is a refusal and no guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from repfx.graph import OPERATIONS, OpKind, is_shape, is_size, module_at, name_of, operation_named
from repfx.layers import EMITTED, CustomFunction

Known = Callable[[fx.Node], type | None]

_POOLS = {  # the position of return_indices, by name
    **{f"max_pool{n}d": 6 for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": 2 for n in (1, 2, 3)},
    **{f"fractional_max_pool{n}d": 4 for n in (2, 3)},
}
ATTRIBUTES: dict[str, type] = {
    **dict.fromkeys(("T", "H", "mT", "mH", "data", "real", "imag"), Tensor),
    **dict.fromkeys(("ndim", "itemsize", "nbytes", "output_nr"), int),
    **dict.fromkeys(("requires_grad", "is_leaf", "retains_grad", "volatile"), bool),
    **{name: bool for name in dir(Tensor) if name.startswith("is_") and not callable(getattr(Tensor, name))},
    "dtype": torch.dtype,
    "device": torch.device,
    "layout": torch.layout,
    "shape": torch.Size,
}
_SIZE_SUMS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg)
_ONE_TENSOR = {  # where the modules, and subclasses of theirs, are that return one tensor
    f"torch.nn.modules.{name}"
    for name in (
        "conv", "linear", "batchnorm", "instancenorm", "normalization", "pooling", "padding", "dropout", "flatten",
        "fold", "pixelshuffle", "upsampling", "channelshuffle", "sparse", "activation",
    )
}  # fmt: skip


def kind(node: fx.Node, known: Known, root: nn.Module) -> type | None:
    """The type of a node's value, from what computes it and the types (`known`) of what that reads."""
    match node.op:
        case "get_attr":
            return Tensor
        case "call_module":
            return _of_module(module_at(root, str(node.target)))
        case "call_method":
            return _of_method(node, known)
        case "call_function" if node.target is getattr:
            return _of_attribute(node, known)
        case "call_function" if node.target is operator.getitem:
            return _of_item(node, known, root)
        case "call_function":
            return _of_function(node, known)
        case _:
            return None


def _of_module(module: nn.Module) -> type | None:
    if isinstance(module, CustomFunction):
        return Tensor if module.parts is None else tuple
    plain = any(base.__module__ in _ONE_TENSOR for base in type(module).__mro__) or isinstance(module, EMITTED)
    several = isinstance(module, nn.MultiheadAttention) or getattr(module, "return_indices", False)
    return Tensor if plain and not several else None


def _of_method(node: fx.Node, known: Known) -> type | None:
    owner, name = node.args[0], str(node.target)
    if not isinstance(owner, fx.Node) or known(owner) is not Tensor or not hasattr(Tensor, name):
        return None
    if name == "size":
        return torch.Size if is_shape(node) else int
    return _returned(node, name, known)


def _of_attribute(node: fx.Node, known: Known) -> type | None:
    owner, name = node.args[0], str(node.args[1])
    assert isinstance(owner, fx.Node)
    return ATTRIBUTES.get(name) if known(owner) is Tensor else None


def _of_item(node: fx.Node, known: Known, root: nn.Module) -> type | None:
    owner, index = node.args[0], node.args[1]
    assert isinstance(owner, fx.Node)
    of = known(owner)
    if of is Tensor:
        return Tensor
    if of is torch.Size:
        return torch.Size if isinstance(index, slice) else int
    if of is not tuple or not isinstance(index, int):
        return None
    info = operation_named(owner)
    split = info is not None and info.kind is OpKind.SPLIT
    custom = owner.op == "call_module" and isinstance(module_at(root, str(owner.target)), CustomFunction)
    return Tensor if split or custom else None


def _of_function(node: fx.Node, known: Known) -> type | None:
    if is_size(node) and not any(isinstance(a, tuple | list) for a in node.args):
        return _of_number(node, known)
    kinds = {known(source) for source in node.all_input_nodes}
    if node.target is operator.add and not kinds.isdisjoint((torch.Size, tuple)):
        return tuple  # one after the other
    name = name_of(node)
    if node.target in (getattr(operator, name, None), getattr(operator, f"{name}_", None)):
        return Tensor if Tensor in kinds else None
    if node.target is torch.adaptive_max_pool1d:
        return None  # a tensor and its indices, always, unlike that of torch.nn.functional
    ours = (getattr(node.target, "__module__", None) or "").split(".")[0] == "repfx"
    return _returned(node, name, known) if ours or id(node.target) in _TORCHS or name in _POOLS else None


def _of_number(node: fx.Node, known: Known) -> type | None:
    """Of arithmetic on numbers that are read from shapes."""
    plain = all(isinstance(a, int | fx.Node) for a in node.args)
    if not plain or {known(source) for source in node.all_input_nodes} != {int}:
        return None
    if node.target is operator.truediv:
        return float
    return int if node.target in _SIZE_SUMS else None


_SPACES = (torch, torch.nn.functional, torch.fft, torch.linalg, torch.special)
_TORCHS = {id(getattr(space, name)) for space in _SPACES for name in dir(space)}  # a trace lends some of them a wrapper


def _returned(node: fx.Node, name: str, known: Known) -> type | None:
    """What a method or function of torch of this name returns: one tensor, unless the table says otherwise.

    `tests/test_questions.py` holds this against torch's own schemas.
    """
    given = len(node.args) + len(node.kwargs)
    match name.removeprefix("special_"):
        case "max" | "min" | "median" | "nanmedian":
            return Tensor if given == 1 or _is_of_two_tensors(node, known) else None
        case "where" | "type":
            return Tensor if given > 1 else None
        case pool if pool in _POOLS:
            with_indices = node.kwargs.get("return_indices", True in node.args[_POOLS[pool] :])
            return Tensor if with_indices is False else None
        case _:
            info = OPERATIONS.named(name)
            return Tensor if info is None else info.returns


def _is_of_two_tensors(node: fx.Node, known: Known) -> bool:
    """Whether the larger or smaller of two tensors is asked for, element by element."""
    other = node.args[1] if len(node.args) == 2 and not node.kwargs else None
    return isinstance(other, fx.Node) and known(other) is Tensor
