"""What an operation costs, from structure alone, and operations counted in a real forward.

`heavy` are convolutions, linears and products of two values, `light` are passes over memory (adds, copies,
concatenations; a lone scale and shift is two).  `macs` are per position of the sink's output, so that
values of different resolution compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import padding
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from repfx.affine import AffineConv
from repfx.attention import is_call, product_of, transposed_last
from repfx.decline import Decline
from repfx.form import Form, Kind, form_of
from repfx.functional import assign
from repfx.graph import LiftedGraph
from repfx.modules import BorderTerm
from repfx.ops import Affine, Alias, Concat, Constant, Input, Normalised, Opaque, Resampling, Sum
from repfx.report import OpCounts


@dataclass(frozen=True)
class Cost:
    """Cost of executing something once."""

    heavy: int = 0
    light: int = 0
    macs: int = 0
    parameters: int = 0
    dense: bool = False  # whether a convolution in it mixes channels

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.heavy + other.heavy,
            self.light + other.light,
            self.macs + other.macs,
            self.parameters + other.parameters,
            self.dense or other.dense,
        )

    def at(self, density: Fraction | int) -> Cost:
        """The same at a resolution `density` times higher than the sink's (below one: lower)."""
        return self if density == 1 else replace(self, macs=ceil(self.macs * density))


def cost_of_form(form: Form) -> Cost:
    """Cost of an emitted form."""
    match form.kind:
        case Kind.IDENTITY:
            return Cost()
        case Kind.COPY:
            return Cost(light=1 if form.gathers else 0)
        case Kind.SCALE:
            return Cost(light=2, parameters=form.parameters)
        case Kind.CONV | Kind.LINEAR | Kind.TRANSPOSED:
            extras = [form.gathers, form.order is not None, form.padded_apart and form.kind is Kind.CONV]
            light = form.borders + sum(extras)
            return Cost(1, light, form.macs, form.parameters, dense=form.in_channels > form.groups)


def cost_of_map(map_: AffineConv) -> Cost:
    """Cost of a map in its executed form."""
    return cost_of_form(form_of(map_))


def cost_as_written(map_: AffineConv) -> Cost:
    """Cost of the operation that the user wrote: a crop or a pad is a copy, a pooling multiplies nothing."""
    if map_.uniform:
        return Cost(heavy=1)
    if map_.is_identity:
        return Cost(light=1)  # an operation nevertheless, if only a view
    if map_.is_zoomed:
        return cost_of_map(map_)
    if map_.incidence.is_depthwise and all(k == 1 for k in map_.kernel) and not map_.borders and not map_.is_pointwise:
        return Cost(light=1)
    return cost_of_map(map_)


_PADS = (padding._ConstantPadNd, padding._ReflectionPadNd, padding._ReplicationPadNd, padding._CircularPadNd)


def _pads(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether a node only extends or crops the image, by whatever value: a copy."""
    if node.op == "call_module":
        return isinstance(lifted.context.module(node), _PADS)
    return node.target in (F.pad, assign)


def generates_weight(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether a node's weight is computed from parameters in every forward."""
    if node in lifted.records:
        return False
    if node.op == "call_module":
        module = lifted.context.module(node)
        hooks = module._forward_pre_hooks.values()
        return parametrize.is_parametrized(module) or any(hasattr(hook, "compute_weight") for hook in hooks)
    constants = [n for n in node.all_input_nodes if lifted.context.constants.is_constant(n)]
    return any(n.op != "get_attr" for n in constants)


def cost_of_node(lifted: LiftedGraph, node: fx.Node, axes: int) -> Cost:
    """What executing a node of the graph costs, per position of its output."""
    match lifted.op(node):
        case Affine(axes=own):
            map_ = lifted.map_of(node, axes if own is None else own)
            if isinstance(map_, Decline):
                return Cost(light=1)
            if node in lifted.records:
                return cost_of_map(map_)
            if _pads(lifted, node):
                return Cost(light=2 if map_.borders else 1)  # a value other than zero is filled in, then copied over
            return cost_as_written(map_) + Cost(light=1 if generates_weight(lifted, node) else 0)
        case Sum(terms=terms, shift=shift):
            scales = sum(factor not in (1.0, -1.0) for _, factor in terms)
            return Cost(light=max(1, len(terms) - 1 + scales) + (1 if shift and len(terms) > 1 else 0))
        case Concat() | Alias() | Resampling():
            return Cost(light=1)
        case Normalised(parameters=parameters):
            return Cost(light=1, parameters=parameters)  # the scale and shift; what it normalises is not counted
        case Opaque():
            return _cost_of_opaque(lifted, node)
        case Constant() | Input():
            return Cost()


def _cost_of_opaque(lifted: LiftedGraph, node: fx.Node) -> Cost:
    """A product of two values is heavy, a transposition is a view, anything else a pass over memory."""
    if is_call(node):
        return COST_OF_ATTENTION
    if product_of(lifted, node) is not None:
        return Cost(heavy=1)
    return Cost(light=0 if transposed_last(lifted, node) is not None else 1)


_FRAME = Fraction(9, 10)  # positions inside a frame for one of the framed image, in order of magnitude


def _widens(map_: AffineConv) -> bool:
    """Whether the output is larger than the input by a frame: what is merged into it will be computed there too."""
    return not map_.is_zoomed and all(s == 1 for s in map_.stride) and any(e > -1 for e in map_.extent)


# Two products, and the scores between them are never written to memory.
COST_OF_ATTENTION = Cost(heavy=2)


def cost_of_nodes(lifted: LiftedGraph, nodes: Sequence[fx.Node], sinks: Sequence[fx.Node], axes: int) -> Cost:
    """What executing these nodes costs, per position of the sink's output.

    Where several nodes are replaced, each is held against its own replacement at its own resolution.
    """
    if len(sinks) > 1:
        return sum((cost_of_node(lifted, node, axes) for node in nodes), Cost())
    density: dict[fx.Node, Fraction | int] = dict.fromkeys(sinks, 1)
    total = Cost()
    for node in sorted(nodes, reverse=True):
        own = density.get(node, 1)
        total = total + cost_of_node(lifted, node, axes).at(own)
        op = lifted.op(node)
        factor = own
        sources = lifted.sources(node)
        if isinstance(op, Affine):
            map_ = lifted.map_of(node, axes if op.axes is None else op.axes)
            if isinstance(map_, AffineConv):
                factor *= Fraction(prod(map_.stride), prod(map_.zoom)) if map_.is_zoomed else prod(map_.stride)
                factor *= _FRAME if _widens(map_) else 1
        elif isinstance(op, Resampling):
            factor *= op.resolution.density
            sources = (op.source,)
        for source in sources:
            density[source] = max(density.get(source, factor), factor)
    return total


_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")
_LINEARS = ("addmm", "mm", "linear", "mkldnn_linear")
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm",
          "_native_batch_norm_legit", "_batch_norm_no_update")  # fmt: skip
_SPLITS = ("split", "split_with_sizes", "chunk", "unbind")
_FREE = ("view", "_unsafe_view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "detach", "alias",
         "slice",         "select", "as_strided", "_reshape_alias", "lift_fresh", "empty")  # fmt: skip


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.macs = 0
        self.unseen = 0  # depth of what is not counted operation by operation

    def add(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.unseen:
            return out
        name = func.overloadpacket.__name__
        if name in _CONVOLUTIONS:
            self.add("convolutions")
            weight = args[1]
            transposed = bool(args[6]) if len(args) > 6 else False
            positions = args[0] if transposed else out
            self.macs += weight[0].numel() * positions.numel()
        elif name in _LINEARS:
            self.add("linears")
            left = args[1] if name == "addmm" else args[0]
            self.macs += left.shape[-1] * out.numel()
        elif name in ("bmm", "baddbmm"):
            self.add("others")
            self.macs += args[-2].shape[-1] * out.numel()
        elif name in _NORMS:
            self.add("batch_norms")
        elif name in ("add", "add_", "sub", "sub_"):
            self.add("adds")
        elif name in ("mul", "mul_", "div", "div_"):
            self.add("muls")
        elif name in ("cat", "stack"):
            self.add("concats")
        elif name in _SPLITS:
            self.add("splits")
        elif name == "index_select":
            self.add("permutations")
        elif name not in _FREE and isinstance(out, Tensor | tuple):
            self.add("others")
        return out


class _Calls(TorchFunctionMode):
    """Attention is one operation, whichever kernel runs it: some devices and dtypes execute it in pieces."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.counter.unseen:
            return func(*args, **keywords)
        self.counter.unseen += 1
        out = func(*args, **keywords)
        self.counter.unseen -= 1
        names = zip(("query", "key", "value"), range(3))
        query, key, value = (args[i] if i < len(args) else keywords[name] for name, i in names)
        self.counter.add("others")
        self.counter.macs += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return out


def count_operations(model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> OpCounts:
    """Operations executed in one forward of `model(*inputs, **keywords)`, and its multiply-accumulates.

    Counted as they reach the dispatcher, so functional calls count like modules.  Views are free; the
    broadcast add of a border term is counted apart, and its map, which depends on the size only, is not.
    """
    counter = _Counter()
    borders = 0
    handles = []

    def enter(module: nn.Module, args: Any) -> None:
        counter.unseen += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal borders
        counter.unseen -= 1
        borders += 1

    for module in model.modules():
        if isinstance(module, BorderTerm):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad(), counter, _Calls(counter):
            model(*inputs, **(keywords or {}))
    finally:
        for handle in handles:
            handle.remove()
    counts = dict(counter.counts)
    counts["adds"] = counts.get("adds", 0) - borders
    parameters = sum(p.numel() for p in model.parameters())
    return OpCounts(**counts, border_terms=borders, parameters=parameters, macs=counter.macs)
