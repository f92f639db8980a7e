"""Are two graphs of one model the same?  And if not: in whose forward do they begin to differ?"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.state import is_met
from repfx.tracing.outcome import Traced


def owner(node: fx.Node) -> str:
    """Path of the module whose forward a node stands in; a call of a module stands in the forward that calls it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return ""
    innermost = stack[-1]
    path = innermost[0] if isinstance(innermost, tuple) else str(innermost)
    is_its_own_call = node.op == "call_module" and path == node.target
    return path.rpartition(".")[0] if is_its_own_call else path


def first_difference(first: Traced, second: Traced, agreed: Collection[str] = ()) -> str | None:
    """Path of the module in whose forward two graphs begin to differ; None if they do not.

    Calls of the modules in `agreed` may be made of other operations.
    """
    same: dict[fx.Node, fx.Node] = {}
    ours, theirs = _told(first.graph), _told(second.graph)
    for path in agreed:
        one, other = calls_of(first.graph, path), calls_of(second.graph, path)
        same |= {_made(other[key]): _made(one[key]) for key in one}
        ours, theirs = _without(ours, one), _without(theirs, other)
    for mine, its in zip(ours, theirs):
        if not _alike(mine, its, same, first.shell, second.shell):
            return _common(owner(mine), owner(its))
        same[its] = mine
    if len(ours) == len(theirs):
        return None
    shorter, longer = sorted((ours, theirs), key=len)
    return owner(longer[len(shorter)])


def calls_of(graph: fx.Graph, path: str) -> dict[str, list[fx.Node]]:
    """The nodes of each call of a module, by the call; reading a weight belongs to none."""
    found: dict[str, list[fx.Node]] = {}
    for node in _told(graph):
        stack = node.meta.get("nn_module_stack", {})
        key = next((key for key, entry in stack.items() if entry[0] == path), None)
        if key is not None and node.op != "get_attr":
            found.setdefault(key, []).append(node)
    return found


def _without(nodes: list[fx.Node], calls: Mapping[str, list[fx.Node]]) -> list[fx.Node]:
    """The nodes outside these calls."""
    inside = set(itertools.chain(*calls.values()))
    return [node for node in nodes if node not in inside]


def _made(call: list[fx.Node]) -> fx.Node:
    """What a call returns."""
    inside = set(call)
    return next(node for node in call if any(user not in inside for user in node.users))


def _told(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that compute something; a weight is known by its name, and may be read anywhere."""
    return [node for node in graph.nodes if not node.meta.get("guard") and not _is_weight(node)]


def _is_weight(node: fx.Node) -> bool:
    return node.op == "get_attr" and not is_met(str(node.target))


def _alike(one: fx.Node, other: fx.Node, same: dict[fx.Node, fx.Node], ours: nn.Module, theirs: nn.Module) -> bool:
    if one.op != other.op or owner(one) != owner(other):
        return False
    if one.op == "get_attr":
        return _equal(getattr(ours, str(one.target)), getattr(theirs, str(other.target), None))
    if one.target is not other.target and _called(one.target) != _called(other.target):
        return False
    return _written(one, {}) == _written(other, same)


def _written(node: fx.Node, same: dict[fx.Node, fx.Node]) -> str:
    """The arguments as text, with the values of the other graph called as in this one."""

    def called(given: fx.Node) -> Any:
        return f"@{given.target}" if _is_weight(given) else same.get(given, given).name

    return repr(fx.node.map_arg((node.args, node.kwargs), called))


def _called(target: Any) -> Any:
    """What tells two functions apart that were made anew for each trace."""
    if isinstance(target, str):
        return target
    return getattr(target, "__module__", None), getattr(target, "__qualname__", id(target))


def _equal(a: Any, b: Any) -> bool:
    """Whether two constants that a trace met are the same; of those on the meta device nothing else is known."""
    if a is b:
        return True
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.device.type == "meta":
        return True
    if a.is_floating_point():
        a, b = a.nan_to_num(), b.nan_to_num()
    return torch.equal(a, b)


def _common(a: str, b: str) -> str:
    """The module that holds both."""
    shared = []
    for x, y in zip(a.split("."), b.split(".")):
        if x != y:
            break
        shared.append(x)
    return ".".join(shared)
