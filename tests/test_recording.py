"""Recording: the graph is the one that torch.fx's own code makes, though it is made with less work."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repfx
from repfx.graph import modules_of, tensors_of
from repfx.state import Kept
from repfx.tracing import SignatureTracer
from repfx.tracing.recording import RecordedProxy, RecordingTracer


class Plain(fx.Tracer):
    """torch.fx's own."""

    proxy_buffer_attributes = True


class Ours(RecordingTracer):
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return RecordedProxy(node, self)


def told(graph: fx.Graph) -> list[object]:
    """Everything of a graph that a reader sees."""
    return [
        (n.op, n.name, n.target, str(n.args), str(n.kwargs), list(n.meta.get("nn_module_stack", {}).items()))
        for n in graph.nodes
    ]


class Twice(nn.Module):
    """One module under two names, one parameter in two modules, a list of parameters, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.second = self.first
        self.left, self.right = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.right.weight = self.left.weight
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(2)])
        self.register_buffer("shift", torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) + self.second(x)
        y = F.linear(x.mean((2, 3)), self.right.weight) + F.linear(x.mean((2, 3)), self.left.weight)
        return torch.cat([x * self.scales[1] + self.shift, self.shift - x[..., 1:, :-1]], dim=1), y


class Containers(nn.Module):
    """Arguments of all kinds, values that are unpacked, methods and operators from both sides."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        batch, channels, height, width = x.shape
        a, b = torch.split(x, [1, 2], dim=1)
        z = F.interpolate(a, size=(height, width), mode="bilinear", align_corners=False)
        z = 2 - z.to(torch.float64).reshape(batch, -1, height, width)[:, :, 1 : height - 1, ::2]
        w = torch.where(y > 0, y, -y).masked_fill_(y == 1, float("inf"))
        return {"z": z, "list": [b, w, None, (1, "a")], "einsum": torch.einsum("bc,bc->b", y, y), "u": channels}


@pytest.mark.parametrize("make", [Twice, Containers])
def test_the_graph_is_the_one_that_torch_makes(make: type[nn.Module]) -> None:
    model = make().eval()
    assert told(Ours().trace(model)) == told(Plain().trace(model))


def test_more_values_are_unpacked_than_one_byte_counts() -> None:
    scope: dict[str, Any] = {}
    names = ", ".join(f"v{i}" for i in range(300))
    exec(f"def unpack(x):\n    {names} = x\n    return v299", scope)

    class Many(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return scope["unpack"](x)

    assert told(Ours().trace(Many())) == told(Plain().trace(Many()))


class Pair(NamedTuple):
    left: Any
    right: Any


def test_what_is_not_plain_is_left_to_torch() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Pair(torch.stack([x, torch.ones(2)]), slice(x, None)), {1: x}

    assert told(Ours().trace(Named())) == told(Plain().trace(Named()))


def test_two_traces_do_not_mix() -> None:
    kept: list[Any] = []

    class Leaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(x)
            return torch.add(x, kept[0])

    Ours().trace(Leaks())
    with pytest.raises(RuntimeError, match="multiple different tracers"):
        Ours().trace(Leaks())


def test_a_parameter_that_a_forward_replaces_is_read_where_it_stands_now() -> None:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.weight + self.other
            moved = self._parameters.pop("other")
            self.inner = nn.Identity()
            self.inner.register_parameter("weight", moved)
            x = x * self.inner.weight
            self.late = nn.Parameter(torch.ones(3))
            return x + self.late

    assert told(Ours().trace(Replaces())) == told(Plain().trace(Replaces()))


def test_a_tensor_that_is_registered_nowhere_is_a_constant() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loose = [nn.Linear(3, 3)]
            self.plain = torch.ones(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.loose[0].weight) + self.plain

    with pytest.raises(NameError, match="not a member"):
        Plain().trace(Loose())
    with pytest.raises(NameError, match="not a member"):
        Ours().trace(Loose())


def test_nodes_of_one_call_share_their_module_stack_and_others_do_not() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1) * 2

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    stacks = [n.meta["nn_module_stack"] for n in Ours().trace(Outer()).nodes if n.op == "call_function"]
    assert [type(stack) for stack in stacks] == [OrderedDict] * 4
    assert stacks[0] is stacks[1]
    assert stacks[2] is stacks[3]
    assert stacks[0] is not stacks[2]
    assert list(stacks[2]) == ["inner@1"]


def test_modules_are_listed_as_torch_lists_them() -> None:
    model = Twice()
    model.register_module("none", None)
    model.deep = nn.Sequential(nn.Sequential(model.left, nn.ReLU()), model.first, model.scales)
    assert modules_of(model) == list(model.named_modules())
    assert set(tensors_of(modules_of(model))) == {*model.parameters(), *model.buffers()}


def test_what_a_module_held_is_put_back_in_whatever_it_kept_it() -> None:
    model = Twice()
    model.log, model.table, model.names, model.count = [1], {"a": 1}, {"x"}, 3
    kept = Kept(model, modules_of(model))
    assert not kept.touched()
    assert kept.restore() == []
    model.log.append(2)
    model.table["b"] = 2
    model.names.add("y")
    model.first._buffers["new"] = torch.ones(1)
    model.count, model.more = 4, 1
    assert kept.touched()
    assert kept.restore() == [model]
    assert (model.log, model.table, model.names, model.count) == ([1], {"a": 1}, {"x"}, 3)
    assert not hasattr(model, "more")
    assert not model.first._buffers
    assert not kept.touched()


def test_containers_in_containers_are_put_back_too() -> None:
    model = Twice()
    model.log, model.last, model.seen = {"k": [1]}, deque([1, 2]), defaultdict(list, {"y": [1]})
    model.todo, model.tally = {"a", "b"}, Counter("aab")
    kept = Kept(model, modules_of(model))
    model.log["k"].append(2)
    model.last.popleft()
    model.seen["y"].append(2)
    model.seen["z"].append(3)
    model.todo.discard("a")
    model.tally["a"] += 1
    next(model.parameters()).requires_grad_(False)
    assert kept.changed(model, kept.before[0]) == [""]
    kept.restore()
    assert (model.log, list(model.last), dict(model.seen)) == ({"k": [1]}, [1, 2], {"y": [1]})
    assert (model.todo, model.tally) == ({"a", "b"}, Counter("aab"))
    assert all(p.requires_grad for p in model.parameters())


def test_a_buffer_that_is_another_tensor_now_is_a_change() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    kept = Kept(model, modules_of(model))
    model[0].running_mean = model[0].running_mean + 1
    assert kept.changed(model, kept.before[0]) == ["0"]


def test_shapes_of_an_example_are_found_without_a_trace_in_the_model() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls = nn.Conv2d(4, 4, 1), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.conv(x)

    model = nn.Sequential(Counting(), nn.ReLU()).eval()
    fused = repfx.reparameterize(model, (torch.randn(1, 4, 3, 3),))
    assert model[0].calls == 0
    assert fused.get_submodule("0").calls == 0


def test_a_compiled_graph_is_unpickled_by_the_tracer_that_keeps_signatures() -> None:
    assert not issubclass(SignatureTracer, RecordingTracer)  # it must stay what torch.fx's own is
