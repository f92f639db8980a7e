"""Where only the example tells the channels of an image, and no layer asks for them, the result checks them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence

from torch import fx

from repfx.graph import Shapes, is_image
from repfx.layers import ArgumentGuard, SizeGuard


def check_channels(fused: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Add the checks, for the shapes of the example's values; returns what is checked, in words."""
    inputs = list(fused.graph.find_nodes(op="placeholder"))
    if not inputs or not shapes:
        return []
    start = _behind_the_arguments(fused, inputs)
    told = Shapes(fused, lambda node: None)
    checked = {module.place for module in fused.children() if isinstance(module, SizeGuard)}  # compiled before
    conditions = []
    for node in inputs:
        known, place = shapes.get(node.name, ()), f"the channels of {node.name}"
        if place in checked or not is_image(node, known) or told.size(node, 1) is not None:
            continue
        conditions.append(f"{place}: {known[1]}, as in example inputs of shape {tuple(known)}")
        _check(fused, node, SizeGuard("value", known[1], place, str(tuple(known))), start)
    if conditions:
        fused.recompile()
    return conditions


def _behind_the_arguments(fused: fx.GraphModule, inputs: Sequence[fx.Node]) -> fx.Node:
    """Where an argument is known to be what it should be: its shape is read after that."""
    called = [node for node in fused.graph.nodes if node.op == "call_module"]
    checks = [node for node in called if isinstance(fused.get_submodule(str(node.target)), ArgumentGuard)]
    return max([*inputs, *checks]).next


def _check(fused: fx.GraphModule, image: fx.Node, guard: SizeGuard, start: fx.Node) -> None:
    """The channels of an image go through a guard, before `start`."""
    names = (f"channels_{i}" for i in itertools.count())
    name = next(name for name in names if not hasattr(fused, name))
    fused.add_module(name, guard)
    with fused.graph.inserting_before(start):
        sizes = fused.graph.call_function(getattr, (image, "shape"))
        channels = fused.graph.call_function(operator.getitem, (sizes, 1))
        fused.graph.call_module(name, (channels,)).meta["guard"] = True
