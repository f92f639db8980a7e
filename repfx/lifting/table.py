"""Lifting: one table that says what each node of a traced graph computes.

`lift(node, context)` looks the node's target up in the tables of this package's files and returns an
operation of `repfx.graph.lifted.ops`.  A node that no table knows is `Opaque` without comment; a node that is known
but not affine here (a batch norm that uses batch statistics, a pooling that clips) is `Opaque` with a
`Decline`.
"""

from __future__ import annotations

import functools
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
    resampling,
    reshaping,
    slice_assignment,
)

_Rule = Callable[[fx.Node, Context], Op | None]


def _in_turn(*tables: Mapping[Any, _Rule]) -> dict[Any, tuple[_Rule, ...]]:
    """The rules of all tables for each target, those of the first table first; the first that knows says what it is."""
    merged: dict[Any, tuple[_Rule, ...]] = {}
    for table in tables:
        for target, rule in table.items():
            merged[target] = (*merged.get(target, ()), rule)
    return merged


_MODULES = convolutions.MODULES | norms.MODULES | rearranging.MODULES | arithmetic.MODULES | resampling.MODULES
_FUNCTIONS = _in_turn(
    slice_assignment.FUNCTIONS,
    arithmetic.FUNCTIONS,
    reshaping.FUNCTIONS,
    rearranging.FUNCTIONS,
    norms.FUNCTIONS,
    contractions.FUNCTIONS,
    convolutions.FUNCTIONS,
    resampling.FUNCTIONS,  # last: it reads what the others leave
)
_METHODS = _in_turn(
    contractions.METHODS, arithmetic.METHODS, reshaping.METHODS, rearranging.METHODS, resampling.METHODS
)


@functools.lru_cache(maxsize=512)
def _module_rule(of: type) -> Callable[[fx.Node, Any, Context], Op | None] | None:
    """The first rule for modules of this type, or of one that it is derived from."""
    return next((rule for kind, rule in _MODULES.items() if issubclass(of, kind)), None)


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
    if node.op == "placeholder":
        return Input()
    if node.op == "call_module" and str(node.target) in context.whole:
        return Opaque()
    for rule in _rules_for(node, context):
        op = rule(node, context)
        if op is not None:
            return op
    return Opaque()


def _rules_for(node: fx.Node, context: Context) -> tuple[_Rule, ...]:
    """The rules that may know a node, in turn."""
    match node.op:
        case "call_module":
            module = context.module(node)
            rule = _module_rule(type(module))  # type: ignore[arg-type]  # the hash is the type's, not its instances'
            return (arithmetic.channelwise,) if rule is None else (lambda node, context: rule(node, module, context),)
        case "call_function":
            rules = _FUNCTIONS.get(node.target) or _FUNCTIONS.get(getattr(node.target, "__name__", ""), ())
            return (*rules, arithmetic.channelwise)
        case "call_method":
            return (*_METHODS.get(str(node.target), ()), arithmetic.channelwise)
        case _:
            return ()


def lift_graph(
    graph: fx.Graph, root: nn.Module, whole: set[str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> LiftedGraph:
    """A traced graph with what each of its nodes computes; `whole` and `shapes` as for `graph.context_of`."""
    lifted = LiftedGraph(graph, context_of(graph, root, whole, shapes or {}))
    for node in graph.nodes:
        lifted.context.note_shape(node)
        lifted.define(node, lift(node, lifted.context))
    return lifted
