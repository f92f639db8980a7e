"""Ways that sizes decide: taken from the example, checked at run time; never where data decides."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repfx
from repfx.verification import count_operations
from tests import hostile
from tests.compiling import Net, conv

BN = nn.BatchNorm2d


def net(run: Callable[..., Any]) -> nn.Module:
    return hostile.prepared(Net(run, a=conv(3, 4), n=BN(4), b=conv(4, 4), m=BN(4)), 0)


def image(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wide(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    return s.m(s.b(y)) if x.shape[-1] > 6 else y


def parity(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    if x.shape[2] % 2:
        y = F.pad(y, (0, 0, 0, 1))
    return s.m(s.b(y))


def looped(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    rows = [s.m(s.b(y[:, :, i : i + 2])) for i in range(0, y.shape[2], 2)]
    return torch.cat(rows, 2)


def rounded(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    target = math.ceil(y.shape[-1] / 4) * 4
    return s.m(s.b(F.pad(y, (0, target - int(y.size(3))))))


def compared(s: Net, x: Tensor) -> Tensor:
    y, z = s.n(s.a(x)), s.m(s.b(s.n(s.a(x))))
    return y + z if y.shape == z.shape else y


def typed(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    if y.dtype == torch.float32 or y.device.type == "cuda":
        y = y * 2
    return s.m(s.b(y))


def looked_up(s: Net, x: Tensor) -> Tensor:
    y = s.m(s.b(s.n(s.a(x))))
    return y * {6: 2.0, (8, 7): 3.0}.get(x.shape[-1], 1.0) * (1 if x.shape[-1] in {5, 7} else 4)


def flattened(s: Net, x: Tensor) -> Tensor:
    y = s.m(s.b(s.n(s.a(x))))
    for _ in range(len(y.shape) - 2):
        y = y.mean(-1)
    return y


WAYS = {  # run, example size, sizes that go the same way, sizes that do not
    "wide": (wide, (8, 8), [(5, 7), (9, 12)], [(8, 6), (3, 3)]),
    "narrow": (wide, (8, 6), [(5, 5)], [(8, 7)]),
    "odd": (parity, (7, 8), [(3, 5), (9, 9)], [(8, 8), (4, 7)]),
    "even": (parity, (8, 8), [(2, 5)], [(7, 8)]),
    "looped": (looped, (6, 8), [(6, 5)], [(8, 8), (4, 8)]),
    "rounded": (rounded, (8, 7), [(5, 7)], [(8, 8), (8, 6)]),
    "compared": (compared, (8, 8), [(5, 7)], []),
    "typed": (typed, (8, 8), [(5, 7)], []),
    "looked up": (looked_up, (8, 6), [(5, 6)], [(6, 8), (6, 7), (6, 5)]),
    "flattened": (flattened, (8, 8), [(5, 7)], []),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_example_decides_and_another_way_is_an_error(name: str) -> None:
    run, example, same, other = WAYS[name]
    model = net(run)
    before = hostile.snapshot(model)
    fused = repfx.reparameterize(model, (image(*example),))
    hostile.assert_untouched(model, before)
    report = repfx.report(fused)
    assert not report.islands
    assert all(run.__name__ in condition and "(2, 3, " in condition for condition in report.conditions)
    assert "holds for the example's sizes" in str(report) or not report.conditions
    for result in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), repfx.reparameterize(fused)):
        for size in (example, *same):
            for batch in (2, 1):
                hostile.assert_same(model, result, image(*size, batch=batch))
        for size in other:
            with pytest.raises(repfx.InputError, match=rf"takes another way at {run.__name__}, line \d+ than the exam"):
                result(image(*size))
    assert count_operations(fused, (image(*example),)).batch_norms == 0


@pytest.mark.parametrize("name", WAYS)
def test_without_an_example_no_size_is_lost(name: str) -> None:
    run, example, same, other = WAYS[name]
    model = net(run)
    fused = repfx.reparameterize(model)
    assert repfx.report(fused).conditions == ()
    for size in (example, *same, *other):
        hostile.assert_same(model, fused, image(*size))


def by_sum(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    return y if y.sum() > 0 else s.m(s.b(y))


def by_item(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    return y[:, : 1 + int(x.abs().max().item()) % 3]


def by_count(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    return y if len((x > 0).nonzero()) % 2 else s.m(s.b(y))


@pytest.mark.parametrize("run", [by_sum, by_item, by_count])
def test_data_decides_nothing(run: Callable[..., Any]) -> None:
    model = net(run)
    fused = repfx.reparameterize(model, (image(6, 6),))
    (island,) = repfx.report(fused).islands
    assert island.path == ""
    assert f"at {run.__name__}, line " in island.cause
    for seed in range(6):
        x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        hostile.assert_same(model, fused, x)


def test_a_number_that_only_goes_into_an_operation_is_not_fixed() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.n(s.a(x))
        if x.shape[-1] > 4:
            y = F.pad(y, (0, 0, x.shape[2] // 2, 0))
        z = F.conv2d(y, s.b.weight, None, 1, x.shape[2] // 3)  # type: ignore[arg-type]
        return z.view(x.shape[0], -1, z.size(2) * z.size(3))

    model = net(run)
    fused = repfx.reparameterize(model, (image(6, 6),))
    assert len(repfx.report(fused).conditions) == 1
    for size in ((6, 6), (3, 5), (9, 8)):
        hostile.assert_same(model, fused, image(*size))
    with pytest.raises(repfx.InputError):
        fused(image(6, 4))


# --- checks, types, counts ------------------------------------------------------------------------


def checked(s: Net, x: Tensor) -> Tensor:
    assert x.shape[1] == 3, f"bad shape {tuple(x.shape)}"
    if x.shape[-1] < 2 or x.ndim != 4:
        message = f"too small: {x.shape}"
        raise ValueError(message)
    return s.m(s.b(s.n(s.a(x))))


def caught(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    try:
        if x.shape[-1] % 2:
            raise ValueError("odd")
        return s.m(s.b(y))
    except ValueError:
        return y


def tried(s: Net, x: Tensor) -> Tensor:
    y = s.n(s.a(x))
    try:
        for _ in range(int(y.shape[-1]) - 4):
            y = s.m(s.b(y))
    except (TypeError, ValueError):
        y = y + 1
    return y * 2 if hasattr(x, "logits") else y


def test_a_check_that_raises_is_passed() -> None:
    model = net(checked)
    fused = repfx.reparameterize(model)
    assert not repfx.report(fused).islands
    for size in ((5, 5), (2, 3), (3, 8)):
        hostile.assert_same(model, fused, image(*size))
    assert count_operations(fused, (image(5, 5),)).batch_norms == 0


@pytest.mark.parametrize("run", [caught, tried])
def test_an_error_that_the_code_catches_is_no_error_of_the_trace(run: Callable[..., Any]) -> None:
    model = net(run)
    fused = repfx.reparameterize(model)
    assert repfx.report(fused).islands
    for size in ((5, 5), (4, 4)):
        hostile.assert_same(model, fused, image(*size))


def asks_type(s: Net, x: Any) -> Tensor:
    if isinstance(x, Tensor):
        x = s.n(s.a(x))
    if isinstance(x, tuple | list):
        x = x[0]
    return s.m(s.b(x)) if isinstance(x.shape[1], int) and not isinstance(x.shape, int) else x


def test_a_value_is_a_tensor_where_the_code_asks() -> None:
    model = net(asks_type)
    fused = repfx.reparameterize(model)
    assert not repfx.report(fused).islands
    hostile.assert_same(model, fused, image(5, 6))
    assert count_operations(fused, (image(5, 5),)).batch_norms == 0


class Several(nn.Module):
    """Returns a tensor or a tuple, as the data says."""

    def forward(self, x: Tensor) -> Any:
        return (x, x) if float(x.sum()) > 0 else x


def test_the_type_of_an_island_s_value_is_not_guessed() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.i(s.n(s.a(x)))
        return y[0] + y[1] if isinstance(y, tuple) else y

    model = hostile.prepared(Net(run, a=conv(3, 4), n=BN(4), i=Several()), 0)
    fused = repfx.reparameterize(model)
    for seed in range(6):
        x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        hostile.assert_same(model, fused, x)


def test_a_list_of_the_parts_of_a_chunk() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        parts = list(s.n(s.a(x)).chunk(3, 1))  # of four channels: two parts
        return s.m(s.b(torch.cat([*parts, *parts][: len(parts)], 1))) * len(parts)

    model = net(run)
    fused = repfx.reparameterize(model)
    assert not repfx.report(fused).islands
    hostile.assert_same(model, fused, image(5, 6))


def test_a_rank_that_structure_tells_is_checked() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.b(s.a(x))
        return y.flatten(-2) if len(y.shape) == 4 else y * 2

    model = hostile.prepared(Net(run, a=conv(3, 4), b=conv(4, 4)), 0)
    fused = repfx.reparameterize(model)
    hostile.assert_same(model, fused, image(5, 6))
    with pytest.raises(repfx.InputError, match="for a value of 4 axes, and is given 3"):
        fused(image(5, 6)[0])


def test_sizes_are_read_before_a_norm_that_can_go_on() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        y = s.n(x)
        return s.m(s.b(y)).reshape(y.shape[0], -1, y.shape[2] * y.shape[3]) + x.flatten(2)

    model = net(run)
    fused = repfx.reparameterize(model)
    hostile.assert_same(model, fused, image(5, 6))
    assert count_operations(fused, (image(5, 5),)).batch_norms == 0


def test_planning_on_the_meta_device_with_an_example() -> None:
    with torch.device("meta"):
        model = Net(wide, a=conv(3, 4), n=BN(4), b=conv(4, 4), m=BN(4)).eval()
        report = repfx.explain(model, (torch.zeros(1, 3, 8, 8),))
    assert not report.islands
    assert report.after.batch_norms == 0
    assert report.conditions


def test_channels_that_only_the_example_tells_are_checked() -> None:
    """No layer says how many channels an input has; a slice of all of the example's is no slice for others."""
    model = Net(lambda s, x: torch.relu(x[:, :3]) * s.g, g=nn.Parameter(torch.tensor(2.0)))
    fused = repfx.reparameterize(model.eval(), (torch.randn(1, 3, 8, 8),))
    assert "getitem" not in {n.name for n in fused.graph.nodes if n.target is not operator.getitem or n.args[1] != 1}
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(fused(x), model(x))
    with pytest.raises(repfx.InputError, match="the channels of x"):
        fused(torch.randn(1, 6, 5, 6))
    second = repfx.reparameterize(fused, (x,))
    assert [str(n.target) for n in second.graph.nodes] == [str(n.target) for n in fused.graph.nodes]
