"""One test per trap of EXACTNESS.md, "Traps that silently break other tools", named after it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, ScaledStdConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

import repfx
from repfx.decline import Reason
from tests import hostile
from tests.compiling import Net, assert_declined, compiled, conv, counted, left

BN = nn.BatchNorm2d
ONE_CONV = {"convolutions": 1}


def test_a_conv_called_twice_each_call_followed_by_its_own_batch_norm() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return torch.relu(s.n(s.a(x))) + torch.tanh(s.m(s.a(x)))

    _, fused = compiled(Net(run, a=conv(4, 4), n=BN(4), m=BN(4)), 4)
    assert left(fused, 4).batch_norms == 0
    assert left(fused, 4).convolutions <= 2


def test_a_conv_called_twice_in_a_row() -> None:
    _, fused = compiled(Net(lambda s, x: s.m(s.a(torch.relu(s.n(s.a(x))))), a=conv(4, 4), n=BN(4), m=BN(4)), 4)
    assert counted(left(fused, 4)) == {"convolutions": 2, "others": 1}


def test_weight_tied_parameters() -> None:
    model = Net(lambda s, x: torch.relu(s.n(s.a(x))) + s.b(torch.tanh(x)), a=conv(4, 4), b=conv(4, 4), n=BN(4))
    model.b.weight = model.a.weight
    original, fused = compiled(model, 4)
    assert original.a.weight is original.b.weight
    assert counted(left(fused, 4)) == {"convolutions": 2, "adds": 1, "others": 2}


def test_a_batch_norm_found_by_registration_order_instead_of_dataflow() -> None:
    """BN(a + b + x): the norm is registered right behind `b`, and belongs to the sum."""
    _, fused = compiled(Net(lambda s, x: s.n(s.a(x) + s.b(x) + x), a=conv(4, 4), b=conv(4, 4, 1), n=BN(4)), 4)
    assert counted(left(fused, 4)) == ONE_CONV


def test_a_batch_norm_registered_behind_a_conv_but_run_before_it() -> None:
    _, fused = compiled(Net(lambda s, x: s.a(s.n(x)), a=conv(4, 4, 1), n=BN(4)), 4)
    assert counted(left(fused, 4)) == ONE_CONV


class Hopeful(nn.Module):
    """Has a `fuse` that must not be called, and a batch norm that a tool looking for `fuse` forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(4, 4)
        self.norm = BN(4)

    def fuse(self) -> nn.Module:
        raise AssertionError("a module's own fuse() is none of our business")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x))


def test_a_batch_norm_dropped_because_its_parent_has_no_fuse() -> None:
    model = Net(lambda s, x: s.n(s.p(x)), p=nn.Sequential(Hopeful(), nn.Identity()), n=BN(4))
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == ONE_CONV


def test_an_intermediate_that_is_also_returned() -> None:
    original, fused = compiled(Net(lambda s, x: {"out": s.n(y := s.a(x)), "middle": [y]}, a=conv(4, 4), n=BN(4)), 4)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    assert list(fused(x)) == list(original(x)) == ["out", "middle"]
    assert_declined(fused, Reason.OUTSIDE_USE, "a", "by the output")


def test_an_intermediate_that_is_hooked() -> None:
    model = hostile.prepared(Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4)), 0)
    seen: list[Tensor] = []
    model.a.register_forward_hook(lambda module, args, out: seen.append(out))
    fused = repfx.reparameterize(model, verify=False)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    seen.clear()
    expected = model(x)
    hooked = seen.pop()
    assert hostile.relative_error(expected, fused(x)) <= hostile.TOLERANCE
    assert len(seen) == 1, "the hook no longer runs"
    assert torch.equal(seen.pop(), hooked), "the hook sees another value"
    assert "a" in {island.path for island in repfx.report(fused).islands}


def test_a_hook_that_changes_its_output() -> None:
    model = hostile.prepared(Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4)), 0)
    model.a.register_forward_hook(lambda module, args, out: out.abs())
    fused = repfx.reparameterize(model, verify=False)
    assert {island.path for island in repfx.report(fused).islands} == {"a"}
    assert_declined(fused, Reason.NOT_EXACT, "n", "follows a, which is no affine map")
    hostile.assert_same(model, fused, torch.randn(2, 4, 5, 5, dtype=torch.float64))


def test_an_intermediate_that_a_feature_extractor_reads() -> None:
    body = nn.Sequential()
    body.add_module("a", conv(4, 4))
    body.add_module("n", BN(4))
    body.add_module("b", conv(4, 4))
    extractor = IntermediateLayerGetter(body, {"a": "early", "b": "late"})
    original = hostile.prepared(extractor, 0)
    fused = repfx.reparameterize(original, verify=False)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    hostile.assert_same(original, fused, x)
    assert list(fused(x)) == ["early", "late"]
    assert counted(left(fused, 4)) == {"convolutions": 2, "border_terms": 1}


class NamedNorm(nn.BatchNorm2d):
    """A batch norm by another name."""


@pytest.mark.parametrize(
    "norm",
    [
        lambda: BatchNormAct2d(4, apply_act=False),
        lambda: BatchNormAct2d(4),
        lambda: FrozenBatchNorm2d(4),
        lambda: nn.SyncBatchNorm(4),
        lambda: NamedNorm(4),
    ],
    ids=["BatchNormAct2d", "BatchNormAct2d with act", "FrozenBatchNorm2d", "SyncBatchNorm", "by another name"],
)
def test_batch_norms_that_are_subclasses(norm: Any) -> None:
    _, fused = compiled(Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=norm()), 4)
    found = counted(left(fused, 4))
    assert {kind: n for kind, n in found.items() if kind != "others"} == ONE_CONV


def test_functional_batch_norm_with_buffers() -> None:
    model = Net(
        lambda s, x: F.batch_norm(s.a(x), s.m, s.v, None, s.h, momentum=0.3, eps=0.1),
        a=conv(4, 4), m=torch.linspace(-2, 2, 4), v=torch.linspace(0.1, 3, 4), h=nn.Parameter(torch.ones(4)),
    )  # fmt: skip
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == ONE_CONV


@pytest.mark.parametrize("statistics", ["in train mode", "without running statistics"])
def test_a_batch_norm_that_uses_the_batch_stays(statistics: str) -> None:
    model = Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4, track_running_stats=statistics == "in train mode"))
    original = hostile.prepared(model, 0)
    if statistics == "in train mode":
        original.n.train()
    fact = "training mode" if statistics == "in train mode" else "keeps no running statistics"
    fused = repfx.reparameterize(original, verify=False)
    assert_declined(fused, Reason.NOT_EXACT, "n", fact)
    assert left(fused, 4).batch_norms == 1
    hostile.assert_same(original, fused, torch.randn(3, 4, 5, 5, dtype=torch.float64))


class Guarded(nn.Module):
    """timm's patch embedding and residuals: shape guards that read every value once more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = conv(4, 4), BN(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        torch._assert(y.ndim == 4, "an image")
        torch._assert(y.shape[1] == 4, f"four channels, not {y.shape[1]}")
        return self.n(y)


def test_shape_guards_count_as_users_unless_removed() -> None:
    _, fused = compiled(Guarded(), 4)
    assert counted(left(fused, 4)) == ONE_CONV


def test_positional_versus_keyword_arguments() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        a = F.conv2d(x, s.w, s.c, 1, 2, 2, 2)
        b = F.conv2d(input=x, weight=s.w, bias=s.c, dilation=2, groups=2, padding=(2, 2))
        return torch.add(input=a, other=b, alpha=2) + torch.mul(other=s.g, input=a)

    def p(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(*shape))

    _, fused = compiled(Net(run, w=p(4, 2, 3, 3), c=p(4), g=p(4, 1, 1)), 4)
    assert counted(left(fused, 4)) == ONE_CONV


@pytest.mark.parametrize("kernel", [2, 4, (4, 3), (1, 6)])
@pytest.mark.parametrize("dilation", [1, 3])
def test_padding_same_with_even_kernels(kernel: Any, dilation: int) -> None:
    model = Net(
        lambda s, x: s.n(s.a(x)) + s.b(x) + x,
        a=nn.Conv2d(4, 4, kernel, padding="same", dilation=dilation, groups=4), b=conv(4, 4, 1, groups=4), n=BN(4),
    )  # fmt: skip
    _, fused = compiled(model, 4)
    assert left(fused, 4).convolutions == 1


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_mode_other_than_zeros(mode: str) -> None:
    sizes = ((8, 8), (3, 5), (2, 9))
    norm_first = Net(lambda s, x: s.m(s.a(s.n(x))), a=conv(4, 4, padding_mode=mode), n=BN(4), m=BN(4))
    _, fused = compiled(norm_first, 4, sizes)
    assert left(fused, 4).convolutions == 1
    assert left(fused, 4).border_terms == left(fused, 4).batch_norms == 0
    mixed = Net(lambda s, x: s.a(x) + s.b(x), a=conv(4, 4, padding_mode=mode), b=conv(4, 4))
    _, fused = compiled(mixed, 4, sizes)
    assert_declined(fused, Reason.NOT_EXACT, "add", f"padding modes {' and '.join(sorted((mode, 'zeros')))}")


def test_conv2d_same_whose_padding_depends_on_the_input_size() -> None:
    """TensorFlow's "same" with a stride pads by the input's size: without an example it stays, and so does its norm."""
    model = Net(lambda s, x: s.n(s.a(x)), a=Conv2dSame(4, 4, 3, stride=2), n=BN(4))
    _, fused = compiled(model, 4, ((8, 8), (7, 5), (9, 12), (1, 1)))
    assert {island.path for island in repfx.report(fused).islands} == {"a"}
    assert_declined(fused, Reason.NOT_EXACT, "n", "follows a, which is no affine map")
    _, fused = compiled(Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4, 3, stride=2), n=BN(4)), 4)  # one step away
    assert counted(left(fused, 4)) == ONE_CONV


def test_parametrizations() -> None:
    model = Net(lambda s, x: s.n(s.a(x)), a=parametrizations.weight_norm(conv(4, 4)), n=BN(4))
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == ONE_CONV


def test_orthogonal_parametrization() -> None:
    model = Net(lambda s, x: s.n(s.a(x)), a=parametrizations.orthogonal(conv(4, 4, 1)), n=BN(4))
    original = hostile.prepared(model, 0)
    fused = repfx.reparameterize(original, verify=False)
    assert counted(left(fused, 4)) == ONE_CONV
    hostile.assert_same(original, fused, torch.randn(2, 4, 5, 5, dtype=torch.float64))


def test_weight_norm_hooks_leave_a_stale_weight() -> None:
    """The plain attribute `weight` is what the last forward left; the parameters have changed since."""
    model = hostile.prepared(Net(lambda s, x: s.n(s.a(x)), a=weight_norm(conv(4, 4)), n=BN(4)), 0)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    model(x)
    with torch.no_grad():
        model.a.weight_g.mul_(3.0)
    fused = repfx.reparameterize(model, verify=False)
    assert counted(left(fused, 4)) == ONE_CONV
    hostile.assert_same(model, fused, x)


def test_scaled_std_conv() -> None:
    model = Net(lambda s, x: s.n(s.a(x)), a=ScaledStdConv2d(4, 4, 3, padding=1), n=BN(4))
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == ONE_CONV


def test_weight_generators_are_folded_under_no_grad() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        kernel = (s.w.softmax(0) * s.mask).sum(0).view(4, 4, 3, 3) @ torch.exp(s.k)
        return s.n(F.conv2d(x, kernel, padding=1))

    model = Net(
        run, w=nn.Parameter(torch.zeros(3, 144)), mask=torch.rand(3, 1), k=nn.Parameter(torch.zeros(3, 3)), n=BN(4)
    )
    _, fused = compiled(model, 4)
    assert counted(left(fused, 4)) == ONE_CONV
    assert all(p.is_leaf for p in fused.parameters())


def test_weights_that_depend_on_the_input_are_never_folded() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.n(F.conv2d(x, s.w * x.mean((0, 2, 3)).sigmoid().view(1, -1, 1, 1), padding=1))

    _, fused = compiled(Net(run, w=nn.Parameter(torch.zeros(4, 4, 3, 3)), n=BN(4)), 4)
    assert_declined(fused, Reason.NOT_EXACT, "conv2d", "its weight depends on the input")


class Toggled(nn.Module):
    """Keeps a plain tensor that eval() makes and train() drops."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.scale = conv(4, 4), BN(4), nn.Parameter(torch.zeros(4))
        self.cached: Tensor | None = None

    def train(self, mode: bool = True) -> Toggled:
        super().train(mode)
        self.cached = None if mode else self.scale.detach().double().exp().view(1, -1, 1, 1)
        return self

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.exp().view(1, -1, 1, 1) if self.cached is None else self.cached
        return self.n(self.a(x)) * scale


def test_tensor_attributes_made_by_train_and_eval() -> None:
    original = hostile.prepared(Toggled(), 0).eval()  # eval again: with the weights it has now
    fused = repfx.reparameterize(original, verify=False)
    assert counted(left(fused, 4)) == ONE_CONV
    hostile.assert_same(original, fused, torch.randn(2, 4, 5, 5, dtype=torch.float64))


class Wrapper(nn.Module):
    """DistributedDataParallel's shape: forwards whatever it gets, so its own forward does not trace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)


def test_ddp_and_ema_copies() -> None:
    original = hostile.prepared(Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4)), 0)
    averaged = torch.optim.swa_utils.AveragedModel(original).eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    for model in (Wrapper(original), averaged.module, copy.deepcopy(original)):
        fused = repfx.reparameterize(model.eval(), verify=False)
        assert counted(left(fused, 4)) == ONE_CONV
        hostile.assert_same(model, fused, x)
    hostile.assert_same(averaged, repfx.reparameterize(averaged, verify=False), x)


def test_meta_tensors() -> None:
    with torch.device("meta"):
        model = Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4)).eval()
    report = repfx.explain(model)
    assert (report.before.batch_norms, report.after.batch_norms, report.after.convolutions) == (1, 0, 1)


def test_aliasing_of_in_place_adds() -> None:
    def aliased(s: Net, x: Tensor) -> Tensor:
        out = a = s.a(x)
        out += s.b(x)
        return out + a

    def split(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        first, second = y.chunk(2, 1)
        first += second
        return s.n(y)

    def twice(s: Net, x: Tensor) -> Tensor:
        total = s.a(x)
        total += s.b(x)
        total += total
        return s.n(total)

    expected = {
        aliased: {"convolutions": 1},
        split: {"convolutions": 1, "batch_norms": 1, "adds": 1, "splits": 1},
        twice: {"convolutions": 1},
    }
    for run, counts in expected.items():
        _, fused = compiled(Net(run, a=conv(4, 4), b=conv(4, 4, 1), n=BN(4)), 4)
        assert counted(left(fused, 4)) == counts
        if run is split:
            assert_declined(fused, Reason.NOT_EXACT, "a", "shares memory with a value that is overwritten in place")


def test_in_place_activation_on_a_shared_value() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.n(s.a(x))
        z = F.relu(y, inplace=True)
        return s.b(y) + z

    _, fused = compiled(Net(run, a=conv(4, 4), b=conv(4, 4, 1), n=BN(4)), 4)
    assert counted(left(fused, 4)) == {"convolutions": 2, "others": 1}


@pytest.mark.parametrize("dtype", [torch.float16])
def test_dead_and_huge_channels_in_half_precision(dtype: torch.dtype) -> None:
    model = Net(lambda s, x: s.n(s.a(x)), a=conv(4, 4), n=BN(4)).to(dtype).eval()
    with torch.no_grad():
        model.n.running_var.fill_(1.0)
        model.n.running_var[2] = 0.0
        model.n.weight[2] = 60000.0
    with pytest.raises(repfx.UserError, match=r"a: the folded \w+ of output channel 2 is .* overflows torch\.float16"):
        repfx.reparameterize(model, verify=False)
    repfx.reparameterize(model.to(torch.bfloat16), verify=False)


def test_a_wide_dilation_is_not_written_out() -> None:
    """A dilated kernel spans 73x73 pixels and holds nine numbers; folding a norm into it stays that small."""
    wide = nn.Conv2d(64, 64, 3, padding=36, dilation=36, bias=False)
    rows = []

    def watched(part: Tensor, dilation: object, lead: int) -> Tensor:
        rows.append(part.numel())
        return part

    _, fused = compiled(Net(lambda s, x: s.n(s.a(x)), a=wide, n=nn.BatchNorm2d(64)), 64, ((5, 7), (40, 38)))
    assert counted(left(fused, 64, (40, 38))) == {"convolutions": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repfx.algebra.values.dilated", watched)
        repfx.reparameterize(nn.Sequential(wide, nn.BatchNorm2d(64)).eval(), verify=False)
    assert not rows, "planes with all their zeros were written down"
