"""State between code that traces and code that does not: what the one writes, the other reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.compiling import Net, conv
from tests.truth.case import STAYS, Case, both, first, second

SETTINGS: dict[str, Any] = {"scale": 1.0}


def odd(x: Tensor) -> bool:
    """What no trace decides."""
    return float(x.detach().sum()) > -1e9


class Reads(nn.Module):
    """An island that reads what its caller may have written."""

    scale: Any = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.info: dict[str, Any] = {"scale": 1.0}
        self.register_buffer("kept", torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * self.info["scale"] * SETTINGS["scale"] * self.kept if odd(x) else x


class InEval(nn.Module):
    """An island that asks for its mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 3.0 if odd(x) and self.training else x


class Writes(nn.Module):
    """An island that writes what its caller may read."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None
        self.count = 1
        self.info: dict[str, Any] = {"scale": 1.0}
        self.seen: list[Any] = [1.0]

    def forward(self, x: Tensor) -> Tensor:
        if odd(x):
            self.last = self.info["scale"] = self.seen[0] = x.mean((2, 3), keepdim=True)
            self.count = x.shape[-1]
            SETTINGS["mean"] = x.mean()
        return x


class MayReturnNone(nn.Module):
    """An island of two results."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x, None if odd(x) else x


class WritesIntoList(nn.Module):
    """A detection head: it overwrites the list that it is given, and is an island."""

    def forward(self, x: list[Tensor]) -> Tensor:
        for i in range(len(x)):
            x[i] = x[i] * 2.0 if odd(x[i]) else x[i]
        return torch.stack(x).sum(0)


def style(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def writes_attribute(s: Net, x: Tensor) -> Tensor:
    s.part.scale = style(first(s, x))
    return second(s, s.part(first(s, x)))


def writes_dictionary(s: Net, x: Tensor) -> Tensor:
    s.part.info["scale"] = style(first(s, x))
    return second(s, s.part(first(s, x)))


def writes_and_resets(s: Net, x: Tensor) -> Tensor:
    s.part.info["scale"] = 2.0
    y = s.part(first(s, x))
    s.part.info["scale"] = 1.0
    return second(s, y)


def writes_global(s: Net, x: Tensor) -> Tensor:
    SETTINGS["scale"] = style(first(s, x))
    return second(s, s.part(first(s, x)))


def writes_buffer(s: Net, x: Tensor) -> Tensor:
    s.part.kept = style(first(s, x)).detach()
    return second(s, s.part(first(s, x)))


def switches_mode(s: Net, x: Tensor) -> Tensor:
    s.part.train()
    y = s.part(first(s, x))
    s.part.eval()
    return second(s, y)


def reads_attribute(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    y = s.part(first(s, x))
    return second(s, y), s.part.last


def reads_number(s: Net, x: Tensor) -> Tensor:
    return second(s, s.part(first(s, x))) * s.part.count


def reads_dictionary(s: Net, x: Tensor) -> Tensor:
    return second(s, s.part(first(s, x))) * s.part.info["scale"]


def reads_list(s: Net, x: Tensor) -> Tensor:
    return second(s, s.part(first(s, x))) * s.part.seen[0]


def reads_global(s: Net, x: Tensor) -> Tensor:
    return second(s, s.part(first(s, x))) * SETTINGS["mean"]


def hands_it_on(s: Net, x: Tensor) -> Tensor:
    y = s.part(first(s, x))
    return second(s, y) * s.identity(s.part.last)


def asks_for_none(s: Net, x: Tensor) -> Tensor:
    y, more = s.part(first(s, x))
    return second(s, y) if more is None else y


def asks_for_a_history(s: Net, x: Tensor) -> Tensor:
    y, _ = s.part(first(s, x))
    return second(s, y * 2.0 if y.grad_fn is not None else y)


def gives_a_list(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, s.part([y, y.relu()]))


def gives_a_list_and_reads_it(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    levels = [y, y.relu()]
    z = s.part(levels)
    return second(s, z + levels[0])


def alters_a_layer(s: Net, x: Tensor) -> Tensor:
    """Slimmable and multi-scale networks set what a layer of torch's reads."""
    s.up.size = x.shape[2:]
    y = s.up(first(s, x)[..., ::2, ::2])
    s.b.padding = (2, 2)
    s.b.dilation = (2, 2)
    return second(s, y)


def reset() -> None:
    SETTINGS.clear()
    SETTINGS["scale"] = 1.0


# --- hooks ----------------------------------------------------------------------------------------


class Hooked(nn.Module):
    """Features that hooks keep for the forward: extractors, dense predictors on a backbone."""

    def __init__(self, how: str = "closure") -> None:
        super().__init__()
        self.body = nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4))
        self.features: dict[str, Tensor] = {}
        self.how = how
        hook = {"closure": self.closure("a"), "method": self.method}[how]
        self.handles = [self.body[1].register_forward_hook(hook)]

    def closure(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.features[name] = output

        return hook

    def method(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features["a"] = output

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y + self.features["a"]


class Warm(Hooked):
    """One that has run before it is compiled: what it keeps has a history."""

    def __init__(self) -> None:
        super().__init__()
        self(torch.ones(1, 4, 8, 8))


class SpectralNorm:
    """A hook of the user's, of a name that torch has too; it iterates in eval mode."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        with torch.no_grad():
            flat = module.weight_orig.flatten(1)
            module.u = nn.functional.normalize(flat @ (flat.t() @ module.u), dim=0)
        module.weight = module.weight_orig / module.u.abs().sum()


def spectral() -> nn.Module:
    layer = conv(4, 4)
    weight = layer.weight
    del layer._parameters["weight"]
    layer.register_parameter("weight_orig", weight)
    layer.register_buffer("u", torch.ones(4))
    layer.register_forward_pre_hook(SpectralNorm())
    return layer


# --- layers that are made in the forward ----------------------------------------------------------

MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "an upsampling to a size": lambda y: nn.Upsample(size=y.shape[2:], mode="nearest")(y[..., :3, :3]),
    "an upsampling to two sizes": lambda y: nn.Upsample(size=(y.size(2), y.size(3)))(y[..., :3, :3]),
    "a pool of the whole": lambda y: nn.AvgPool2d((y.shape[2], 1))(y),
    "an adaptive pool to halves": lambda y: nn.AdaptiveAvgPool2d((y.shape[2] // 2, y.shape[3] // 2))(y),
    "a pad to a multiple": lambda y: nn.ZeroPad2d((0, y.shape[3] % 4, 0, y.shape[2] % 4))(y),
    "an unflattening": lambda y: nn.Unflatten(2, (y.shape[2], y.shape[3]))(y.flatten(2)),
    "a slope of a size": lambda y: nn.LeakyReLU(1 / y.shape[2])(y),
    "a softmax over the last axis": lambda y: nn.Softmax(dim=y.dim() - 1)(y),
    "a fold to a size": lambda y: nn.Fold((y.shape[2], y.shape[3]), 1)(y.flatten(2)),
}


def made(make: Callable[[Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    return lambda s, x: second(s, make(first(s, x)))


READS: dict[str, Callable[[], Any]] = {"part": Reads}
WRITES: dict[str, Callable[[], Any]] = {"part": Writes}


@torch.fx.wrap
def wrapped(x: Tensor, factor: float) -> Tensor:
    return x * factor


class CallsWrapped(nn.Module):
    """An island that calls what torch.fx exchanges while it traces."""

    def forward(self, x: Tensor) -> Tensor:
        return wrapped(x, 2.0) if odd(x) else x


def with_default() -> nn.Module:
    """A hook that reaches its model by a default."""
    part = Hooked()
    part.body[1]._forward_hooks.clear()

    def hook(module: nn.Module, args: Any, output: Tensor, owner: Hooked = part) -> None:
        owner.features["a"] = output

    part.body[1].register_forward_hook(hook)
    return part


CASES = {
    "a function that torch.fx wraps": Case(lambda s, x: second(s, s.part(first(s, x))), parts={"part": CallsWrapped}),
    "features by a default": Case(lambda s, x: both(s, x) + s.h(first(s, x)), parts={"h": with_default}),
    **{name: Case(made(make)) for name, make in MADE.items()},
    "an attribute written": Case(writes_attribute, STAYS, parts=READS, reset=reset),
    "a dictionary written": Case(writes_dictionary, STAYS, parts=READS, reset=reset),
    "a dictionary written and reset": Case(writes_and_resets, STAYS, parts=READS, reset=reset),
    "a global written": Case(writes_global, STAYS, parts=READS, reset=reset),
    "a buffer written": Case(writes_buffer, STAYS, parts=READS, reset=reset),
    "the mode switched": Case(switches_mode, STAYS, parts={"part": InEval}),
    "an attribute read": Case(reads_attribute, STAYS, parts=WRITES, because="written by code that does not trace"),
    "a number read": Case(reads_number, STAYS, parts=WRITES, because="written by code that does not trace"),
    "a dictionary read": Case(reads_dictionary, STAYS, parts=WRITES, because="written by code that does not trace"),
    "a list read": Case(reads_list, STAYS, parts=WRITES, because="written by code that does not trace"),
    "a global read": Case(reads_global, STAYS, parts=WRITES, reset=reset),
    "what it wrote handed on": Case(hands_it_on, STAYS, parts={**WRITES, "identity": nn.Identity}),
    "None among the results": Case(asks_for_none, STAYS, parts={"part": MayReturnNone}, because="may return None"),
    "the history of a result": Case(asks_for_a_history, STAYS, parts={"part": MayReturnNone}),
    "a list given": Case(gives_a_list, parts={"part": WritesIntoList}),
    "a list given, and read": Case(gives_a_list_and_reads_it, STAYS, parts={"part": WritesIntoList}),
    "a layer altered": Case(alters_a_layer, parts={"up": nn.Upsample}),
    "features by a closure": Case(lambda s, x: both(s, x) + s.h(first(s, x)), parts={"h": Hooked}),
    "features by a method": Case(lambda s, x: both(s, x) + s.h(first(s, x)), parts={"h": lambda: Hooked("method")}),
    "features of an earlier run": Case(lambda s, x: both(s, x) + s.h(first(s, x)), parts={"h": Warm}),
    "a hook of a name that torch has": Case(lambda s, x: both(s, x) + s.c(first(s, x)), parts={"c": spectral}),
}
