"""The promises of the public face: `reparameterize`, `explain`, `report`."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

import repfx
from repfx.decline import Reason
from repfx.graph import LiftedGraph
from repfx.layers import BorderTerm, ScaleShift
from repfx.lifting import table
from repfx.state import copied
from repfx.verification.equivalence import SLACK, tolerance
from tests import hostile
from tests.compiling import Net, conv, counted, left

BN = nn.BatchNorm2d


class Mixer(nn.Module):
    """A biased 1x5/5x1 pair (border term), a 3x3 and an identity, each with its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, width, (1, 5), padding=(0, 2), groups=width)
        self.tall = nn.Conv2d(width, width, (5, 1), padding=(2, 0), groups=width)
        self.small = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm_small, self.norm_skip, self.norm = BN(width), BN(width), BN(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tall(self.wide(x)) + self.norm_small(self.small(x)) + self.norm_skip(x))


class Toy(nn.Module):
    """Stem, two multi-branch stages, a head: everything one compilation touches."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), BN(width), nn.ReLU())
        self.stages = nn.Sequential(Mixer(width), nn.GELU(), Mixer(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def toy(seed: int = 0, dtype: torch.dtype = torch.float64) -> Toy:
    model = hostile.prepared(Toy(), seed).to(dtype)
    assert isinstance(model, Toy)
    return model


def batch(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (13, 18)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def same(original: nn.Module, fused: nn.Module) -> None:
    for size in ((13, 18), (1, 1), (4, 3), (32, 32)):
        hostile.assert_same(original, fused, batch(size=size))


def shape_of(fused: nn.Module) -> list[tuple[str, str, tuple[int, ...]]]:
    """The whole structure: graph and parameter shapes."""
    assert isinstance(fused, fx.GraphModule)
    nodes = [(n.op, str(n.target), tuple(str(a) for a in n.args)) for n in fused.graph.nodes]
    return [*nodes, *((name, str(p.dtype), tuple(p.shape)) for name, p in fused.state_dict().items())]


# --- the original ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [True, False])
def test_the_original_is_untouched(verify: bool) -> None:
    model = toy()
    model.stages[0].norm.weight.requires_grad_(False)
    model.stages[1].train()  # no batch norm in it; the flag is the user's own
    before, flags = hostile.snapshot(model), {n: m.training for n, m in model.named_modules()}
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    grads = {n: p.requires_grad for n, p in model.named_parameters()}
    fused = repfx.reparameterize(model, (batch(),), verify=verify)
    hostile.assert_untouched(model, before)
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert {n: p.requires_grad for n, p in model.named_parameters()} == grads
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys(), name
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fused.parameters()}
    assert not shared, "the result shares memory with the original"
    same(model, fused)


def test_changing_the_result_does_not_change_the_original() -> None:
    model = toy()
    before, fused = hostile.snapshot(model), repfx.reparameterize(model)
    with torch.no_grad():
        for value in (*fused.parameters(), *fused.buffers()):
            value.add_(1)
    hostile.assert_untouched(model, before)


# --- what comes out -------------------------------------------------------------------------------


def test_is_a_graph_module_with_readable_paths_and_fewer_operations() -> None:
    fused = repfx.reparameterize(toy())
    assert isinstance(fused, fx.GraphModule)
    assert not fused.training
    found = counted(left(fused, 3))
    assert (found["convolutions"], found["linears"]) == (3, 1)
    assert found["border_terms"] == 2
    assert "batch_norms" not in found
    assert {"stem.0", "stages.0", "stages.2", "head"} <= {name for name, _ in fused.named_modules()}
    same(toy(), fused)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_what_is_left_of_a_lone_norm_folds_into_new_neighbours(axes: int, shifted: bool) -> None:
    layer, sizes = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes], (5, 6, 7)[:axes]
    kernel = (3,) if axes else ()
    scale = ScaleShift(torch.randn(4), torch.randn(4) if shifted else None, axes)
    model = nn.Sequential(layer(4, 4, *kernel), scale, nn.ReLU(), scale, layer(4, 4, *kernel)).eval().double()
    x = torch.randn(2, 4, *sizes).double()
    fused = repfx.reparameterize(model, (x,))
    assert not any(isinstance(part, ScaleShift) for part in fused.modules())
    torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_second_call_changes_nothing() -> None:
    once = repfx.reparameterize(toy())
    twice = repfx.reparameterize(once)
    assert not repfx.report(twice).merges
    assert [n.op for n in twice.graph.nodes] == [n.op for n in once.graph.nodes]
    assert twice.state_dict().keys() == once.state_dict().keys()
    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value), name


def test_the_same_architecture_gives_the_same_graph_whatever_the_weights() -> None:
    first, second = toy(0), toy(1)
    with torch.no_grad():
        for part in second.modules():  # weights that would tempt a value-dependent decision
            if isinstance(part, BN):
                part.bias.zero_()
                part.running_mean.zero_()
        second.stages[0].wide.bias.zero_()
        second.stages[0].small.weight.zero_()
    a, b = repfx.reparameterize(first), repfx.reparameterize(second)
    assert shape_of(a) == shape_of(b)
    same(second, b)


def test_weights_of_one_load_into_the_structure_of_another() -> None:
    a, b = repfx.reparameterize(toy(0)), repfx.reparameterize(toy(1))
    b.load_state_dict(a.state_dict(), strict=True)
    same(toy(0), b)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["stages.0", "stages.0*", Mixer], ids=str)
def test_exclude_is_honoured(what: object) -> None:
    model = toy()
    fused = repfx.reparameterize(model, exclude=(what,))  # type: ignore[arg-type]
    same(model, fused)
    kept = fused.get_submodule("stages.0")
    assert hostile_state_equal(kept, model.stages[0])
    other = fused.get_submodule("stages.2")
    assert any(isinstance(m, BN) for m in other.modules()) == (what is Mixer)
    if what != "stages.0*":
        assert type(kept) is Mixer


def hostile_state_equal(a: nn.Module, b: nn.Module) -> bool:
    left_state, right_state = a.state_dict(), b.state_dict()
    return left_state.keys() == right_state.keys() and all(
        torch.equal(left_state[k], right_state[k]) for k in left_state
    )


def test_excluding_one_module_keeps_the_rest_folding_and_says_so() -> None:
    model = toy()
    fused = repfx.reparameterize(model, exclude=("stem.1",))
    same(model, fused)
    assert counted(left(fused, 3))["batch_norms"] == 1
    assert isinstance(fused.get_submodule("stem.1"), BN)


def test_training_mode_is_an_error_with_a_remedy() -> None:
    for compile_ in (repfx.reparameterize, repfx.explain):
        with pytest.raises(
            repfx.TrainingModeError, match=r"^stem\.1 is a batch norm in training mode.*model\.eval\(\)"
        ):
            compile_(toy().train())
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    with pytest.raises(repfx.TrainingModeError, match=r"Sequential is in training mode; call model\.eval\(\) first"):
        repfx.reparameterize(plain)


def test_unknown_objective_names_the_choices() -> None:
    with pytest.raises(repfx.UserError, match=r"'speed' is not known; choose one of .*single-branch.*macs"):
        repfx.reparameterize(toy(), objective="speed")


def test_macs_objective_adds_no_parameters_and_no_macs() -> None:
    model = toy()
    fused = repfx.reparameterize(model, (batch(),), objective="macs")
    report = repfx.report(fused)
    assert report.objective == "macs"
    assert report.after.macs <= report.before.macs
    assert report.after.parameters <= report.before.parameters
    assert report.after.operations < report.before.operations
    same(model, fused)


def test_no_passes_change_nothing() -> None:
    model = toy()
    fused = repfx.reparameterize(model, passes=())
    assert not repfx.report(fused).merges
    assert repfx.report(fused).after.operations == repfx.report(fused).before.operations
    same(model, fused)


def test_progress_is_told() -> None:
    told: list[tuple[str, float]] = []
    repfx.reparameterize(toy(), progress=lambda text, share: told.append((text, share)))
    assert told
    assert all(0.0 <= share <= 1.0 for _, share in told)


# --- life after compiling -------------------------------------------------------------------------


def test_deep_copied_and_pickled() -> None:
    model = toy()
    fused = repfx.reparameterize(model)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)]
    for other in copies:
        assert hostile_state_equal(other, fused)
        same(model, other)
    with torch.no_grad():
        next(copies[0].parameters()).add_(1.0)
    same(model, fused)


def test_exported_with_any_batch_and_size() -> None:
    model = toy()
    fused = repfx.reparameterize(model)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    dims = {
        0: torch.export.Dim("b", min=1, max=8),
        2: torch.export.Dim("h", min=8, max=64),
        3: torch.export.Dim("w", min=8, max=64),
    }
    program = torch.export.export(fused, (batch(),), dynamic_shapes=(dims,)).module()
    for size in ((13, 18), (32, 9)):
        x = batch(size=size)
        with torch.no_grad():
            assert hostile.relative_error(model(x), program(x)) <= hostile.TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = repfx.randomize_statistics(Toy().eval()).to(dtype)
    fused = repfx.reparameterize(model)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert {b.dtype for b in fused.buffers() if b.is_floating_point()} <= {dtype}
    x = batch(dtype)
    with torch.no_grad():
        assert fused(x).dtype is dtype
        error = hostile.relative_error(model(x).double(), fused(x).double())
    assert error <= tolerance(model, dtype)


def test_float16_overflow_is_refused_with_the_channel() -> None:
    model = repfx.randomize_statistics(Toy().eval())
    with torch.no_grad():
        model.stem[1].running_var[3] = 0.0
        model.stem[1].weight[3] = 3000.0
    with pytest.raises(repfx.UserError, match=r"stem\.0: the folded \w+ of output channel 3 is .*float16; convert"):
        repfx.reparameterize(model.half())
    repfx.reparameterize(model.bfloat16())


def test_memory_format_is_kept() -> None:
    model = toy().to(memory_format=torch.channels_last)
    fused = repfx.reparameterize(model)
    for name, parameter in fused.named_parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
    x = batch().contiguous(memory_format=torch.channels_last)
    hostile.assert_same(model, fused, x)
    plain = repfx.reparameterize(toy())
    assert all(p.is_contiguous() for p in plain.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_requires_grad_is_kept(frozen: bool) -> None:
    model = toy()
    model.requires_grad_(not frozen)
    model.head.requires_grad_(True)
    fused = repfx.reparameterize(model)
    flags = {name: p.requires_grad for name, p in fused.named_parameters()}
    assert flags["head.weight"]
    assert {flag for name, flag in flags.items() if not name.startswith("head")} == {not frozen}


def test_the_result_trains() -> None:
    model = toy()
    fused = repfx.reparameterize(model).train()
    target = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in fused.named_parameters()}
    optimizer = torch.optim.SGD(fused.parameters(), lr=1e-5)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(fused(batch()), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True), losses
    assert losses[-1] < losses[0]
    still = [name for name, p in fused.named_parameters() if torch.equal(before[name], p)]
    assert not still, f"not trained: {still}"
    borders = [name for name, m in fused.named_modules() if isinstance(m, BorderTerm)]
    assert len(borders) == 2


def test_gradients_of_the_input_agree() -> None:
    model, gradients = toy(), []
    for network in (model, repfx.reparameterize(model)):
        x = batch().requires_grad_(True)
        network(x).square().sum().backward()
        gradients.append(x.grad)
    assert hostile.relative_error(*gradients) <= hostile.TOLERANCE  # type: ignore[arg-type]


# --- report and explain ---------------------------------------------------------------------------


def test_report_says_what_was_done() -> None:
    fused = repfx.reparameterize(toy(), (batch(),))
    report = repfx.report(fused)
    assert (report.model, report.objective) == ("Toy", "single-branch")
    assert {m.path for m in report.merges} == {"stem.0", "stages.0", "stages.2"}
    mixer = next(m for m in report.merges if m.path == "stages.0")
    assert "conv 8->8 5x5 groups 8 + border term" in mixer.after
    assert {"stages.0.wide", "stages.0.tall", "stages.0.norm"} <= set(mixer.sources)
    for merge in report.merges:
        assert merge.error is not None
        assert merge.error <= hostile.TOLERANCE
    assert (report.before.batch_norms, report.after.batch_norms) == (7, 0)
    assert report.after.convolutions == 3
    assert report.after.macs is not None
    assert report.equivalence is not None
    assert report.equivalence.equal
    assert report.equivalence.tolerance <= hostile.TOLERANCE
    text, page = str(report), report.to_markdown()
    for word in ("stages.0", "border term", "batch norm"):
        assert word in text
        assert word in page


def test_without_example_inputs_the_whole_is_compared_and_nothing_counted() -> None:
    report = repfx.report(repfx.reparameterize(toy()))
    assert report.equivalence is not None
    assert report.equivalence.equal
    assert "other size" in report.equivalence.probes
    assert report.before.macs is None
    assert report.after.convolutions == 3


def test_declines_have_a_place_a_reason_and_a_pass() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 3, 3, padding=1, groups=3)).eval()
    (decline,) = repfx.report(repfx.reparameterize(model)).declines
    assert (decline.reason, decline.subject, decline.rule) == (Reason.NOT_EXACT, "1", "collapse_chains")
    assert str(decline) == f"1: {decline.fact} ({decline.remedy})"


def test_report_of_something_else_is_an_error() -> None:
    with pytest.raises(repfx.UserError, match=r"Toy was not made by repfx\.reparameterize"):
        repfx.report(toy())


@pytest.mark.parametrize("objective", ["single-branch", "macs"])
def test_explain_on_the_meta_device_is_the_report_of_the_real_compilation(objective: str) -> None:
    with torch.device("meta"):
        abstract = Toy().eval()
    before = {name: id(value) for name, value in abstract.named_parameters()}
    plan = repfx.explain(abstract, objective=objective)
    real = repfx.report(repfx.reparameterize(toy(), objective=objective, verify=False))
    assert [(m.path, m.rule, m.before, m.after, m.sources) for m in plan.merges] == [
        (m.path, m.rule, m.before, m.after, m.sources) for m in real.merges
    ]
    assert set(map(str, plan.declines)) == set(map(str, real.declines))
    assert (plan.before, plan.after) == (real.before, real.after)
    assert {name: id(value) for name, value in abstract.named_parameters()} == before


def test_explain_reads_no_weight() -> None:
    model = toy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert repfx.explain(model).merges == repfx.explain(toy(5)).merges


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 2**-23), (torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_the_bound_grows_with_the_rounding_and_the_root_of_the_fan_in(dtype: torch.dtype, step: float) -> None:
    narrow, wide = nn.Conv2d(1, 7, (2, 2)), nn.Sequential(nn.Linear(3, 5), nn.Conv2d(16, 1, (2, 2)))
    assert tolerance(narrow, dtype) == pytest.approx(2 * SLACK * step)  # 1 x 2 x 2 products
    assert tolerance(wide, dtype) == pytest.approx(8 * SLACK * step)  # 16 x 2 x 2, the largest


def test_verify_finds_one_percent() -> None:
    model = toy()
    fused = repfx.reparameterize(model)
    assert repfx.verify(model, fused, (batch(),)).equal
    for name in [name for name, _ in fused.named_parameters()]:
        if name.endswith("bias"):
            broken = copy.deepcopy(fused)
            with torch.no_grad():
                broken.get_parameter(name).mul_(1.01)
            found = repfx.verify(model, broken, (batch(),))
            assert not found.equal, name
            assert found.worst


def test_a_plan_counts_slices_as_the_views_they_are() -> None:
    """Merged siblings are slices of one result; the plan and the compiled graph agree on what is executed."""
    model = Net(lambda s, x: torch.relu(s.a(x)) * s.b(x), a=conv(4, 6, 1), b=conv(4, 6, 1)).eval()
    plan, done = repfx.explain(model).after, repfx.report(repfx.reparameterize(model)).after
    assert plan == done
    assert plan.convolutions == 1
    assert plan.permutations == 0


@pytest.mark.parametrize("call", [repfx.reparameterize, repfx.explain])
def test_what_compiling_held_is_freed_without_the_collector(call: object, monkeypatch: pytest.MonkeyPatch) -> None:
    lifted: list[weakref.ref[object]] = []
    erased: list[weakref.ref[fx.Node]] = []

    class Watched(LiftedGraph):
        def __init__(self, graph: fx.Graph, *rest: object) -> None:
            super().__init__(graph, *rest)  # type: ignore[arg-type]
            lifted.append(weakref.ref(self))
            erased.extend(weakref.ref(node) for node in graph.nodes)

    monkeypatch.setattr(table, "LiftedGraph", Watched)
    was = gc.isenabled()
    gc.disable()
    try:
        result = call(toy())
        assert [ref() for ref in lifted] == [None]
        if isinstance(result, fx.GraphModule):
            assert {node for ref in erased if (node := ref()) is not None} <= set(result.graph.nodes)
    finally:
        if was:
            gc.enable()


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU, nn.Dropout, nn.Identity])
def test_a_copy_of_a_plain_module_is_a_deep_one(kind: type[nn.Module]) -> None:
    module = kind()
    module.extra = {"list": [1, 2]}  # type: ignore[assignment]
    module.register_forward_hook(lambda *args: None)
    memo: dict[int, object] = {}
    ours, torchs = copied(module, memo), copy.deepcopy(module)
    assert copied(module, memo) is ours
    assert ours.__dict__.keys() == torchs.__dict__.keys()
    for name, value in ours.__dict__.items():
        assert type(value) is type(torchs.__dict__[name])
        assert value is not module.__dict__[name] or value is torchs.__dict__[name]
    assert repr(ours) == repr(module)
