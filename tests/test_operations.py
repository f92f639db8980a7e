"""The table of operations, against what torch computes; and that nobody keeps a table of his own.

    python -m tests.test_operations     # write tests/operations.txt anew

`tests/operations.txt` lists what is known of each operation, and what of torch is not known at all.
"""

from __future__ import annotations

import ast
import functools
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repfx
from passes.carry_permutations import CarryPermutations
from repfx.decline import Reason
from repfx.graph import OPERATIONS, Keeps, OpInfo, OpKind, Shapes, Shares, functions_of, operation_of
from tests.compiling import Net, assert_declined, compiled, conv, counted, left, only

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "operations.txt"
ALONE = only(CarryPermutations())
ORDER = torch.tensor([2, 0, 3, 1])
ACTIVATIONS = {
    name: found
    for name, found in vars(nn.modules.activation).items()
    if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == nn.modules.activation.__name__
}
TELL_CHANNELS_APART = {"GLU", "MultiheadAttention", "PReLU", "RReLU", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
MADE = {"Threshold": (0.1, 0.2), "Softmax": (1,), "Softmin": (1,), "LogSoftmax": (1,), "PReLU": (8,)}


# --- what is known, written down ------------------------------------------------------------------


def facts(info: OpInfo) -> str:
    """What is known of one operation, in a line."""
    known = [info.kind.name.lower()]
    known += [f"keeps {info.keeps.name.lower()}"] if info.keeps else []
    known += [word for word in ("elementwise", "channelwise", "moves_axes", "jumps") if getattr(info, word)]
    known += [f"shares {info.shares.name.lower()}"] if info.shares is not Shares.NOTHING else []
    known += [f"draws {info.draws.name.lower()}"] if info.draws.name != "NEVER" else []
    known += ["shape"] if info.shape.__name__ != "unknown" else []
    known += [] if info.returns is Tensor else [f"returns {getattr(info.returns, '__name__', 'it depends')}"]
    return f"{'='.join(info.names)}: {', '.join(known)}"


def spaces() -> Iterator[tuple[str, dict[str, Any]]]:
    """Where torch keeps its operations, and what is there by name: what a traced tensor can be given to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = torch.overrides.get_overridable_functions()
    for title, space in (
        ("functions of torch", torch),
        ("functions of torch.nn.functional", F),
        ("methods of Tensor", Tensor),
    ):
        named = {getattr(function, "__name__", ""): function for function in listed[space]}
        yield title, {name: found for name, found in named.items() if not name.startswith("_")}
    modules = {name: found for name, found in vars(nn).items() if isinstance(found, type)}
    yield "modules of torch.nn", {name: found for name, found in modules.items() if not name.startswith("Lazy")}


def is_known(title: str, name: str, found: Any) -> bool:
    """Whether the table has a row for what torch calls so."""
    if title.startswith("modules"):
        return any(found in info.modules for info in OPERATIONS)
    if title.startswith("methods"):
        return OPERATIONS.named(name) is not None
    return OPERATIONS.of_function(found) is not None


def summary() -> str:
    """The table, and what of torch is not in it."""
    text = ["What is known of each operation.\n", *sorted(map(facts, OPERATIONS))]
    for title, found in spaces():
        strangers = [name for name, what in sorted(found.items()) if not is_known(title, name, what)]
        known = len(found) - len(strangers)
        text.append(f"\n{title}: {known} of {len(found)} are known. These are not:\n")
        text += textwrap.wrap(" ".join(strangers), 118)
    return "\n".join(text) + "\n"


def test_the_table_is_what_is_written_down() -> None:
    """A changed fact shows in the golden file, and so does an operation that torch has and the table does not."""
    known, unknown = (part.split("\nfunctions of torch:")[0] for part in (GOLDEN.read_text(), summary()))
    assert known == unknown, "write it anew: python -m tests.test_operations"


# --- facts, against what torch computes -----------------------------------------------------------


def probe(*sizes: int, seed: int = 0) -> Tensor:
    """Numbers between 0.1 and 0.9, which every function takes."""
    return torch.rand(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def attempted(function: Callable[..., Any], *args: Any) -> Any:
    """What comes out, or None where it cannot be called so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args)
        except Exception:  # not to be called with this
            return None


def called(info: OpInfo) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every spelling of an operation that computes out of place."""
    for function in functions_of(info):
        if not getattr(function, "__name__", "").endswith("_"):
            yield getattr(function, "__name__", str(function)), function
    for name in info.names:
        if callable(getattr(Tensor, name, None)):
            yield f"Tensor.{name}", getattr(Tensor, name)


@pytest.mark.parametrize("info", [info for info in OPERATIONS if info.elementwise], ids=lambda info: info.name)
def test_an_elementwise_operation_does_the_same_to_every_number(info: OpInfo) -> None:
    """f(P x) = P f(x) for any order P of all numbers of x, however many operands there are."""
    x, y, z = (probe(2, 4, 3, 5, seed=seed) for seed in range(3))
    whole = tuple((t * 10).long() for t in (x, y, z))
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))
    tried = 0
    for spelled, function in called(info):
        for operands in ((x,), (x, y), (x, y, z), whole[:1], whole[:2], (x > 0.5, x, y), (x, 0.3), (x, 0.2, 0.7)):
            out = attempted(function, *(t.clone() if isinstance(t, Tensor) else t for t in operands))
            if not isinstance(out, Tensor) or out.shape != x.shape:
                continue
            mixed = [t.flatten()[order].reshape(x.shape) if isinstance(t, Tensor) else t for t in operands]
            assert close(function(*mixed), out.flatten()[order].reshape(x.shape)), spelled
            tried += 1
    assert tried or info.name in ("cuda", "pin_memory", "identity", "alias", "type")  # not to be called like this here


def permutes(function: Callable[..., Any], *more: Any) -> bool:
    """Whether a function does the same to every number of a tensor, by trying."""
    x = probe(2, 4, 3, 5)
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))
    outs = [attempted(function, x.clone(), *more) for _ in range(2)]
    moved = attempted(function, x.flatten()[order].reshape(x.shape), *more)
    for out in (*outs, moved):
        if not isinstance(out, Tensor) or out.shape != x.shape or out.is_complex() or out.layout != x.layout:
            return False
    here, again, there = outs[0], outs[1], outs[0].flatten()[order].reshape(x.shape)
    return close(here, again) and close(moved, there) and not close(here, there)


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the last bits: a number at the end of a row is computed without vector instructions."""
    slack = 1e-5 if torch.float32 in (a.dtype, b.dtype) else 1e-12
    return bool(torch.isclose(a.double(), b.double(), rtol=slack, atol=slack, equal_nan=True).all())


NOT_MEANT = {  # what does the same to every number and is not called so, with the reason
    "dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout",
    "rrelu", "prelu",  # only in one mode, or with one slope
    "view", "reshape", "flatten", "squeeze", "squeeze_copy", "slice_copy", "atleast_1d", "atleast_2d", "atleast_3d",
    "to_dense", "real", "dequantize", "alias_copy", "detach_copy", "sym_sum",  # nothing, or of one operand
}  # fmt: skip


def test_whatever_does_the_same_to_every_number_is_called_elementwise() -> None:
    """No function of torch's, and no method, is elementwise without the table knowing."""
    missed = set()
    for title, found in spaces():
        if title.startswith("modules"):
            continue
        for name, function in found.items():
            if name.endswith("_"):
                continue
            info = OPERATIONS.named(name) if title.startswith("methods") else OPERATIONS.of_function(function)
            if (info is None or not info.elementwise) and (permutes(function) or permutes(function, 0.3)):
                missed.add(name)
    assert missed - NOT_MEANT == set()


def share(out: Any, x: Tensor) -> bool:
    """Whether a result, or one of several, is of the memory of x."""
    if isinstance(out, tuple | list):
        return any(share(part, x) for part in out)
    strided = isinstance(out, Tensor) and out.layout is torch.strided and out.device == x.device
    return strided and out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def _with(function: Callable[..., Any], more: tuple[Any, ...], x: Tensor) -> Any:
    return function(x, *more)


def returns_its_argument(run: Callable[[Tensor], Any]) -> bool:
    """Whether what comes back is memory of what went in, unwritten."""
    for x in (probe(2, 4, 3, 5), probe(3, 4), torch.ones(2, 4, 3, 5).long()):
        if share(attempted(run, x), x) and x._version == 0:
            return True
    return False


def test_whatever_may_share_memory_is_said_to() -> None:
    """Every function, method and module that returns memory of its first argument, in some call that is tried."""
    calls = ((), (1,), (1, 2), ((2, 3),), (0, 0, 1), (probe(2, 4, 3, 5),), ([1, 1, 1, 1],))
    unsaid = set()
    for title, found in spaces():
        for name, function in found.items():
            if name.endswith("_"):
                continue  # in place: it returns what it was given, and is known to overwrite it
            runs: list[Callable[[Tensor], Any]] = [functools.partial(_with, function, more) for more in calls]
            if title.startswith("modules"):
                built = [attempted(function, *args) for args in ((), (1,), (1, 1), (4, 4, 1), (4, 1), (1, 4))]
                runs = [module.eval().double() for module in built if isinstance(module, nn.Module)]
            info = known_of(title, name, function)
            said = info is not None and info.shares is not Shares.NOTHING
            if not said and any(map(returns_its_argument, runs)):
                unsaid.add(f"{title}: {name}")
    assert unsaid - SHARE_OTHERWISE == set()


SHARE_OTHERWISE = {
    "modules of torch.nn: Sequential", "modules of torch.nn: Container",  # unknown: may return any argument
}  # fmt: skip


def known_of(title: str, name: str, found: Any) -> OpInfo | None:
    """What a reader of memory sees of a function, method or module."""
    if title.startswith("modules"):
        return next((info for info in OPERATIONS if found in info.modules), OpInfo((name,), shares=Shares.ALL))
    return OPERATIONS.named(name)


def shape_told(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | None, ...] | None:
    """What the rule of an operation says of a call with these tensors, whose shapes are known."""
    graph = fx.Graph()
    root = function if isinstance(function, nn.Module) else nn.Module()
    holder = nn.Module()
    holder.m = root
    shapes = Shapes(holder, lambda _: None)
    nodes: dict[int, fx.Node] = {}

    def node_of(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in nodes:
                nodes[id(value)] = graph.placeholder(f"x{len(nodes)}")
                shapes.set(nodes[id(value)], tuple(value.shape))
            return nodes[id(value)]
        return type(value)(map(node_of, value)) if isinstance(value, tuple | list) else value

    given, named = tuple(map(node_of, args)), {name: node_of(value) for name, value in kwargs.items()}
    if isinstance(function, nn.Module):
        node = graph.call_module("m", given, named)
    elif isinstance(function, str):
        node = graph.call_method(function, given, named)
    else:
        node = graph.call_function(function, given, named)
    return shapes.of(node)


OTHERWISE_MADE = ("MultiheadAttention", "PReLU", "GLU")
X, Y, V = probe(2, 4, 6, 8), probe(4, 1, 8), probe(3, 4)
CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    *((name, (X, *args), {}) for name, *args in (
        ("view", 2, 4, -1), ("view", (8, 48)), ("reshape", -1, 8), ("permute", 0, 2, 3, 1), ("permute", (3, 2, 1, 0)),
        ("transpose", 1, -1), ("swapaxes", 0, 1), ("flatten",), ("flatten", 1), ("flatten", 2, 3), ("squeeze",),
        ("squeeze", 1), ("unsqueeze", 1), ("unsqueeze", -1), ("select", 1, 0), ("narrow", 2, 1, 3), ("mean", 1),
        ("mean", (2, 3), True), ("sum",), ("sum", -1), ("amax", (1, 2)), ("clamp", 0.1), ("clamp", Y), ("pow", Y),
        ("add", Y), ("mul", 2), ("softmax", 1), ("unflatten", 1, (2, 2)), ("flip", (1,)), ("roll", 1, 1), ("float",),
        ("contiguous",), ("type_as", Y), ("lerp", Y, 0.5), ("maximum", Y), ("cumsum", 1), ("matmul", probe(8, 3)),
    )),
    *((function, (X, *args), {}) for function, *args in (
        (F.pad, (1, 1)), (F.pad, (1, 1, 0, 2)), (F.pad, (0, 0, 0, 0, 1, 1)), (F.pad, (1, 0, 0, 0, 0, 0, 2, 2)),
        (F.avg_pool2d, 2), (F.max_pool2d, 2), (F.adaptive_avg_pool2d, 3), (F.adaptive_avg_pool2d, (None, 2)),
        (F.interpolate, (3, 3)), (F.conv2d, probe(3, 4, 2, 2)), (F.conv_transpose2d, probe(4, 3, 2, 2)),
        (F.linear, probe(5, 8)), (F.pixel_shuffle, 2), (F.pixel_unshuffle, 2), (torch.add, Y), (F.relu,),
        (F.softmax, 1), (F.prelu, probe(4)), (F.glu, 1), (torch.stack,), (torch.clamp, Y), (torch.max, Y),
    )),
    (torch.cat, ([X, X], 1), {}), (torch.cat, ([X, X],), {"dim": -1}), (torch.stack, ([X, X], 2), {}),
    (torch.hstack, ([X, X],), {}), (torch.hstack, ([V[0], V[0]],), {}),
    (torch.einsum, ("bchw,cd->bdhw", X, probe(4, 7)), {}),
    (torch.addmm, (probe(3, 5), V, probe(4, 5)), {}), (torch.bmm, (probe(2, 3, 4), probe(2, 4, 5)), {}),
    (torch.permute, (X,), {"dims": (1, 0, 2, 3)}), (torch.add, (V,), {"other": probe(2, 3, 4)}),
    (torch.where, (X > 0.5, X, Y), {}), (F.relu, (), {"input": X}), (F.pad, (V, (1, 1)), {}),
    (F.max_pool2d, (probe(4, 6, 8), 2), {}),
    *((module, (X,), {}) for module in (
        nn.Conv2d(4, 3, 3, 2, 1), nn.ConvTranspose2d(4, 3, 2), nn.Linear(8, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4),
        nn.LayerNorm(8), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d(1), nn.ZeroPad2d(1),
        nn.AdaptiveMaxPool2d((None, 3)), nn.ReflectionPad2d((1, 0, 1, 2)), nn.ConstantPad1d(1, 0.0),
        nn.Upsample(scale_factor=2), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Flatten(), nn.Flatten(0, 1),
        nn.Identity(), nn.Dropout(),
        nn.InstanceNorm2d(4), nn.Softmax(1), nn.GLU(1), nn.PReLU(4), nn.LocalResponseNorm(2), nn.ChannelShuffle(2),
        *(made(*MADE.get(name, ())) for name, made in ACTIVATIONS.items() if name not in OTHERWISE_MADE),
    )),
    (nn.MaxPool2d(2), (probe(4, 6, 8),), {}), (nn.ConstantPad2d(1, 0.0), (V,), {}),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(CALLS)))
def test_a_shape_rule_never_says_what_is_not_so(index: int) -> None:
    function, args, kwargs = CALLS[index]
    run = getattr(Tensor, function) if isinstance(function, str) else function
    if isinstance(run, nn.Module):
        run = run.double().eval()
    out, told = attempted(lambda: run(*args, **kwargs)), shape_told(function, args, kwargs)
    if out is None:
        assert told is None or function is torch.stack
        return
    if told is not None:
        assert len(told) == out.dim()
        assert all(said in (None, size) for said, size in zip(told, out.shape)), (told, out.shape)
    info = operation_of_call(function)
    first = args[0] if args else kwargs["input"]
    if (
        info is not None
        and isinstance(first, Tensor)
        and len([a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]) == 1
    ):
        kept = {Keeps.NOTHING: 0, Keeps.BATCH: 1, Keeps.CHANNELS: 2, Keeps.SHAPE: out.dim()}[info.keeps]
        if info.axes in (None, first.dim() - 2):
            assert info.keeps is Keeps.NOTHING or out.dim() == first.dim()
            assert out.shape[:kept] == first.shape[:kept]


def operation_of_call(function: Any) -> OpInfo | None:
    if isinstance(function, nn.Module):
        return OPERATIONS.of_module(function)
    return OPERATIONS.named(function) if isinstance(function, str) else OPERATIONS.of_function(function)


# --- who reads it ---------------------------------------------------------------------------------


def branches(act: Callable[[Tensor], Tensor]) -> Net:
    """conv, an activation, a chunk, a branch for each half, a cat."""

    def run(s: Net, x: Tensor) -> Tensor:
        a, b = act(s.c(x)).chunk(2, 1)
        return torch.cat([s.p(a), s.q(b)], 1)

    net = Net(run, c=conv(3, 8), p=conv(4, 4), q=conv(4, 4))
    net.act = act if isinstance(act, nn.Module) else None  # type: ignore[assignment]
    return net


def carried(act: Callable[[Tensor], Tensor]) -> Net:
    """A channel order, an activation, a convolution that could take the order up."""
    net = Net(lambda s, x: s.b(act(torch.index_select(torch.relu(x), 1, s.i))), b=conv(4, 3, 1), i=ORDER)
    net.act = act if isinstance(act, nn.Module) else None  # type: ignore[assignment]
    return net


ALIKE: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: made(*MADE.get(name, ())) for name, made in ACTIVATIONS.items() if name not in TELL_CHANNELS_APART},
    "one slope": nn.PReLU(),
    "torch.selu": torch.selu,
    "F.logsigmoid": F.logsigmoid,
    "F.threshold": lambda x: F.threshold(x, 0.1, 0.3),
    "Tensor.sin": lambda x: x.sin(),
    "Tensor.clamp_min": lambda x: x.clamp_min(0.1),
    "in place": lambda x: F.elu(x, inplace=True),
    "torch.special.expit": torch.special.expit,
    "a power": lambda x: (x.abs() + 1) ** 0.5,
    "a cast": lambda x: x.double(),
    "a comparison": lambda x: torch.where(x > 0.5, x, 2 * x) if False else (x > 0.5).double(),
}


@pytest.mark.parametrize("name", ALIKE)
def test_every_activation_does_what_relu_does(name: str) -> None:
    """Where only that it acts number by number matters: a cat of branches goes, a channel order passes."""
    act = ALIKE[name]
    _, fused = compiled(branches(act), 3, ((8, 8), (3, 5)))
    found = counted(left(fused, 3))
    assert {kind: found.get(kind, 0) for kind in ("convolutions", "concats", "splits")} == {
        "convolutions": 2,
        "concats": 0,
        "splits": 0,
    }
    _, fused = compiled(carried(act), 4, ((8, 8), (3, 5)), example=(8, 8), **ALONE)
    assert left(fused, 4).permutations == 0


def maxout(x: Tensor) -> Tensor:
    """The larger of each two channels."""
    return x.view(x.shape[0], 2, 2, x.shape[2], x.shape[3]).amax(2).repeat(1, 2, 1, 1)


APART: dict[str, Callable[[Tensor], Tensor]] = {
    "a slope per channel": nn.PReLU(4),
    "F.prelu": lambda x: F.prelu(x, torch.linspace(0.1, 0.4, 4, dtype=torch.float64)),
    "softmax over channels": nn.Softmax(1),
    "F.softmax": lambda x: F.softmax(x, 1),
    "F.softmin": lambda x: F.softmin(x, 1),
    "log_softmax": lambda x: x.log_softmax(1),
    "Softmax2d": nn.Softmax2d(),
    "a gate": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "GLU": nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.GLU(1)),
    "maxout": maxout,
    "a bound per channel": lambda x: torch.clamp(x, torch.linspace(0, 1, 4, dtype=torch.float64).view(1, 4, 1, 1)),
    "a power per channel": lambda x: (x.abs() + 1).pow(torch.linspace(1, 2, 4, dtype=torch.float64).view(1, 4, 1, 1)),
    "a running sum": lambda x: x.cumsum(1),
    "a norm over channels": lambda x: F.normalize(x, dim=1),
    "a flip": lambda x: x.flip(1),
    "a local norm": nn.LocalResponseNorm(3),
    "an own forward": type("Own", (nn.SELU,), {"forward": lambda self, x: F.selu(x) + x.cumsum(1)})(),
}


@pytest.mark.parametrize("name", APART)
def test_near_misses_tell_channels_apart(name: str) -> None:
    """One step away from an activation: an order that passed would be seen in float64."""
    net = carried(APART[name])
    for options in (ALONE, {}):
        _, fused = compiled(net, 4, ((8, 8), (3, 5)), example=(8, 8), **options)
        assert not repfx.report(fused).islands, "nothing was lifted, nothing was tried"
    info = operation_of_call(APART[name]) if isinstance(APART[name], nn.Module) else None
    assert info is None or not info.elementwise


@pytest.mark.parametrize("name", ["a slope per channel", "softmax over channels", "Softmax2d", "a local norm"])
def test_near_misses_are_declined_by_name(name: str) -> None:
    _, fused = compiled(carried(APART[name]), 4, ((8, 8), (3, 5)), example=(8, 8), **ALONE)
    assert_declined(fused, Reason.NOT_EXACT, "index_select", "its channel order cannot pass", "carry_permutations")
    assert left(fused, 4).permutations == 1


def test_a_pooling_of_more_axes_than_the_value_has_mixes_channels() -> None:
    """MaxPool2d of (B, C, L) takes it for one image of B channels, and pools C."""

    def run(s: Net, x: Tensor) -> Tensor:
        return s.b(s.p(torch.index_select(torch.relu(s.a(x)), 1, s.i)))  # type: ignore[arg-type]

    for pool, kept in ((nn.MaxPool2d((3, 1), 1, (1, 0)), 1), (nn.MaxPool1d(3, 1, 1), 0)):
        net = Net(run, a=nn.Conv1d(4, 4, 1), b=nn.Conv1d(4, 3, 1), i=ORDER, p=pool)
        _, fused = compiled(net, 4, ((8,), (5,)), example=(8,), **ALONE)
        assert left(fused, 4, (8,)).permutations == kept


def test_a_pool_that_returns_its_indices_is_unknown() -> None:
    assert OPERATIONS.of_module(nn.MaxPool2d(2, return_indices=True)) is None
    assert OPERATIONS.of_module(nn.MaxPool2d(2)) is not None
    assert OPERATIONS.of_function(torch.adaptive_max_pool1d) is None
    assert OPERATIONS.of_function(F.adaptive_max_pool1d) is not None


def test_a_class_with_a_forward_of_its_own_is_unknown() -> None:
    own = type("Own", (nn.ReLU,), {"forward": lambda self, x: x.cumsum(1)})()
    assert OPERATIONS.of_module(own) is None
    assert OPERATIONS.like(own) is not None  # counted and drawn as what it is like
    assert OPERATIONS.of_module(type("Plain", (nn.ReLU,), {})()) is not None


def test_padding_channels_is_no_padding_of_space() -> None:
    """The argument of a convolution behind a pad of channels has other channels than the convolution reads."""
    net = Net(
        lambda s, x: s.c(F.pad(x, (0, 0, 0, 0, 1, 1))) + s.d(F.pad(x, (0, 0, 0, 0, 2, 0))), c=conv(5, 4), d=conv(5, 4)
    )
    compiled(net, 3, ((8, 8),))


def test_what_is_broadcast_has_not_the_shape_of_its_argument() -> None:
    """One channel spread over four by a constant: the convolution behind does not tell how many the argument has."""
    net = Net(lambda s, x: s.c(torch.maximum(x * s.w, s.w)), c=conv(4, 3), w=torch.linspace(1, 2, 4).view(1, 4, 1, 1))
    compiled(net, 1, ((8, 8),))
    graph = fx.symbolic_trace(net).graph
    constants = {node: net.w.shape for node in graph.nodes if node.op == "get_attr"}
    assert Shapes(net, constants.get).of(next(iter(graph.nodes))) is None  # type: ignore[arg-type]


def test_every_kind_is_counted_drawn_and_named_or_meant_not_to_be() -> None:
    """One taxonomy: no kind is left out by accident where its neighbour has a word."""
    from repfx.drawing import pictures
    from repfx.verification import plan_counts

    uncounted = {k.name for k in OpKind} - {k.name for k in plan_counts._COUNTED if isinstance(k, OpKind)}
    assert uncounted == {
        "PRODUCT", "NORM", "ACTIVATION", "PADDING", "POOLING", "RESIZING", "REDUCTION", "ITEM", "VIEW", "COPY", "OTHER",
    }  # fmt: skip
    undrawn = {kind.name for kind in OpKind} - {kind.name for kind in pictures.FILLS}
    assert undrawn == {
        "PRODUCT", "MULTIPLY", "PADDING", "POOLING", "RESIZING", "REDUCTION", "ITEM", "VIEW", "COPY", "OTHER",
    }  # fmt: skip


# --- nobody else keeps a table --------------------------------------------------------------------

OWN_TABLES = {  # a module-level list of operations outside the table, and why it is no knowledge of its own
    "repfx/attention/": "which spellings a recogniser reads, with the positions of their arguments",
    "repfx/lifting/": "rules: what an operation computes, not what it is",
    "repfx/capture/exported_program.py": "translates ATen's operations into torch's",
    "repfx/capture/keywords.py": "which calls torch accepts NumPy's keywords of",
    "repfx/capture/spelling.py": "what is written out, and what takes a factor up",
    "repfx/capture/in_place.py _OVERWRITING": "how Python spells in-place operators",
    "repfx/layers/": "the compiler's own modules",
    "repfx/state/copying.py": "modules without state of their own, to copy quickly",
    "repfx/tracing/proxy_queries.py ATTRIBUTES": "attributes, which are no operations",
    "repfx/tracing/proxy_queries.py _ONE_TENSOR": "files of torch.nn",
    "repfx/drawing/boxes.py": "in which colour boxes are filled",
    "repfx/drawing/pictures.py": "how the kinds are labelled and filled",
    "repfx/tracing/proxy_queries.py _SIZE_SUMS": "arithmetic on sizes, which are no tensors",
    "repfx/tracing/leaves.py": "whose forward is read as torch's own, and what moves state while it trains",
    "repfx/tracing/traced_values.py": "attributes and sizes, which are no operations",
    "repfx/tracing/lent.py": "what makes tensors of sizes",
    "repfx/verification/inputs.py": "what an input's first reader is looked for behind",
    "repfx/verification/op_counts.py": "what a linear is, and what is free, below the dispatcher",
    "repfx/graph/operations.py": "the table's index",
    "repfx/graph/splits.py": "how splits are told their sizes",
    "repfx/graph/dead_code.py _DRAWING": "words in the names of strangers",
    "repfx/graph/constants.py _CASTS": "which casts take a dtype",
}


def tables() -> Iterator[str]:
    """Every module-level tuple, list, set or dict of three or more operations: `path name`."""
    for path in sorted([*(ROOT / "repfx").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]):
        for statement in ast.parse(path.read_text()).body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
                continue
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if (
                isinstance(target, ast.Name)
                and target.id != "__all__"
                and sum(map(is_operation, ast.walk(statement.value))) >= 3
            ):
                yield f"{path.relative_to(ROOT).as_posix()} {target.id}"


def is_operation(node: ast.AST) -> bool:
    """Whether an expression names an operation: "chunk", torch.add, F.relu, nn.Conv2d."""
    match node:
        case ast.Constant(value=str(name)):
            return OPERATIONS.named(name) is not None
        case ast.Attribute(value=ast.Name(id="torch" | "F" | "operator"), attr=name):
            return OPERATIONS.named(name) is not None
        case ast.Attribute(value=ast.Name(id="nn"), attr=name):
            return any(of.__name__ == name for info in OPERATIONS for of in info.modules)
        case _:
            return False


def test_what_an_operation_is_stands_in_one_place() -> None:
    strangers = [table for table in tables() if not any(table.startswith(known) for known in OWN_TABLES)]
    assert strangers == [], "ask `operation_of` instead, or say here why this is no knowledge of an operation"


def test_every_exception_is_still_one() -> None:
    found = list(tables())
    assert [known for known in OWN_TABLES if not any(table.startswith(known) for table in found)] == []


def test_no_operation_is_in_the_table_twice_or_reachable_as_two() -> None:
    seen: dict[int, str] = {}
    for info in OPERATIONS:
        for function in functions_of(info):
            assert seen.setdefault(id(function), info.name) == info.name, function
        for of in info.modules:
            assert seen.setdefault(id(of), info.name) == info.name, of


def test_a_compiled_network_is_recognised_by_the_same_table() -> None:
    """What the compiler emits has rows, too: a second compilation finds what the first left."""
    _, fused = compiled(branches(nn.SELU()), 3, ((8, 8),))
    again = repfx.reparameterize(fused, verify=False)
    assert counted(left(again, 3)) == counted(left(fused, 3))
    assert all(operation_of(node, fused) for node in fused.graph.nodes if node.op == "call_module")


if __name__ == "__main__":
    GOLDEN.write_text(summary())
