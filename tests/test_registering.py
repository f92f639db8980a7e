"""Lifting rules from outside the package: asked first, the newest before the others, and gone once they are removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from repfx.errors import UserError
from repfx.graph import Alias, Context, Op, Opaque, argument
from repfx.lifting import OtherCallError, lift_graph, register
from repfx.lifting.registry import OUTSIDE
from tests.compiling import Net


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    assert [OUTSIDE.modules, OUTSIDE.functions, OUTSIDE.methods] == [{}, {}, {}]


def lifted(run: Callable[..., Any], **parts: nn.Module) -> Op:
    """What the value is that a network returns."""
    net = Net(run, **parts).eval()
    graph = fx.symbolic_trace(net).graph
    (output,) = [node for node in graph.nodes if node.op == "output"]
    return lift_graph(graph, net, set()).op(output.args[0])


def same(node: fx.Node, *_: object) -> Op:
    return Alias(argument(node, 0, "input"))


def silent(node: fx.Node, *_: object) -> None:
    return None


def other_call(node: fx.Node, *_: object) -> Op | None:
    raise OtherCallError


def declines(node: fx.Node, *given: Any) -> Op:
    context: Context = given[-1]
    return context.declined(node, "is declined from outside")


FORMS: dict[str, tuple[Any, Callable[..., Any], dict[str, nn.Module]]] = {
    "a function": (torch.cummax, lambda s, x: torch.cummax(x, 1), {}),
    "a method": ("cummax", lambda s, x: x.cummax(1), {}),
    "a type of modules": (nn.Softsign, lambda s, x: s.a(x), {"a": nn.Softsign()}),
}


@pytest.mark.parametrize(("target", "run", "parts"), FORMS.values(), ids=FORMS.keys())
def test_a_registered_rule_is_asked_until_it_is_removed(
    target: Any, run: Callable[..., Any], parts: dict[str, nn.Module]
) -> None:
    assert not isinstance(lifted(run, **parts), Alias)
    registration = register(target, same)
    assert isinstance(lifted(run, **parts), Alias)
    registration.remove()
    registration.remove()
    assert not isinstance(lifted(run, **parts), Alias)
    with register(target, same):
        assert isinstance(lifted(run, **parts), Alias)
    assert not isinstance(lifted(run, **parts), Alias)


def test_rules_from_outside_are_asked_before_ours() -> None:
    with register(nn.Identity, declines), register(torch.cat, declines), register("clone", declines):
        ops = [
            lifted(lambda s, x: s.a(x), a=nn.Identity()),
            lifted(lambda s, x: torch.cat([x, x], 1)),
            lifted(lambda s, x: x.clone()),
        ]
    assert [isinstance(op, Opaque) and op.decline is not None for op in ops] == [True] * 3


@pytest.mark.parametrize("rule", [silent, other_call])
def test_a_rule_that_is_not_about_a_call_leaves_it_to_ours(rule: Callable[..., Any]) -> None:
    with register(nn.Identity, rule), register("clone", rule):
        assert isinstance(lifted(lambda s, x: s.a(x), a=nn.Identity()), Alias)
        assert isinstance(lifted(lambda s, x: x.clone()), Alias)


def test_the_newest_rule_is_asked_first_and_the_others_stay() -> None:
    def run(s: Net, x: Tensor) -> Any:
        return torch.cummax(x, 1)

    with register(torch.cummax, same):
        with register(torch.cummax, declines):
            assert isinstance(lifted(run), Opaque)
            with register(torch.cummax, silent):
                assert isinstance(lifted(run), Opaque)
        assert isinstance(lifted(run), Alias)


def test_the_same_rule_twice_is_removed_one_at_a_time() -> None:
    first, second = register(torch.cummax, same), register(torch.cummax, same)
    first.remove()
    assert isinstance(lifted(lambda s, x: torch.cummax(x, 1)), Alias)
    second.remove()
    assert not isinstance(lifted(lambda s, x: torch.cummax(x, 1)), Alias)


def test_a_rule_by_a_base_type_is_about_what_is_derived_from_it() -> None:
    class Sign(nn.Softsign):
        pass

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    net = Net(lambda s, x: s.a(x), a=Sign()).eval()
    graph = Tracer().trace(net)
    call = next(node for node in graph.nodes if node.op == "call_module")
    with register(nn.Softsign, same):
        assert isinstance(lift_graph(graph, net, set()).op(call), Alias)


def test_a_target_that_no_graph_calls_is_the_callers_mistake() -> None:
    with pytest.raises(UserError, match=r"lifting\.register: 3 is nothing that a graph calls"):
        register(3, same)  # type: ignore[arg-type]


def test_modules_named_like_functions_are_not_those_functions() -> None:
    """A module called "clone" or "split" is whatever it is."""

    class Doubled(nn.Module):
        def forward(self, x: Tensor, count: int = 2, dim: int = 1) -> list[Tensor]:
            return [x * 2, x * 3]

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Doubled)

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.split = Doubled()

        def forward(self, x: Tensor) -> Tensor:
            return self.split(x.reshape(2, 4, 3, 3), 2, 1)[0]

    net = Parts().eval()
    graph = Tracer().trace(net)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    op = lift_graph(graph, net, {"split"}).op(output.args[0])
    assert isinstance(op, Opaque), "the part of an island is no slice of what the island reads"
