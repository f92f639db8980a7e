"""Alike blocks are planned once: with the same result as planning each, and each with its own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn

import repfx
from repfx.algebra import AffineConv, compose, pointwise
from repfx.capture import capture
from repfx.decline import Decline
from repfx.graph import Affine, LiftedGraph, Op
from repfx.io import build_model
from repfx.lifting import lift_graph
from repfx.rewriting import Apply, Proposal, rehearsal
from repfx.rewriting import isomorphism as alike_module
from repfx.rewriting.isomorphism import Layout, alike
from repfx.rewriting.replication import Repetition


class Block(nn.Module):
    """Branches, a chain through an activation, and a residual sum."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.small = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.Identity())
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W)."""
        return x + self.drop(self.mix(self.norm(self.wide(x) + self.small(x))))


class Joined(nn.Module):
    """A norm behind a concatenation, which is split over the branches: new nodes of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 8, H, W)."""
        return self.out(self.norm(torch.cat([self.left(torch.tanh(x)), self.right(torch.sigmoid(x))], 1)))


def network(*blocks: nn.Module) -> nn.Module:
    """The blocks in a row, with random weights and statistics."""
    return repfx.randomize_statistics(nn.Sequential(nn.Conv2d(3, 8, 1), *blocks)).eval()


def layout_of(model: nn.Module, exclude: tuple[str, ...] = ()) -> tuple[LiftedGraph, Layout]:
    """The families of a model."""
    captured = capture(model, exclude)
    assert captured.graph is not None
    lifted = lift_graph(captured.graph, captured.root, captured.excluded)
    return lifted, alike(lifted)


def members(model: nn.Module, exclude: tuple[str, ...] = ()) -> list[int]:
    """How many members each family has."""
    return [len(family.starts) for family in layout_of(model, exclude)[1].families]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each repetition could be made."""
    outcomes: list[bool] = []
    run = Repetition.run

    def noted(self: Repetition, check: Callable[..., float | None] | None) -> bool:
        outcomes.append(run(self, check))
        return outcomes[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Repetition, "run", noted)
        yield outcomes


def each_by_itself(monkeypatch: pytest.MonkeyPatch, model: nn.Module, objective: str) -> nn.Module:
    """The model compiled with no block like another."""
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "alike", lambda lifted: Layout([], {}))
        return repfx.reparameterize(model, objective=objective, verify=False)


def assert_same_network(one: nn.Module, other: nn.Module) -> None:
    """The same graph and, to the last rounding, the same weights."""
    assert [(n.op, str(n.target)) for n in one.graph.nodes] == [(n.op, str(n.target)) for n in other.graph.nodes]
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=1e-6, atol=1e-7)
    assert repfx.report(one).merges == repfx.report(other).merges
    assert set(map(str, repfx.report(one).declines)) == set(map(str, repfx.report(other).declines))


@pytest.mark.parametrize("objective", ["single-branch", "macs"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: network(*(Block() for _ in range(5))),
        lambda: network(*(Joined() for _ in range(4))),
        lambda: network(Block(), Joined(), Block(), nn.Sequential(Joined(), Block())),
        lambda: repfx.randomize_statistics(build_model("repnext_m0").module).eval(),
        lambda: repfx.randomize_statistics(build_model("timm:repvgg_a0").module).eval(),
    ],
    ids=["blocks", "joined", "mixed", "repnext_m0", "repvgg_a0"],
)
def test_planning_alike_blocks_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module], objective: str
) -> None:
    model = make()
    expected = each_by_itself(monkeypatch, model, objective)
    with counted(monkeypatch) as outcomes:
        fused = repfx.reparameterize(model, objective=objective, verify=False)
    assert outcomes
    assert all(outcomes)
    assert_same_network(fused, expected)


def test_every_repetition_passes_the_probes() -> None:
    model = network(*(Block() for _ in range(4)), *(Joined() for _ in range(3))).double()
    fused = repfx.reparameterize(model)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)
    errors = [merge.error for merge in repfx.report(fused).merges]
    assert errors
    assert all(error is not None and error < 1e-10 for error in errors)


def test_a_repetition_with_wrong_weights_is_found_and_planned_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_ones(self: Repetition, map_: AffineConv) -> AffineConv:
        return map_

    monkeypatch.setattr(Repetition, "_map", first_ones)
    model = network(*(Block() for _ in range(3))).double()
    with counted(monkeypatch) as outcomes:
        fused = repfx.reparameterize(model)
    assert outcomes
    assert not any(outcomes)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)
    assert repfx.report(fused).after.batch_norms == 0


def test_blocks_of_one_structure_are_a_family() -> None:
    assert members(network(*(Block() for _ in range(5)))) == [5]


def _other_padding(block: Block) -> None:
    block.wide.padding_mode = "circular"


def _other_epsilon(block: Block) -> None:
    block.norm.eps = 1e-2


def _frozen(block: Block) -> None:
    block.norm.weight.requires_grad_(False)


def _hooked(block: Block) -> None:
    block.norm.register_forward_hook(lambda module, args, output: None)


def _tied(block: Block) -> None:
    block.mix[2] = block.mix[0]


def _own_attribute(block: Block) -> None:
    block.wide.note = object()  # type: ignore[assignment]  # nothing tells what it is for


@pytest.mark.parametrize("change", [_other_padding, _other_epsilon, _frozen, _hooked, _tied, _own_attribute])
def test_a_block_that_differs_is_no_member(change: Callable[[Block], None]) -> None:
    blocks = [Block() for _ in range(3)]
    change(blocks[1])
    model = network(*blocks)
    first = layout_of(model)[1].families[0]
    _, layout = layout_of(model)
    stretches = [layout.stretch(first, start) for start in first.starts]
    assert len(first.starts) == 2
    assert not any(str(n.target).startswith("2.") for nodes in stretches for n in nodes)


def test_an_excluded_block_is_no_member() -> None:
    assert members(network(*(Block() for _ in range(3))), ("2.norm",)) == [2]


class Shuffled(nn.Module):
    """Channels in an order that a buffer holds."""

    order: Tensor

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(order))
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 8, H, W)."""
        return torch.relu(self.conv(x[:, self.order]))


def test_an_index_whose_numbers_decide_is_like_no_other() -> None:
    model = network(Shuffled([1, 0, 2, 3, 4, 5, 6, 7]), Shuffled([7, 6, 5, 4, 3, 2, 1, 0])).double()
    assert members(model) == []
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(repfx.reparameterize(model)(x), model(x), rtol=1e-10, atol=1e-10)


class Indexed(nn.Module):
    """Channels in an order that the block is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """x (B, 8, H, W), index (8)."""
        return torch.relu(self.conv(x))[:, index]


class GivenIndices(nn.Module):
    """Alike blocks; the order that the first is given is no order, that of the second one is."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Indexed() for _ in range(2))
        self.register_buffer("plain", torch.arange(8))
        self.register_buffer("other", torch.tensor([3, 1, 2, 0, 4, 5, 6, 7]))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 8, H, W)."""
        x = self.blocks[0](x, self.plain).relu()
        return self.blocks[1](x, self.other).relu()


def test_what_an_index_from_outside_says_is_no_fact_of_a_block() -> None:
    model = repfx.randomize_statistics(GivenIndices()).eval().double()
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(repfx.reparameterize(model, verify=False)(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_repetition_compares_also_what_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike_module, "_facts", lambda lifted, node: ())
    test_what_an_index_from_outside_says_is_no_fact_of_a_block()


def test_blocks_of_long_chains() -> None:
    chain = [nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(600)), nn.ReLU()) for _ in range(2)]
    model = nn.Sequential(*chain).eval()
    assert repfx.reparameterize(model, verify=False, objective="macs") is not model


def test_blocks_given_rewritten_values_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))

    with counted(monkeypatch) as outcomes:
        repfx.reparameterize(network(*(block() for _ in range(4))))
    assert outcomes == [True] * 3


@dataclass(frozen=True)
class OwnNumbers:
    """A pass that makes the map of a norm behind a convolution itself, from the norm's weights."""

    name: str = "own_numbers"
    about: tuple[type[Op], ...] = (Affine,)
    last_first: bool = False

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        """norm(conv(x)) as one map."""
        op = lifted.op(node)
        inner = lifted.op(op.source) if isinstance(op, Affine) else None
        if node.op != "call_module" or not isinstance(op, Affine) or not isinstance(inner, Affine):
            return
        norm = lifted.context.module(node) if node not in lifted.records else None
        conv = lifted.map_of(op.source, 2)
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(conv, AffineConv):
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        own = pointwise(norm.num_features, 2, lambda: scale, lambda: shift)
        merged = compose(own, conv)
        if isinstance(merged, AffineConv):
            yield Proposal(self.name, ((node, Apply(merged, inner.source)),), (op.source, node))


def test_numbers_that_a_pass_brings_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3))
    model = network(*blocks).double()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    with counted(monkeypatch) as outcomes:
        fused = repfx.reparameterize(model, passes=(OwnNumbers(),), verify=False)
    assert outcomes == [False] * 2
    assert repfx.report(fused).after.batch_norms == 0
    torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)


class Halves(nn.Module):
    """The halves of the channels, swapped, however many there are."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W)."""
        a, b = x.chunk(2, 1)
        return torch.relu(torch.cat([b, a], 1))


def test_blocks_given_other_channels_are_no_family() -> None:
    model = network(Halves(), nn.Conv2d(8, 16, 1), Halves(), nn.Conv2d(16, 16, 1), Halves()).double()
    assert members(model) == [2]
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(repfx.reparameterize(model)(x), model(x), rtol=1e-10, atol=1e-10)


class Overwritten(nn.Module):
    """Two alike blocks; the value that the second is given is overwritten while it is still needed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.stem = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 8, H, W)."""
        a = self.stem(x)
        b = self.first(torch.relu(a))
        c = torch.relu(b)
        view = c.flatten(2)
        d = self.second(c)
        view.mul_(2)
        return d + c


def test_a_value_that_is_overwritten_is_known_to_be() -> None:
    model = repfx.randomize_statistics(Overwritten()).eval().double()
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(repfx.reparameterize(model, verify=False)(x), model(x), rtol=1e-10, atol=1e-10)


class Ends(nn.Module):
    """Alike blocks of which one also gives an inner value away."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Seen() for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 8, H, W)."""
        x, _ = self.blocks[0](x)
        x, inner = self.blocks[1](x)
        x, _ = self.blocks[2](x)
        return x, inner


class Seen(nn.Module):
    """A chain and the value inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 8, H, W)."""
        inner = self.conv(x)
        return torch.relu(self.norm(inner)), inner


def test_a_block_whose_inner_value_is_read_outside_is_no_member() -> None:
    model = repfx.randomize_statistics(Ends()).eval().double()
    _, layout = layout_of(model)
    assert [len(family.starts) for family in layout.families] == [2]
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    for one, other in zip(repfx.reparameterize(model, verify=False)(x), model(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


class Shared(nn.Module):
    """Alike blocks that share a convolution, and each have a norm of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 8, H, W)."""
        for norm in self.norms:
            x = x + norm(self.conv(x))
        return x


def test_blocks_that_share_weights_keep_their_own_norms() -> None:
    model = repfx.randomize_statistics(Shared()).eval().double()
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(repfx.reparameterize(model, verify=False)(x), model(x), rtol=1e-10, atol=1e-10)


def test_descriptions_are_by_content_not_by_identity() -> None:
    described = [alike_module._module(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2)]
    assert described[0] == described[1]
    assert described[0] != alike_module._module(nn.Conv2d(4, 4, 3, padding=(1, 0)))
