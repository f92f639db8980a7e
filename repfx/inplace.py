"""In-place operations, made functional: every later layer sees values, not memory.

torch.fx traces `out += b` as `out = out + b`, which forgets that `out` may be another value's name:
`out = a; out += b; return out + a` returns 2 (a + b).  `MutableProxy` records what was written, and
`functionalize` lets everybody who reads the old name afterwards read the new value.  Where views share
the memory, nothing is rewritten; `node.meta["aliased"]` marks every value concerned, and the lifting
leaves those alone.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import ParameterProxy

from repfx.functional import assign


class SizedParameterProxy(ParameterProxy):
    """A parameter in a trace: its sizes are numbers, `len` included."""

    def __len__(self) -> int:
        return len(self.param)


class MutableProxy(fx.Proxy):
    """A traced value that records in-place arithmetic and item assignment as such."""

    def _in_place(self, target: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


_VIEWS = {
    "view", "reshape", "flatten", "transpose", "permute", "contiguous", "expand", "chunk", "split", "unbind",
    "squeeze", "unsqueeze", "narrow", "getitem", "select", "view_as", "t", "expand_as", "detach", "swapaxes",
    "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "to", "type", "type_as", "float", "double",
    "half", "bfloat16", "cpu", "cuda", "unflatten", "unfold", "movedim", "moveaxis", "swapdims", "diagonal",
    "as_strided",
    "reshape_as", "broadcast_to", "ravel", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_alpha_dropout", "real", "positive", "atleast_1d", "atleast_2d", "atleast_3d", "conj",
    "resolve_conj", "resolve_neg", "view_as_real", "view_as_complex", "slice_inverse", "identity", "requires_grad_",
}  # fmt: skip


def functionalize(graph: fx.Graph, root: nn.Module) -> None:
    """Rewrite in-place operations as functional ones, or mark what shares memory as aliased."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        victim = _mutated(node, root)
        if victim is None:
            continue
        if is_size(victim):
            _out_of_place(node)  # numbers are values: `h += 1` changes nobody else's h
            continue
        family = _aliases(victim, root)
        read_later = any(position[u] > position[node] for m in family - {victim} for u in m.users if u is not node)
        if victim.op in ("placeholder", "get_attr") or read_later or not _out_of_place(node):
            for member in family | {node}:
                member.meta["aliased"] = True
            continue
        for user in list(victim.users):
            if user is not node and position[user] > position[node]:
                user.replace_input_with(victim, node)


def _out_of_place(node: fx.Node) -> bool:
    """Make the operation functional; modules are switched where they are copied (`inplace`)."""
    if node.op == "call_module":
        return True
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        if not hasattr(torch.Tensor, name):
            return False
        node.target = name
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    if node.target is operator.setitem:
        node.target = assign
        return True
    name = getattr(node.target, "__name__", "")
    plain = getattr(operator, name[1:], None) if name.startswith("i") else getattr(torch, name.rstrip("_"), None)
    if plain is None:
        return False
    node.target = plain
    return True


def _mutated(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The value that this node overwrites, if any."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        return None
    match node.op:
        case "call_module":
            module = root.get_submodule(str(node.target))
            return first if getattr(module, "inplace", False) is True else None
        case "call_function":
            name = getattr(node.target, "__name__", "")
            in_place = name.startswith("i") and getattr(node.target, "__module__", "") == "_operator"
            if node.target is operator.setitem:
                return first
            in_place = in_place and name in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior")
            if in_place or node.kwargs.get("inplace") is True or (name.endswith("_") and not name.endswith("__")):
                return first
            return first if node.kwargs.get("out") is not None else None
        case "call_method":
            name = str(node.target)
            return first if name.endswith("_") and not name.endswith("__") else None
        case _:
            return None


def _aliases(node: fx.Node, root: nn.Module) -> set[fx.Node]:
    """All values that may share memory with `node`."""
    family, work = {node}, [node]
    while work:
        member = work.pop()
        near = [user for user in member.users if _is_view(user, root)]
        if _is_view(member, root):
            near += list(member.all_input_nodes[:1])
        for other in near:
            if other not in family:
                family.add(other)
                work.append(other)
    return family


def _is_view(node: fx.Node, root: nn.Module) -> bool:
    if node.meta.get("aliased") and _mutated(node, root) is not None:
        return True  # it returns the very tensor that it overwrote
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if not type(module).__module__.startswith("torch.nn"):
            return True  # code we do not read may return its argument
        return isinstance(module, nn.Identity | nn.Dropout | nn.Flatten | nn.Unflatten)
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _VIEWS


def is_size(node: fx.Node) -> bool:
    """Whether a value is a number read from a shape, or computed from such numbers."""
    if node.op == "call_method":
        return str(node.target) in ("size", "dim", "numel", "ndimension", "__len__")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    inputs = node.all_input_nodes
    return bool(inputs) and getattr(node.target, "__module__", "") == "_operator" and all(map(is_size, inputs))
