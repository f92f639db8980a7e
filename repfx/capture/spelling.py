"""Calls that say two things at once, written out where both parts then disappear.

    torch.addcmul(a, b, c, value=v)      a + v (b c)
    torch.addcdiv(a, b, c, value=v)      a + v (b / c)
    torch.lerp(a, b, w)                  (1 - w) a + w b
    torch.addmm(d, x, w, beta, alpha)    (lifted as it is, in `repfx.lifting.table`)

Exact always.  Written out only where a constant multiplies values that convolutions, linears or batch norms
make for nobody else: those take the factor up, so nothing is slower for it.  Other calls stay as they are.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from repfx.graph import Constants, argument, module_at

_MAKERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.modules.batchnorm._BatchNorm,
)  # fmt: skip
_NAMES = ("addcmul", "addcdiv", "lerp")


def spell_out(graph: fx.Graph, root: nn.Module) -> None:
    """Write the calls out as sums of products, where the products fold."""
    constants = Constants(root)
    for node in list(graph.nodes):
        name = _name(node)
        if name not in _NAMES or node.meta.get("aliased") or constants.is_constant(node):
            continue
        written = _lerp(graph, node, constants, root) if name == "lerp" else _product(graph, node, constants, root)
        if written is None:
            continue
        node.replace_all_uses_with(written)
        graph.erase_node(node)


def _product(graph: fx.Graph, node: fx.Node, constants: Constants, root: nn.Module) -> fx.Node | None:
    a, b, c = argument(node, 0, "input"), argument(node, 1, "tensor1"), argument(node, 2, "tensor2")
    value = node.kwargs.get("value", 1)
    if not all(isinstance(v, fx.Node) for v in (a, b, c)) or not isinstance(value, int | float) or len(node.args) > 3:
        return None
    divides = _name(node) == "addcdiv"
    if divides and not constants.is_constant(c):
        return None
    if not _folds(b, c, constants, root):
        return None
    target = operator.truediv if divides else operator.mul
    with graph.inserting_before(node):
        product = _made(graph, node, target, (b, c), {})
        return _made(graph, node, torch.add, (a, product), {"alpha": value})


def _folds(b: fx.Node, c: fx.Node, constants: Constants, root: nn.Module) -> bool:
    """Whether one factor is a constant for each channel, and what makes the other takes it up."""
    given, fixed = (c, b) if constants.is_constant(b) else (b, c)
    if constants.is_constant(given) or not constants.is_constant(fixed):
        return False
    return _takes_up(given, root) and _per_channel(fixed, constants)


def _lerp(graph: fx.Graph, node: fx.Node, constants: Constants, root: nn.Module) -> fx.Node | None:
    a, b, w = argument(node, 0, "input"), argument(node, 1, "end"), argument(node, 2, "weight")
    if not all(isinstance(v, fx.Node) for v in (a, b, w)) or not _per_channel(w, constants):
        return None
    if any(not constants.is_constant(v) and not _takes_up(v, root) for v in (a, b)):
        return None
    with graph.inserting_before(node):
        rest = _made(graph, node, operator.sub, (1, w), {})
        left = _made(graph, node, operator.mul, (a, rest), {})
        right = _made(graph, node, operator.mul, (b, w), {})
        return _made(graph, node, operator.add, (left, right), {})


def _made(graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    new = graph.call_function(target, args, kwargs)
    new.meta = dict(like.meta)
    return new


def _per_channel(constant: fx.Node, constants: Constants) -> bool:
    """Whether it is one number, or one for each entry of a single axis."""
    shape = constants.shape(constant)
    return shape is not None and sum(size != 1 for size in shape) <= 1


def _takes_up(value: fx.Node, root: nn.Module) -> bool:
    """Whether a factor per channel vanishes in what makes this value."""
    if value.op != "call_module" or len(value.users) != 1:
        return False
    return isinstance(module_at(root, str(value.target)), _MAKERS)


def _name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""
