"""Lifting: one table that says what each node of a traced graph computes.

`lift(node, context)` asks the rules for the node's target, in turn, and returns an operation of `repfx.graph`.  A rule
has three answers besides an operation that it understands: `None`, the call is none of those that it is about, and the
next rule is asked; `Opaque()`, nothing is known of it and nobody would ask why; `Opaque(decline)`, it is known, but is
not affine here (a batch norm that uses batch statistics, a pooling that clips), and the report says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from repfx.graph import Constant, Context, Input, LiftedGraph, Op, Opaque, context_of
from repfx.lifting import (
    arithmetic,
    contractions,
    convolutions,
    norms,
    rearranging,
    refolding,
    resampling,
    reshaping,
    slice_assignment,
    slicing,
    windows,
)
from repfx.lifting.registry import OUTSIDE, Rules, in_turn
from repfx.lifting.rules import ModuleRule, asked

_MODULES: dict[type[nn.Module], ModuleRule] = {
    **convolutions.MODULES,
    **windows.MODULES,
    **norms.MODULES,
    **rearranging.MODULES,
    **arithmetic.MODULES,
    **resampling.MODULES,
}
_OURS = Rules(
    modules={kind: (rule,) for kind, rule in _MODULES.items()},
    functions=in_turn(
        slice_assignment.FUNCTIONS,
        arithmetic.FUNCTIONS,
        reshaping.FUNCTIONS,
        refolding.FUNCTIONS,
        slicing.FUNCTIONS,
        rearranging.FUNCTIONS,
        norms.FUNCTIONS,
        contractions.FUNCTIONS,
        convolutions.FUNCTIONS,
        windows.FUNCTIONS,
        resampling.FUNCTIONS,  # last: it reads what the others leave
    ),
    methods=in_turn(
        contractions.METHODS,
        arithmetic.METHODS,
        reshaping.METHODS,
        refolding.METHODS,
        rearranging.METHODS,
        resampling.METHODS,
    ),
)


def lift(node: fx.Node, context: Context) -> Op:
    """What `node` computes."""
    if context.constants.is_constant(node):
        return Constant()
    if node.meta.get("aliased"):
        return context.declined(node, "shares memory with a value that is overwritten in place")
    foreign = context.foreign(node) if node.op.startswith("call") else None
    if foreign is not None:
        fact = f"computes with {foreign} tensors where the network's are {context.home}"
        return context.declined(node, fact, "convert the model to one real dtype first")
    match node.op:
        case "placeholder":
            return Input()
        case "call_module":
            return _of_module(node, context)
        case "call_function":
            rules = (*OUTSIDE.of_function(node.target), *_OURS.of_function(node.target), arithmetic.channelwise)
        case "call_method":
            name = str(node.target)
            rules = (*OUTSIDE.methods.get(name, ()), *_OURS.methods.get(name, ()), arithmetic.channelwise)
        case _:
            return Opaque()
    return _first_answer(rules, node, context)


def _of_module(node: fx.Node, context: Context) -> Op:
    if str(node.target) in context.whole:
        return Opaque()
    module = context.module(node)
    kind = type(module)
    ours = _OURS.of_module(kind) or (_channelwise,)
    return _first_answer((*OUTSIDE.of_module(kind), *ours), node, module, context)


def _channelwise(node: fx.Node, _: nn.Module, context: Context) -> Op | None:
    return arithmetic.channelwise(node, context)


def _first_answer(rules: tuple[Callable[..., Op | None], ...], *given: Any) -> Op:
    """What the first rule says that is about the call."""
    for rule in rules:
        op: Op | None = asked(rule, *given)
        if op is not None:
            return op
    return Opaque()


def lift_graph(
    graph: fx.Graph, root: nn.Module, whole: set[str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> LiftedGraph:
    """A traced graph with what each of its nodes computes; `whole` and `shapes` as for `graph.context_of`."""
    lifted = LiftedGraph(graph, context_of(graph, root, whole, shapes or {}))
    for node in graph.nodes:
        lifted.context.note_shape(node)
        lifted.define(node, lift(node, lifted.context))
    return lifted
