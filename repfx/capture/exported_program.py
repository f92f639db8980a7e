"""A program of torch.export as a graph of ordinary torch functions, which the compiler reads.

An exported program calls ATen overloads on its lifted parameters.  `plain_module` renames the calls
that have an ordinary torch function of the same meaning, argument for argument; every other call
stays as it is.  The guards that torch.export puts before a program go: they repeat the sizes of the
example input, and the program fails on others by itself or not at all.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from repfx.errors import TrainingModeError

_aten = torch.ops.aten


def plain_module(program: ExportedProgram) -> nn.Module:
    """The program as a module in evaluation mode, its ATen calls renamed where torch has the same."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return plain_graph(module)


def is_exported(model: nn.Module) -> bool:
    """Whether a module is what `ExportedProgram.module()` or `make_fx` gives: ATen calls and nothing else."""
    return isinstance(model, fx.GraphModule) and any(isinstance(n.target, OpOverload) for n in model.graph.nodes)


def plain_graph(module: fx.GraphModule) -> nn.Module:
    """A graph of ATen calls as one of torch's own functions, in evaluation mode; `module` stays as it is.

    Raises `TrainingModeError` where it computes a batch norm as in training.
    """
    module = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in module.graph.nodes:
        _rename(node)
    for call in [n for n in module.graph.nodes if n.target in (_aten._assert_tensor_metadata.default, "_guards_fn")]:
        module.graph.erase_node(call)
    module.graph.eliminate_dead_code()
    module.recompile()
    graph = fx.Tracer().trace(module)  # leaves behind the hooks and the flattening of inputs and outputs
    return fx.GraphModule(module, graph).eval()


def _rename(node: fx.Node) -> None:
    """Call a function of torch's own where one means the same; a dropout that drops nothing is passed by."""
    if node.op == "call_function" and node.target in _SAME:
        node.target = _SAME[node.target]
    elif node.target in _IN_PLACE and not node.kwargs:
        node.target = _IN_PLACE[node.target]
    elif node.target is _aten.batch_norm.default:
        _rename_batch_norm(node)
    elif node.target is _aten.dropout.default and node.args[2] is False:
        given = node.args[0]
        assert isinstance(given, fx.Node)
        node.replace_all_uses_with(given)


def _rename_batch_norm(node: fx.Node) -> None:
    """aten: (x, weight, bias, mean, var, training, ...); torch: (x, mean, var, weight, bias, training, ...)."""
    x, weight, bias, mean, var, training, momentum, eps, _ = node.args
    if training is True:
        raise TrainingModeError(
            f"{node.name} is a batch norm in training mode, whose output depends on the batch; call eval() on the "
            "model before exporting it"
        )
    node.target = F.batch_norm
    node.args = (x, mean, var, weight, bias, training, momentum, eps)


_SAME: dict[Any, Callable[..., Any]] = {
    _aten.conv1d.default: F.conv1d,
    _aten.conv2d.default: F.conv2d,
    _aten.conv2d.padding: F.conv2d,
    _aten.conv3d.default: F.conv3d,
    _aten.conv_transpose1d.default: F.conv_transpose1d,
    _aten.conv_transpose2d.input: F.conv_transpose2d,
    _aten.conv_transpose3d.input: F.conv_transpose3d,
    _aten.pixel_shuffle.default: F.pixel_shuffle,
    _aten.pixel_unshuffle.default: F.pixel_unshuffle,
    _aten.linear.default: F.linear,
    _aten.matmul.default: torch.matmul,
    _aten.addmm.default: torch.addmm,
    _aten.lerp.Scalar: torch.lerp,
    _aten.neg.default: torch.neg,
    _aten.flip.default: torch.flip,
    _aten.roll.default: torch.roll,
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.mul.Tensor: torch.mul,
    _aten.div.Tensor: torch.div,
    _aten.cat.default: torch.cat,
    _aten.stack.default: torch.stack,
    _aten.chunk.default: torch.chunk,
    _aten.split.Tensor: torch.split,
    _aten.split_with_sizes.default: torch.split,
    _aten.mean.dim: torch.mean,
    _aten.flatten.using_ints: torch.flatten,
    _aten.permute.default: torch.permute,
    _aten.index_select.default: torch.index_select,
    _aten.relu.default: F.relu,
    _aten.avg_pool2d.default: F.avg_pool2d,
    _aten.max_pool2d.default: F.max_pool2d,
    _aten.adaptive_avg_pool2d.default: F.adaptive_avg_pool2d,
    _aten.pad.default: F.pad,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.silu.default: F.silu,
    _aten.hardswish.default: F.hardswish,
}
_IN_PLACE: dict[Any, Callable[..., Any]] = {
    _aten.add_.Tensor: operator.iadd,
    _aten.sub_.Tensor: operator.isub,
    _aten.mul_.Tensor: operator.imul,
    _aten.div_.Tensor: operator.itruediv,
    _aten.relu_.default: torch.relu_,
}
