"""What a model's code asks of a traced value, and what can be answered.

Owns: the type of a value (`isinstance(x, Tensor)`), from what computes it; the way around a check
(`assert x.ndim == 4`, `if bad: raise`), which an input that the original accepts takes; and whose code asks.
"""

from __future__ import annotations

import dis
import operator
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

import torch
from torch import Tensor, fx, nn

from repfx.inplace import is_size
from repfx.modules import EMITTED


def place() -> str:
    """The innermost line outside torch and this package: what asked."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_user_code(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_qualname}, line {frame.f_lineno}"


_TUPLES = {
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind", "meshgrid", "max",
    "min", "topk", "sort", "mode", "median", "kthvalue", "var_mean", "std_mean", "unique", "where", "nonzero", "svd",
    "qr", "eigh", "slogdet", "broadcast_tensors", "cummax", "cummin", "frexp", "multi_head_attention_forward",
    "item", "tolist", "dim",
    "numel", "ndimension", "get_device", "stride", "element_size", "nelement", "is_floating_point", "is_complex",
}  # fmt: skip
_ONE_TENSOR = {  # where the modules, and subclasses of theirs, are that return one tensor
    f"torch.nn.modules.{name}"
    for name in (
        "conv", "linear", "batchnorm", "instancenorm", "normalization", "pooling", "padding", "dropout", "flatten",
        "fold", "pixelshuffle", "upsampling", "channelshuffle", "sparse", "activation",
    )
}  # fmt: skip


def kind(node: fx.Node, root: nn.Module, whole: set[str]) -> type:
    """The type of a node's value, from what computes it.  Raises `TraceError` where that does not tell."""
    match node.op:
        case "get_attr":
            return Tensor
        case "call_module":
            module = root.get_submodule(str(node.target))
            plain = any(base.__module__ in _ONE_TENSOR for base in type(module).__mro__) or isinstance(module, EMITTED)
            several = isinstance(module, nn.MultiheadAttention) or getattr(module, "return_indices", False)
            if plain and not several:
                return Tensor
        case "call_function" | "call_method":
            found = _size_kind(node)
            if found is not None:
                return found
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            home = getattr(node.target, "__module__", None) or "torch"
            known = node.op == "call_method" or home.split(".")[0] in ("torch", "_operator")
            if "pool" in name or name in ("boolean_dispatch", "fn"):
                known = not (node.kwargs.get("return_indices") or True in node.args)
            if known and name not in _TUPLES and node.target not in (getattr, operator.getitem):
                return Tensor
            if node.target is operator.getitem and kind(node.all_input_nodes[0], root, whole) is Tensor:
                return Tensor
    raise fx.proxy.TraceError(f"asks what type {node.name} has, which nothing tells")


def is_shape(node: fx.Node) -> bool:
    """Whether a node is `x.shape` or `x.size()`."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and bool(node.args[1] == "shape")


def _size_kind(node: fx.Node) -> type | None:
    """torch.Size of `x.shape` and its slices, int of its items and their sums; None for what is no size."""
    if not is_size(node):
        return None
    if node.target is getattr:
        return torch.Size if node.args[1] == "shape" else int
    if node.op == "call_method":
        return torch.Size if is_shape(node) else int
    if node.target is operator.getitem:
        return torch.Size if isinstance(node.args[1], slice) else int
    if node.target in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg):
        kinds = {_size_kind(source) for source in node.all_input_nodes}
        plain = all(isinstance(a, int | fx.Node) for a in node.args)
        return int if kinds == {int} and plain else None
    raise fx.proxy.TraceError(f"asks what type {node.name} has, which nothing tells")


def way_around_raise(frame: FrameType) -> bool | None:
    """The truth for which `assert ...` or `if ...: raise` does not raise, if that is what asks; else None.

    An input for which it does raise is one that the original refuses.
    """
    if any(_may_catch(outer) for outer in _stack(frame)):
        return None
    code = list(dis.get_instructions(frame.f_code))
    index = {instruction.offset: i for i, instruction in enumerate(code)}
    here = index[frame.f_lasti]
    if code[here].opname == "TO_BOOL":
        here += 1
    name = code[here].opname
    if "JUMP" not in name or not ("IF_TRUE" in name or "IF_FALSE" in name):
        return None
    jumps_if = "IF_TRUE" in name
    if _raises(code, index, here + 1):
        return jumps_if
    if _raises(code, index, index[code[here].argval]):
        return not jumps_if
    return None


_LEAVES = ("RETURN", "YIELD", "STORE_ATTR", "STORE_SUBSCR", "STORE_GLOBAL", "STORE_DEREF", "RERAISE", "SEND")


def _raises(code: Sequence[dis.Instruction], index: Mapping[int, int], start: int) -> bool:
    """Whether every way from here ends in a raise, whatever it computes for its message."""
    work, seen = [start], set()
    while work:
        here = work.pop()
        if here in seen or here >= len(code):
            continue
        seen.add(here)
        name = code[here].opname
        if name == "RAISE_VARARGS":
            continue
        if name.startswith(_LEAVES):
            return False
        jumps = "JUMP" in name or name == "FOR_ITER"
        if jumps:
            work.append(index[code[here].argval])
        if not jumps or "_IF_" in name or name == "FOR_ITER":
            work.append(here + 1)
    return True


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of the model's own code."""
    while frame is not None and "/repfx/capture.py" not in frame.f_code.co_filename:
        if not is_library(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _may_catch(frame: FrameType) -> bool:
    """Whether the line that runs stands inside a `try` or a `with`."""
    table = dis._parse_exception_table(frame.f_code)  # type: ignore[attr-defined]
    return any(entry.start <= frame.f_lasti < entry.end for entry in table)


def is_library(filename: str) -> bool:
    """Whether a file is torch's, ours or Python's own."""
    return not is_user_code(filename) or (filename.startswith(_PYTHON) and "-packages/" not in filename)


_PYTHON = (sysconfig.get_paths()["stdlib"], "<frozen")


def is_user_code(filename: str) -> bool:
    """Whether a file is neither torch's nor ours."""
    return "/torch/" not in filename and "/repfx/" not in filename
