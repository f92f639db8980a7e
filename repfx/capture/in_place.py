"""In-place operations, made functional: every later layer sees values, not memory.

torch.fx traces `out += b` as `out = out + b`, which forgets that `out` may be another value's name:
`out = a; out += b; return out + a` returns 2 (a + b).  `MutableProxy` records what was written, and
`functionalize` lets everybody who reads the old name afterwards read the new value.  Where views share
the memory, nothing is rewritten; `node.meta["aliased"]` marks every value concerned, and the lifting
leaves those alone.  So it is with memory that outlives the forward: inputs, parameters and buffers.

A module whose code is not read (an island, hooks) may write into its arguments.  `meta["overwriters"]` of a
value names such calls; no rewrite moves a reading of the value past one of them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repfx.graph import (
    OPERATIONS,
    Draws,
    OpKind,
    Shares,
    argument,
    is_size,
    module_at,
    modules_of,
    name_of,
    operation_named,
    tensors_of,
)
from repfx.layers import CustomFunction, assign
from repfx.state import memory_of
from repfx.tracing import may_overwrite

_OVERWRITING = ("iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "imod", "iand", "ior", "ixor", "ilshift",
                "irshift", "imatmul")  # fmt: skip
_FACTS = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad", "itemsize", "names")


def functionalize(graph: fx.Graph, root: nn.Module, whole: Iterable[str] = ()) -> None:
    """Rewrite in-place operations as functional ones, or mark what shares memory as aliased.

    The calls named in `whole` are not looked into.
    """
    in_place = [node for node in graph.nodes if _mutated(node, root) is not None]
    if in_place:
        _rewrite(graph, root, in_place)
    for node in graph.nodes:
        for victim in _listed(node):
            _alias(graph, root, _aliases(victim, root) | {node})
    _mark_overwriters(graph, root, set(whole))


def _rewrite(graph: fx.Graph, root: nn.Module, in_place: list[fx.Node]) -> None:
    position = {node: i for i, node in enumerate(graph.nodes)}
    mixed = sum(dtype.is_floating_point for dtype in {t.dtype for t in tensors_of(modules_of(root))}) > 1
    for node in in_place:
        victim = _mutated(node, root)  # by its present name
        if victim is None:
            continue
        if is_size(victim):
            _out_of_place(node)  # numbers are values: `h += 1` changes nobody else's h
            continue
        family = _aliases(victim, root)
        kept = any(m.op in ("placeholder", "get_attr") for m in family)  # outlives this forward
        kept |= mixed and len(node.all_input_nodes) > 1  # in place, the result keeps the dtype of the target
        older = [m for m in family - {victim} if position[m] < position[node]]  # a view made afterwards is of the new
        read_later = any(position[u] > position[node] for m in older for u in m.users if u is not node)
        if kept or read_later or not _out_of_place(node):
            _alias(graph, root, family | {node})
            continue
        for user in list(victim.users):
            if user is not node and position[user] > position[node]:
                user.replace_input_with(victim, node)
    _keep_shared_modules(graph, root, [node for node in in_place if node.op == "call_module"])


def _alias(graph: fx.Graph, root: nn.Module, nodes: set[fx.Node]) -> None:
    """Mark these values, and whatever reads the same parameters and buffers by another name."""
    for node in nodes:
        node.meta["aliased"] = True
    written = {memory_of(v) for n in nodes if n.op == "get_attr" and isinstance(v := _attribute(root, n), Tensor)}
    if not written:
        return
    for node in graph.nodes:
        match node.op:
            case "get_attr":
                value = _attribute(root, node)
                held = [value] if isinstance(value, Tensor) else []
            case "call_module":
                module = module_at(root, str(node.target))
                held = [*module.parameters(), *module.buffers()]
            case _:
                continue
        if any(memory_of(tensor) in written for tensor in held):
            node.meta["aliased"] = True


def _attribute(root: nn.Module, node: fx.Node) -> Any:
    value: Any = root
    for name in str(node.target).split("."):
        value = getattr(value, name, None)
    return value


def _keep_shared_modules(graph: fx.Graph, root: nn.Module, in_place: list[fx.Node]) -> None:
    """A module that works in place for one caller does so for all its callers."""
    kept = {n.target for n in in_place if n.meta.get("aliased")}
    for node in in_place:
        victim = _mutated(node, root)
        if node.target in kept and victim is not None and not node.meta.get("aliased"):
            _alias(graph, root, _aliases(victim, root) | {node})


def _mark_overwriters(graph: fx.Graph, root: nn.Module, whole: set[str]) -> None:
    """Note at every value which unread modules are given its memory."""
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        if str(node.target) in whole:
            node.meta["unread"] = True  # never dead: it may count, draw, or write where we do not look
        if str(node.target) not in whole and not isinstance(module_at(root, str(node.target)), CustomFunction):
            continue
        if not may_overwrite(module_at(root, str(node.target))):
            continue
        node.meta["overwrites"] = True  # never dead, though nobody may read its result
        for given in node.all_input_nodes:
            for member in _aliases(given, root) - {node}:
                member.meta.setdefault("overwriters", []).append(node)


def _out_of_place(node: fx.Node) -> bool:
    """Make the operation functional; modules are switched where they are copied (`inplace`)."""
    if node.op == "call_module":
        return True
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        if name in ("resize", "resize_as") or not callable(getattr(torch.Tensor, name, None)):
            return False
        node.target = name
        return True
    if node.kwargs.get("out") is not None:
        return False
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    if node.target is operator.setitem:
        node.target = assign
        return True
    name = _name(node)
    if getattr(operator, name, None) is node.target:
        node.target = getattr(operator, f"{name[1:]}_" if name in ("iand", "ior") else name[1:])
        return True
    if node.target not in (getattr(torch, name, None), getattr(F, name, None)) or not hasattr(torch, name.rstrip("_")):
        return False  # no operation of torch's own, such as nn.init.normal_
    node.target = getattr(torch, name.rstrip("_"))
    return True


def works_in_place(module: nn.Module) -> bool:
    """Whether `module.inplace` is set.  Most modules have none, and saying so takes nn.Module long."""
    if hasattr(type(module), "inplace"):
        return getattr(module, "inplace", False) is True
    return module.__dict__.get("inplace") is True


def _drops_nothing(module: nn.Module) -> bool:
    """Whether a module is a dropout that returns its argument as it is, and so writes nothing."""
    return isinstance(module, nn.modules.dropout._DropoutNd) and (not module.training or module.p == 0)


def _mutated(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The value that this node overwrites, if any."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    first = node.args[0] if node.args else next((node.kwargs[n] for n in _FIRST if n in node.kwargs), None)
    if not isinstance(first, fx.Node):
        return None
    match node.op:
        case "call_module":
            module = module_at(root, str(node.target))
            return first if works_in_place(module) and not _drops_nothing(module) else None
        case "call_function":
            return first if _function_overwrites(node) else None
        case "call_method":
            return first if _ends_in_place(node) and node.target != "requires_grad_" else None
        case _:
            return None


def _function_overwrites(node: fx.Node) -> bool:
    """Whether a function writes into its first argument."""
    name = _name(node)
    if getattr(node.target, "__module__", "") == "_operator":  # `and_` and `or_` write nothing
        return name in _OVERWRITING or name == "setitem"
    info = operation_named(node)
    drops = info is not None and info.kind is OpKind.COPY and info.draws is Draws.TRAINING
    if drops and argument(node, 2, "training") is False:
        return False  # a dropout that drops nothing
    return node.kwargs.get("inplace") is True or _ends_in_place(node)


def _ends_in_place(node: fx.Node) -> bool:
    name = _name(node)
    return name.endswith("_") and not name.endswith("__")


def _listed(node: fx.Node) -> list[fx.Node]:
    """The values in a list that a function overwrites: `torch._foreach_mul_([a, b], 2.0)`."""
    name, first = _name(node), node.args[0] if node.args else None
    out = node.kwargs.get("out")
    if isinstance(out, tuple | list):
        return [value for value in out if isinstance(value, fx.Node)]
    if name in ("batch_norm", "instance_norm") and argument(node, 5, "training") is True:
        running = (argument(node, 1, "running_mean"), argument(node, 2, "running_var"))
        return [value for value in running if isinstance(value, fx.Node) and value.op == "get_attr"]
    overwrites = node.op == "call_function" and _ends_in_place(node)
    if not overwrites or not isinstance(first, list | tuple):
        return []
    return [value for value in first if isinstance(value, fx.Node)]


_FIRST = ("input", "tensor", "self")  # what functions call their first argument, `nn.init.constant_(tensor=y)`


def _aliases(node: fx.Node, root: nn.Module) -> set[fx.Node]:
    """All values that may share memory with `node`."""
    family, work = {node}, [node]
    while work:
        member = work.pop()
        near = [user for user in member.users if member in _viewed(user, root)]
        for other in (*near, *_viewed(member, root)):
            if other not in family:
                family.add(other)
                work.append(other)
    return family


def _viewed(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The arguments whose memory a value may share."""
    match _shares(node, root):
        case Shares.NOTHING:
            return []
        case Shares.FIRST:
            return node.all_input_nodes[:1]
        case Shares.ALL:
            return node.all_input_nodes


def _shares(node: fx.Node, root: nn.Module) -> Shares:
    """Whose memory a value may be."""
    if node.op == "call_module":
        return _shares_module(node, module_at(root, str(node.target)))
    if node.meta.get("aliased") and _mutated(node, root) is not None:
        return Shares.FIRST  # it returns the very tensor that it overwrote
    if node.target is getattr:
        return Shares.NOTHING if node.args[1] in _FACTS else Shares.FIRST  # x.T, x.mT, x.data, x.real
    info = operation_named(node)
    return Shares.NOTHING if info is None else info.shares


def _shares_module(node: fx.Node, module: nn.Module) -> Shares:
    """Code that we do not read may return any of its arguments, and a module that works in place its first."""
    info = OPERATIONS.of_module(module)
    if info is None:
        return Shares.ALL
    in_place = node.meta.get("aliased") and works_in_place(module) and not _drops_nothing(module)
    return Shares.FIRST if in_place else info.shares


def _name(node: fx.Node) -> str:
    """What a method or function is called; the overloads of an ATen operation have one name."""
    return name_of(node).partition(".")[0]
