"""Shapes of all values of a graph for the example inputs: the graph is run once on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.capture import unchanged
from repfx.errors import UserError
from repfx.state import held
from repfx.tracing import Example, example_values, modes_kept, parameters_of
from repfx.verification import Call, trying


def shapes_for(
    graph: fx.Graph, root: nn.Module, model: nn.Module, example: Example | None
) -> dict[str, tuple[int, ...]]:
    """Shapes of all values for the example inputs, by node name."""
    if example is None:
        return {}
    values = example_values(parameters_of(model.forward), Example(*example.fresh()))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    given: dict[fx.Node, Any] = {node: values[str(node.target).lstrip("*")] for node in placeholders}
    runner = _Shapes(root, graph)
    for node, value in given.items():
        runner.note(node, value)
    with modes_kept(), torch.no_grad(), held(root), unchanged(root), running(model, example):
        runner.run(initial_env=given)
    return runner.shapes


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shapes of all values."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def note(self, node: fx.Node, value: Any) -> None:
        """The shape of a value, if it is a tensor."""
        if isinstance(value, Tensor):
            self.shapes[node.name] = tuple(value.shape)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """As fx's, with lists and dictionaries of their own: a module may write into those that it is given."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_own, args)), {name: _own(value) for name, value in kwargs.items()}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.note(n, value)
        return value


def _own(value: Any) -> Any:
    """Lists and dictionaries that are nobody else's."""
    if isinstance(value, list):
        return [_own(item) for item in value]
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return tuple(map(_own, value)) if type(value) is tuple else value


@contextmanager
def running(model: nn.Module, example: Example) -> Iterator[None]:
    """Where the example makes the model itself fail, it is the example's fault."""
    try:
        yield
    except Exception as error:
        with trying(model) as raised:
            own = raised(Call("given input", example.args, example.kwargs))
        if own:
            raise UserError(f"{type(model).__name__} does not run on the example inputs: {own}") from error
        raise
