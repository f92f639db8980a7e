"""What repfx captures is what torch.export sees, operation by operation; and a capture that lies is noticed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from benchmarks.sweep_subjects import NotInstalledError, Subject, build, inputs, subjects
from repfx.errors import InputError
from repfx.tracing.mutable import MutableProxy
from tests import hostile
from tests.blocks import REGISTRY, Entry
from tests.second_opinion import (
    MORE,
    SAME,
    NotExportedError,
    Opinion,
    captured,
    exported,
    read,
    second_opinion,
)

BLOCKS = sorted(REGISTRY)
SMALL = (
    Subject("timm", "starnet_s050", "starnet", 64),
    Subject("timm", "test_vit", "vision_transformer", 160),
    Subject("timm", "test_convnext", "convnext", 64),
    Subject("timm", "lcnet_035", "mobilenetv3", 64),
)
NOT_EXPORTED = {  # what torch.export does not follow, and what it says of it
    f"detection:{name}": "Could not guard on data-dependent expression"
    for name in (
        "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn_v2",
        "fcos_resnet50_fpn", "maskrcnn_resnet50_fpn",
    )
}  # fmt: skip
BATCH = 2  # the example is of one image: a batch that was compiled in is noticed


# --- the models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_captured_as_torch_export_sees_it(name: str) -> None:
    entry = REGISTRY[name]
    example, other = (_image(entry, 1, entry.sizes[0]),), (_image(entry, BATCH, entry.sizes[:2][-1]),)
    own = exported(_block(entry), other)
    plain, islands = captured(_block(entry))
    assert not islands
    assert plain is not None
    _assert_equal(second_opinion(own, plain, other))
    shaped, _ = captured(_block(entry), example)
    assert shaped is not None
    assert _identical(plain, shaped)


@pytest.mark.parametrize("subject", SMALL, ids=lambda s: s.spec)
def test_a_small_network_is_captured_as_torch_export_sees_it(subject: Subject) -> None:
    assert all(opinion.size > 40 for opinion in _held(lambda: build(subject), _images(subject)[:2]))


@pytest.mark.slow
@pytest.mark.parametrize("subject", subjects(), ids=lambda s: s.spec)
def test_every_network_is_captured_as_torch_export_sees_it(subject: Subject) -> None:
    try:
        build(subject)
    except NotInstalledError as error:
        pytest.skip(str(error))
    if subject.spec in NOT_EXPORTED:
        with pytest.raises(NotExportedError, match=NOT_EXPORTED[subject.spec]):
            exported(build(subject), _images(subject)[1])
        assert _held(lambda: build(subject).get_submodule("backbone"), _images(replace(subject, group="")))
        return
    assert _held(lambda: build(subject), _images(subject))


def _images(subject: Subject) -> list[tuple[object, ...]]:
    """The example, of one image; a batch of that size; a batch of an odd size, and not square."""
    size = subject.size
    return [
        inputs(subject, size, size),
        inputs(subject, size, size, BATCH),
        inputs(subject, size + 37, size + 10, BATCH),
    ]


def _held(make: Callable[[], nn.Module], given: Sequence[tuple[object, ...]]) -> list[Opinion]:
    """The opinions on a network captured without an example and, where that is another graph, with one.

    `given` are the example and what both programs are made for, the last where the network takes it.
    """
    example, first, *further = given
    programs = [(exported(make(), first), first)]
    programs += [(own, arguments) for arguments in further for own in _accepted(make(), arguments)]
    model = make()
    plain, shaped = captured(model)[0], captured(model, example)[0]
    written = [module for module in (plain, shaped) if module is not None]
    if len(written) == 2 and _identical(*written):
        del written[1]
    found = []
    for module in written:
        for own, arguments in programs:
            try:
                found.append(second_opinion(own, module, arguments))
            except InputError:
                assert arguments is not first, "the size of the example is refused"
    for opinion in found:
        _assert_equal(opinion)
        assert opinion.explained.keys() <= MORE.keys()
    return found


def _accepted(model: nn.Module, arguments: tuple[object, ...]) -> Iterator[torch.export.ExportedProgram]:
    """The program for these arguments, if the model takes them."""
    try:
        yield exported(model, arguments)
    except NotExportedError:
        return


def _assert_equal(opinion: Opinion) -> None:
    assert opinion.equal, str(opinion)
    assert opinion.size, "nothing was compared"


def _identical(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    """Whether two captures have the same code, on the same numbers."""
    if one.code != other.code:
        return False
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)


def _block(entry: Entry) -> nn.Module:
    return hostile.prepared(entry.factory(), seed=7)


def _image(entry: Entry, batch: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, entry.channels, *size, generator=generator, dtype=torch.float64)


class Wide(nn.Module):
    """Goes two ways, which only a size decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.shape[-1] > 2 else x


def test_an_island_is_exported_right_through() -> None:
    model = hostile.prepared(nn.Sequential(nn.Conv2d(4, 4, 3), Wide(), nn.ReLU()), seed=3)
    written, islands = captured(model)
    assert written is not None
    assert [island.path for island in islands] == ["1"]
    opinion = _of(model, written)
    _assert_equal(opinion)
    assert opinion.size == 3
    _, decided = captured(model, _inputs())
    assert not decided


# --- captures that lie ----------------------------------------------------------------------------


class Everything(nn.Module):
    """A little of each, with branches, in-place operations and constants of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.left(x) + self.right(x) + self.third(x)
        y = self.act(self.norm(y)) * self.scale
        z = F.leaky_relu(y - x, 0.25)
        z += 1.5
        z[:, :, 0] = 0.5
        noise = torch.rand_like(x) + torch.rand_like(x)
        pooled = torch.cat([y.mean((2, 3)), z.amax((2, 3))], 1)
        return self.head(self.drop(pooled)), (z + noise).flatten(2).transpose(1, 2).reshape(x.shape[0], -1)


def _prepared() -> nn.Module:
    return hostile.prepared(Everything(), seed=3)


def _inputs() -> tuple[Tensor]:
    return (torch.randn(BATCH, 4, 6, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64),)


def _of(module: nn.Module, written: nn.Module) -> Opinion:
    """The opinion on a written module."""
    return second_opinion(exported(module, _inputs()), written, _inputs())


def _find(module: fx.GraphModule, target: object, which: int = 0) -> fx.Node:
    return [node for node in module.graph.nodes if node.target == target][which]


def _set(module: fx.GraphModule, path: str, **facts: object) -> None:
    for name, value in facts.items():
        assert getattr(module.get_submodule(path), name) != value
        setattr(module.get_submodule(path), name, value)


def _wrong_stride(module: fx.GraphModule) -> None:
    _set(module, "left", padding=(2, 2), dilation=(2, 2))


def _wrong_groups(module: fx.GraphModule) -> None:
    third = module.get_submodule("third")
    third.groups, third.weight = 2, nn.Parameter(third.weight[:, :2].clone())


def _wrong_epsilon(module: fx.GraphModule) -> None:
    _set(module, "norm", eps=1.1e-5)


def _another_weight(module: fx.GraphModule) -> None:
    with torch.no_grad():
        weight = module.get_submodule("right").weight
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0, dtype=weight.dtype))


def _weights_swapped(module: fx.GraphModule) -> None:
    left = module.get_submodule("left")
    left.weight, left.bias = module.get_submodule("right").weight, module.get_submodule("right").bias


def _another_statistic(module: fx.GraphModule) -> None:
    module.get_submodule("norm").running_mean[1] += 1e-3


def _dropped_operation(module: fx.GraphModule) -> None:
    node = _find(module, "act")
    node.replace_all_uses_with(node.args[0])


def _dropped_branch(module: fx.GraphModule) -> None:
    node = _find(module, "third")
    added = next(iter(node.users))
    added.replace_all_uses_with(next(given for given in added.all_input_nodes if given is not node))


def _branch_twice(module: fx.GraphModule) -> None:
    node = _find(module, "third")
    added = next(iter(node.users))
    added.replace_input_with(node, next(given for given in added.all_input_nodes if given is not node))


def _swapped_operands(module: fx.GraphModule) -> None:
    node = _find(module, operator.sub)
    node.args = node.args[::-1]


def _another_constant(module: fx.GraphModule) -> None:
    node = _find(module, F.leaky_relu)
    node.kwargs = {**node.kwargs, "negative_slope": 0.250001}


def _another_term(module: fx.GraphModule) -> None:
    node = next(n for n in module.graph.nodes if n.args[1:] == (1.5,))
    node.args = (node.args[0], 1.6)


def _another_axis(module: fx.GraphModule) -> None:
    node = _find(module, "amax")
    node.args = (node.args[0], (3, 2))


def _another_order(module: fx.GraphModule) -> None:
    node = _find(module, torch.cat)
    node.args = (list(node.args[0])[::-1], *node.args[1:])


def _another_index(module: fx.GraphModule) -> None:
    node = next(n for n in module.graph.nodes if getattr(n.target, "__name__", "") == "assign")
    node.args = (node.args[0], (*node.args[1][:2], 1), node.args[2])


def _assignment_unseen(module: fx.GraphModule) -> None:
    node = next(n for n in module.graph.nodes if getattr(n.target, "__name__", "") == "assign")
    next(iter(node.users)).replace_input_with(node, node.args[0])


def _drawn_once(module: fx.GraphModule) -> None:
    first, second = _find(module, torch.rand_like), _find(module, torch.rand_like, 1)
    second.replace_all_uses_with(first)


def _batch_compiled_in(module: fx.GraphModule) -> None:
    size = next(n for n in module.graph.nodes if n.op != "placeholder" and n.target in ("size", operator.getitem))
    size.replace_all_uses_with(1)


def _outputs_swapped(module: fx.GraphModule) -> None:
    node = module.graph.output_node()
    node.args = (node.args[0][::-1],)


def _outputs_as_a_list(module: fx.GraphModule) -> None:
    node = module.graph.output_node()
    node.args = (list(node.args[0]),)


LIES: tuple[Callable[[fx.GraphModule], None], ...] = (
    _wrong_stride, _wrong_groups, _wrong_epsilon, _another_weight, _weights_swapped, _another_statistic,
    _dropped_operation, _dropped_branch, _branch_twice, _swapped_operands, _another_constant, _another_term,
    _another_axis, _another_order, _another_index, _assignment_unseen, _drawn_once, _batch_compiled_in,
    _outputs_swapped, _outputs_as_a_list,
)  # fmt: skip


def test_the_honest_capture_is_equal() -> None:
    written, islands = captured(_prepared())
    assert written is not None
    assert not islands
    opinion = _of(_prepared(), written)
    _assert_equal(opinion)
    assert opinion.explained.keys() == MORE.keys()


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__.strip("_"))
def test_a_capture_that_lies_is_noticed(lie: Callable[[fx.GraphModule], None]) -> None:
    written, _ = captured(_prepared())
    assert written is not None
    lie(written)
    written.graph.eliminate_dead_code()
    written.recompile()
    opinion = _of(_prepared(), written)
    assert not opinion.equal
    assert str(opinion)


class Overwritten(nn.Module):
    """x + 1 is read before and after it is overwritten."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        before = y * 2
        other = y
        y += 3
        return before, other * 5


def test_a_capture_that_forgets_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, _ = captured(Overwritten().eval())
    assert honest is not None
    _assert_equal(_of(Overwritten(), honest))
    functional = {operator.iadd: operator.add}
    monkeypatch.setattr(
        MutableProxy,
        "_in_place",
        lambda self, target, other: self.tracer.create_proxy("call_function", functional[target], (self, other), {}),
    )
    forgetful, _ = captured(Overwritten().eval())
    assert forgetful is not None
    assert not _of(Overwritten(), forgetful).equal


# --- what is not told apart -----------------------------------------------------------------------


class Written(nn.Module):
    """One line of code."""

    def __init__(self, line: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.line = line

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4, 6, 5)."""
        return self.line(x) * 2


Line = Callable[[Tensor], Tensor]
SPELLINGS: tuple[tuple[str, Line, Line, Line], ...] = (
    ("clone", lambda x: x, torch.clone, lambda x: x.roll(1)),
    ("contiguous", lambda x: x.transpose(1, 2), lambda x: x.transpose(1, 2).contiguous(), lambda x: x.transpose(2, 1)),
    ("detach", lambda x: x, torch.detach, lambda x: x.abs()),
    ("reshape", lambda x: x.view(-1, 4, 30), lambda x: x.flatten(2), lambda x: x.view(-1, 30, 4)),
    ("to", lambda x: x, lambda x: x.to(torch.float64), lambda x: x.to(torch.float32)),
    ("dropout", lambda x: x, lambda x: F.dropout(x, 0.5, False), lambda x: F.dropout(x, 0.5, True)),
    ("in place", lambda x: x.add(1).relu(), lambda x: x.add(1).relu_(), lambda x: x.relu().add_(1)),
)


@pytest.mark.parametrize(("name", "one", "other", "near"), SPELLINGS, ids=[row[0] for row in SPELLINGS])
def test_spellings_have_one_digest_and_a_near_miss_has_another(name: str, one: Line, other: Line, near: Line) -> None:
    programs = [exported(Written(line), _inputs()) for line in (one, other, near)]
    for functional in (True, False) if name != "in place" else (True,):
        mine, its, another = (read(program, functional).outputs for program in programs)
        assert mine == its
        assert mine != another


def test_tables_hold_no_more_than_is_needed() -> None:
    assert len({name for names in SAME.values() for name in names}) == sum(map(len, SAME.values()))
    assert NOT_EXPORTED.keys() <= {subject.spec for subject in subjects()}
