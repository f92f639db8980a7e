"""Values of a region in float64: by the user's own modules and functions, or by what replaces them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.algebra import AffineConv
from repfx.emission import Target, emit
from repfx.graph import Affine, LiftedGraph, Normalised, Resampling, is_size, module_at
from repfx.rewriting.attending import Eager, attended
from repfx.rewriting.depthwise import FastDepthwise
from repfx.rewriting.expressions import parts_of, within
from repfx.rewriting.proposal import Add, Apply, Attend, Cat, Expr, Plain, Ref, Shared, Then, Through
from repfx.state import copied

Values = Mapping[fx.Node, Any]
_DOUBLE = Target(torch.float64, requires_grad=False)


def read_by(lifted: LiftedGraph, node: fx.Node) -> tuple[fx.Node, ...]:
    """Values that evaluating this node in a region needs."""
    sources = lifted.sources(node)
    if sources:
        return sources
    read: dict[fx.Node, None] = {}
    work = [n for n in node.all_input_nodes if not lifted.context.constants.is_constant(n)]
    while work:
        value = work.pop()
        if is_size(value):  # a size is computed from the value whose size it is
            work.extend(value.all_input_nodes)
        else:
            read[value] = None
    return tuple(read)


def leaves_of(lifted: LiftedGraph, expr: Expr) -> list[fx.Node]:
    """Values that evaluating an expression needs."""
    leaves: list[fx.Node] = []
    for part in within(expr):
        match part:
            case Ref(node=node) | Apply(value=node) | Shared(value=node):
                leaves.append(node)
            case Plain(node=node):
                leaves.extend(read_by(lifted, node))
    return leaves


class Evaluation:
    """Evaluates the nodes of regions; each module is copied, or written, once."""

    def __init__(self, lifted: LiftedGraph) -> None:
        self._lifted = lifted
        self._modules: dict[str, nn.Module] = {}
        self._emitted: dict[int, tuple[AffineConv, list[nn.Module]]] = {}
        self._constants: dict[fx.Node, Any] = {}

    def original(self, region: Sequence[fx.Node], given: Values) -> dict[fx.Node, Any]:
        """The values of all nodes of a region, by the operations that stand there."""
        known = dict(given)
        with torch.no_grad():
            for node in region:
                known[node] = self._node(node, known)
        return known

    def replaced(
        self, region: Sequence[fx.Node], given: Values, replacements: Mapping[fx.Node, Expr]
    ) -> dict[fx.Node, Any]:
        """The values of the replaced nodes by what replaces them, and of what between them reads nothing else."""
        known = dict(given)
        with torch.no_grad():
            for node in region:
                if node in replacements:
                    known[node] = self._expression(replacements[node], known)
                elif all(read in known for read in read_by(self._lifted, node)):
                    known[node] = self._node(node, known)
        assert known.keys() >= replacements.keys()
        return known

    def _expression(self, expr: Expr, known: Values) -> Tensor:
        return self._combined(expr, [self._expression(part, known) for part in parts_of(expr)], known)

    def _combined(self, expr: Expr, parts: Sequence[Tensor], known: Values) -> Tensor:
        """The value of an expression, given those of the expressions that it is made of."""
        match expr:
            case Ref(node=node):
                value: Tensor = known[node]
                return value
            case Apply(map=map_, value=node):
                return self._mapped(map_, known[node])
            case Shared(map=map_, value=node, part=part):
                return self._mapped(part, self._mapped(map_, known[node]))
            case Then(map=map_):
                return self._mapped(map_, parts[0])
            case Add():
                return reduce(operator.add, parts)
            case Cat(dim=dim):
                return torch.cat(list(parts), dim)
            case Through(node=node):
                return self._resampled(node, parts[0], known)
            case Plain(node=node):
                return self._normalised(node, known)
            case Attend():
                return self._attended(expr, parts)

    def _mapped(self, map_: AffineConv, x: Tensor) -> Tensor:
        if id(map_) not in self._emitted:
            self._emitted[id(map_)] = (map_, [module for _, module in emit(map_, _DOUBLE)])
        with FastDepthwise():
            for module in self._emitted[id(map_)][1]:
                x = module(x)
        return x

    def _resampled(self, node: fx.Node, value: Tensor, known: Values) -> Tensor:
        op = self._lifted.op(node)
        assert isinstance(op, Resampling)
        result = self._operation(node, {**known, op.source: value})
        assert isinstance(result, Tensor)
        return result

    def _normalised(self, node: fx.Node, known: Values) -> Tensor:
        op = self._lifted.op(node)
        assert isinstance(op, Normalised)
        function, arguments = op.plain
        return function(known[op.source], *arguments)

    def _attended(self, expr: Attend, values: Sequence[Tensor]) -> Tensor:
        constants = [(self._lifted.context.constants.value(bias), shape) for bias, shape in expr.bias]
        masks = [(bias, tuple(bias.shape), shape) for bias, shape in constants]
        result: Tensor = attended(Eager(), expr, values, masks)[-1]
        return result

    def _node(self, node: fx.Node, known: Values) -> Any:
        op, record = self._lifted.op(node), self._lifted.records.get(node)
        if record is not None and isinstance(op, Affine):
            return self._mapped(record.map, known[op.source])
        return self._operation(node, known)

    def _operation(self, node: fx.Node, known: Values) -> Any:
        """The user's own operation; what it reads is computed first where it is a split, stack or constant."""
        args = fx.node.map_arg(node.args, lambda given: self._value(given, known))
        kwargs = fx.node.map_arg(node.kwargs, lambda given: self._value(given, known))
        match node.op:
            case "call_module":
                with FastDepthwise():
                    return self._module(str(node.target))(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "call_function":
                assert callable(node.target)
                return node.target(*args, **kwargs)
            case _:
                raise RuntimeError(f"{node.name} is outside the region")

    def _value(self, node: fx.Node, known: Values) -> Any:
        if node in known:
            return known[node]
        if not self._lifted.context.constants.is_constant(node):
            return self._operation(node, known)
        if node not in self._constants:
            self._constants[node] = self._lifted.context.constants.value(node)
        return self._constants[node]

    def _module(self, path: str) -> nn.Module:
        if path not in self._modules:
            self._modules[path] = copied(module_at(self._lifted.root, path)).double()
        return self._modules[path]
