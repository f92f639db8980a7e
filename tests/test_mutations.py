"""The suite in miniature: what is off by 1 % goes red, once per pass; and every mutant still applies.

The full mutation check is `python -m tests.mutations`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repfx
from passes import DEFAULT_PASSES
from repfx.algebra import AffineConv, Values
from repfx.decline import Decline, Reason
from repfx.graph import LiftedGraph, Op
from repfx.rewriting import Add, Apply, Attend, Cat, Expr, Pass, Plain, Proposal, Ref, Shared, Then, Through
from tests import hostile
from tests.compiling import Net, conv
from tests.mutations import MUTANTS, ROOT, SUITE, Mutant, failures

BN = nn.BatchNorm2d


def chunked(s: Net, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([s.a(a), s.b(b)], 1)


def picked(s: Net, x: Tensor) -> Tensor:
    return s.b(torch.relu(torch.index_select(s.a(x), 1, s.i)))  # type: ignore[arg-type]


def scored(s: Net, x: Tensor) -> Tensor:
    q, k = s.a(torch.relu(x).flatten(2).transpose(1, 2)).split([3, 3], -1)
    return (q @ k.transpose(-2, -1) * 0.7).sigmoid()


def in_heads(s: Net, x: Tensor) -> Tensor:
    x = torch.relu(x).flatten(2).transpose(1, 2)
    heads = [s.q(x) @ s.k(x).transpose(-2, -1), s.k(x) @ s.q(x).transpose(-2, -1)]
    return torch.cat([head.softmax(-1) @ s.v(x) for head in heads], -1)


def attended(s: Net, x: Tensor) -> Tensor:
    x = torch.relu(x).flatten(2).transpose(1, 2)
    return (s.q(x) @ s.k(x).transpose(-2, -1)).softmax(-1) @ s.v(x)


IMAGE = (8, 8)
FIRES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "drop_noops": (lambda: Net(lambda s, x: s.a(s.d(x * 1.01)), a=conv(4, 4), d=nn.Dropout()), IMAGE),
    "collapse_chains": (lambda: Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4)), IMAGE),
    "fold_scales": (
        lambda: Net(lambda s, x: s.n(s.a(torch.relu(x)) + s.b(torch.tanh(x))), a=conv(4, 4), b=conv(4, 4, 1), n=BN(4)),
        IMAGE,
    ),
    "fold_through_shuffle": (
        lambda: Net(lambda s, x: s.n(s.p(s.a(x))), a=conv(4, 8), p=nn.PixelShuffle(2), n=BN(2)),
        IMAGE,
    ),
    "fold_product_scales": (lambda: Net(scored, a=nn.Linear(4, 6)), IMAGE),
    "stack_heads": (lambda: Net(in_heads, q=nn.Linear(4, 3), k=nn.Linear(4, 3), v=nn.Linear(4, 3)), IMAGE),
    "fuse_attention": (lambda: Net(attended, q=nn.Linear(4, 3), k=nn.Linear(4, 3), v=nn.Linear(4, 3)), IMAGE),
    "fold_weights": (
        lambda: Net(
            lambda s, x: F.conv2d(x, s.w.tanh(), s.b),
            w=nn.Parameter(torch.randn(6, 4, 3, 3)),
            b=nn.Parameter(torch.randn(6)),
        ),
        IMAGE,
    ),
    "collapse_sums": (lambda: Net(lambda s, x: s.a(x) + s.b(x) + x, a=conv(4, 4), b=conv(4, 4, 1)), IMAGE),
    "average_heads": (lambda: Net(lambda s, x: (s.a(x) + s.b(x)) / 2, a=nn.Linear(4, 3), b=nn.Linear(4, 3)), ()),
    "collapse_concats": (lambda: Net(chunked, a=conv(2, 2, groups=2), b=conv(2, 2, (1, 5), groups=2)), IMAGE),
    "split_concats": (
        lambda: Net(
            lambda s, x: s.c(torch.cat([s.a(torch.relu(x)), s.b(torch.tanh(x))], 1)),
            a=conv(4, 6),
            b=conv(4, 6, 1),
            c=conv(12, 4, 1),
        ),
        IMAGE,
    ),
    "merge_siblings": (
        lambda: Net(lambda s, x: torch.relu(s.a(x)) * s.b(x), a=conv(4, 4, 1), b=conv(4, 4, 1)),
        IMAGE,
    ),
    "commute_resampling": (
        lambda: Net(lambda s, x: s.n(s.u(s.a(x))), a=conv(4, 4), u=nn.Upsample(scale_factor=2), n=BN(4)),
        IMAGE,
    ),
    "fold_norm_affine": (lambda: Net(lambda s, x: s.a(s.n(x)), n=nn.GroupNorm(2, 4), a=conv(4, 3, 1)), IMAGE),
    "carry_permutations": (
        lambda: Net(picked, a=conv(4, 4), b=conv(4, 3, 1), i=torch.tensor([2, 0, 3, 1])),
        IMAGE,
    ),
}


def one_percent_off(map_: AffineConv) -> AffineConv:
    """The same map with every bias 1 % too large."""

    def rule(values: Sequence[Values]) -> Values:
        (v,) = values
        return replace(v, bias=v.bias * 1.01)

    return replace(map_, inputs=(map_,), rule=rule)


@dataclass
class Off:
    """A pass whose replacements are off by 1 %."""

    inner: Pass
    fired: int = 0

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def about(self) -> tuple[type[Op], ...]:
        return self.inner.about

    @property
    def last_first(self) -> bool:
        return self.inner.last_first

    def propose(self, lifted: LiftedGraph, node: fx.Node) -> Iterator[Proposal | Decline]:
        for item in self.inner.propose(lifted, node):
            if isinstance(item, Decline):
                yield item
                continue
            self.fired += 1
            shared: dict[int, AffineConv] = {}
            changed = tuple((node, _off(expr, self.name, shared)) for node, expr in item.replacements)
            yield replace(item, replacements=changed)


def _off(expr: Expr, rule: str, shared: dict[int, AffineConv]) -> Expr:
    match expr:
        case Apply(map=map_, value=value):
            return Apply(one_percent_off(map_), value)
        case Shared(map=map_):
            return replace(expr, map=shared.setdefault(id(map_), one_percent_off(map_)))
        case Then(map=map_, value=value):
            return Then(one_percent_off(map_), value)
        case Through(value=value):
            return replace(expr, value=_off(value, rule, shared))
        case Add(values=values) | Cat(values=values):
            return replace(expr, values=tuple(_off(v, rule, shared) for v in values))
        case Attend(query=query, key=key, value=value):
            query, key, value = (_off(v, rule, shared) for v in (query, key, value))
            return replace(expr, query=query, key=key, value=value, scale=expr.scale * 1.01)
        case Ref(node=node) if rule == "drop_noops":  # x instead of dropout(1.01 x)
            (before, *_) = node.all_input_nodes
            return Ref(before)
        case Ref() | Plain():
            return expr


def compile_with(one: Pass, verify: bool) -> tuple[nn.Module, nn.Module, int, tuple[int, ...]]:
    make, size = FIRES[one.name]
    original = hostile.prepared(make(), 0)
    example = (torch.zeros(1, 4, *size, dtype=torch.float64),)
    return original, repfx.reparameterize(original, example, passes=(one,), verify=verify), 4, size


def compare(original: nn.Module, fused: nn.Module, channels: int, size: tuple[int, ...]) -> None:
    sizes: tuple[Any, ...] = hostile.SIZES if size else ((),)
    assert hostile.assert_same_everywhere(original, fused, channels, sizes, torch.Generator().manual_seed(0))


def test_every_pass_has_a_network_on_which_it_fires() -> None:
    assert set(FIRES) == {one.name for one in DEFAULT_PASSES}


@pytest.mark.parametrize("one", DEFAULT_PASSES, ids=lambda one: one.name)
def test_one_percent_is_noticed(one: Pass) -> None:
    compare(*compile_with(one, verify=False))
    broken = Off(one)
    result = compile_with(broken, verify=False)
    assert broken.fired, "the pass proposed nothing"
    with pytest.raises(AssertionError, match="relative error"):
        compare(*result)


@pytest.mark.parametrize("one", DEFAULT_PASSES, ids=lambda one: one.name)
def test_one_percent_is_stopped_by_the_gate(one: Pass) -> None:
    """With verify=True the region's probes disagree: nothing is changed, and the report says so."""
    original, fused, channels, size = compile_with(Off(one), verify=True)
    compare(original, fused, channels, size)
    stopped = [d for d in repfx.report(fused).declines if d.reason is Reason.VERIFICATION]
    assert stopped
    assert {d.rule for d in stopped} == {one.name}
    assert all("this is a bug in repfx" in d.remedy for d in stopped)


# --- the mutation check itself --------------------------------------------------------------------


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_still_applies(mutant: Mutant) -> None:
    """A mutant whose line was rewritten must follow it, or it tests nothing."""
    assert not mutant.problem()
    assert mutant.old != mutant.new


def test_mutants_are_named_once_and_touch_every_room_that_computes() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    rooms = {"algebra", "layers", "graph", "capture", "lifting", "emission", "rewriting", "state", "tracing", "passes"}
    assert rooms <= {mutant.file().parent.name for mutant in MUTANTS}


def test_pytest_summary_is_read() -> None:
    output = "F.\nFAILED tests/test_form.py::test_kind[a - b] - assert 1\nFAILED tests/test_x.py::test_y\n1 failed"
    assert failures(output)[1] == "tests/test_x.py::test_y"
    assert all((ROOT / path).exists() for path in SUITE)
