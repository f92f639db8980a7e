"""Random blocks and networks: one generator, driven by `random.Random` or drawn by hypothesis.

A generator asks a `Choose` for every decision.  The first of the options is the plainest, so hypothesis
shrinks towards plain networks.  Blocks are distribute, transform, aggregate: split or clone, some chain
per branch, cat or sum, nested.  Most branches agree in size and can be merged; some are padded a little
too much or too little on the way, where a merge is exact in one order only, or never.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from hypothesis import strategies as st

from tests import specs
from tests.builders import JOINS, PRODUCTS, SUMS
from tests.specs import Node
from tests.tricks import TRICKS

T = TypeVar("T")
Pair = tuple[int, int]


class Choose(Protocol):
    """Source of decisions."""

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""

    def chance(self, percent: int) -> bool:
        """True in about `percent` of 100 cases."""


class SeededChoose:
    """Decisions from a plain random number generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def pick(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def chance(self, percent: int) -> bool:
        return self.rng.randrange(100) < percent


class DrawnChoose:
    """Decisions drawn by hypothesis."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def chance(self, percent: int) -> bool:
        return self.draw(st.integers(0, 99)) >= 100 - percent


# --- one convolution ------------------------------------------------------------------------------

KERNELS = (1, 3, 2, 5, 4, 7, 6)


def conv(choose: Choose, stride: Pair = (1, 1), grow: Pair = (0, 0), dense: bool = True) -> specs.Conv:
    """A convolution whose output size is (H + grow - 1) // stride + 1, padded symmetrically or not."""
    shape = choose.pick(("square", "wide", "tall", "any"))
    k = choose.pick(KERNELS)
    kernel = {"square": (k, k), "wide": (1, k), "tall": (k, 1), "any": (choose.pick(KERNELS), k)}[shape]
    dilation = (choose.pick((2, 3)),) * 2 if choose.chance(15) else (1, 1)
    pads = [_pads(choose, d * (n - 1) + g) for n, d, g in zip(kernel, dilation, grow)]
    before, after = (pads[0][0], pads[1][0]), (pads[0][1], pads[1][1])
    mode = choose.pick(("reflect", "replicate", "circular")) if choose.chance(6) else "zeros"
    return specs.Conv(
        kernel=kernel,
        before=before,
        after=after,
        stride=stride,
        dilation=dilation,
        groups=choose.pick((64, 1, 2, 3) if dense else (64,)),
        bias=choose.chance(50),
        mode=mode,
        same=grow == (0, 0) and choose.chance(5),
    )


def _pads(choose: Choose, total: int) -> Pair:
    half = total // 2
    if total % 2 == 0 and not choose.chance(10):
        return half, half
    before = choose.pick((half, total - half, 0, total, -1, total + 1) if total >= 0 else (half,))
    return before, total - before


# --- transforms: chains that keep the size up to the stride ---------------------------------------

SCALES = (
    "mul", "mul.left", "add", "sub", "rsub", "div", "exp", "sigmoid", "number", "neg", "affine",
)  # fmt: skip
INPLACE_SCALES = ("inplace.mul", "inplace.add")
PERMUTES = ("shuffle", "flip", "index", "select", "roll")
NOTHINGS = (
    "dropout", "contiguous", "to", "clone", "functional", "view", "detach", "slice", "index", "flatten",
)  # fmt: skip
NORMS = ("module", "module", "module", "functional", "frozen")


def pointwise(choose: Choose) -> Node:
    """An operation that leaves size and channel count alone and is affine."""
    kind = choose.pick(("norm", "norm", "scale", "conv1x1", "permute", "nothing"))
    match kind:
        case "norm":
            return specs.Norm(choose.pick(NORMS), affine=not choose.chance(10))
        case "scale":
            return specs.Scale(choose.pick(SCALES if not choose.chance(4) else INPLACE_SCALES))
        case "permute":
            return specs.Permute(choose.pick(PERMUTES))
        case "nothing":
            return specs.Nothing(choose.pick(NOTHINGS))
        case _:
            return specs.Conv(bias=choose.chance(50), groups=choose.pick((1, 2, 64)))


def transform(choose: Choose, stride: Pair, grow: Pair, depth: int) -> Node:
    """What one branch does: identity, a convolution, a chain, a pool, or a block inside."""
    free = stride == (1, 1) and grow == (0, 0)
    kinds = ["conv.norm", "conv", "serial", "strips", "pool"]
    kinds += ["identity", "identity", "pointwise", "mixed"] if free else []
    kinds += ["block"] if depth > 0 and free else []
    match choose.pick(kinds):
        case "identity":
            return specs.Identity()
        case "pointwise":
            return pointwise(choose)
        case "conv":
            return conv(choose, stride, grow)
        case "strips":
            return _strips(choose, stride, grow)
        case "serial":
            return _chain(choose, stride, grow)
        case "pool":
            return _pool(choose, stride, grow)
        case "mixed":
            steps = tuple(pointwise(choose) for _ in range(choose.pick((2, 3))))
            return specs.Serial(steps)
        case "block":
            return block(choose, depth - 1)
        case _:
            return specs.Serial((conv(choose, stride, grow), specs.Norm(choose.pick(NORMS))))


def _strips(choose: Choose, stride: Pair, grow: Pair) -> Node:
    """1xk then kx1, depthwise or dense, biased or not."""
    k, groups = choose.pick((3, 5, 2, 7)), choose.pick((64, 1, 2))
    (top, bottom), (left, right) = _pads(choose, k - 1 + grow[0]), _pads(choose, k - 1 + grow[1])
    wide = specs.Conv(
        kernel=(1, k),
        before=(0, left),
        after=(0, right),
        stride=(1, stride[1]),
        groups=groups,
        bias=choose.chance(60),
    )
    tall = specs.Conv(
        kernel=(k, 1),
        before=(top, 0),
        after=(bottom, 0),
        stride=(stride[0], 1),
        groups=groups,
        bias=choose.chance(60),
    )
    middle = (specs.Norm(),) if choose.chance(25) else ()
    pair = (wide, *middle, tall)
    return specs.Serial(pair if not choose.chance(30) or stride != (1, 1) else pair[::-1])


def _chain(choose: Choose, stride: Pair, grow: Pair) -> Node:
    """Two convolutions; what the first grows too much the second takes back, or the other way round."""
    surplus = choose.pick(((0, 0), (0, 0), (2, 2), (1, 0), (-2, -2), (0, -1)))
    rest = (grow[0] - surplus[0], grow[1] - surplus[1])
    first_strides = choose.chance(50)
    first = conv(choose, stride if first_strides else (1, 1), surplus)
    second = conv(choose, (1, 1) if first_strides else stride, rest)
    pointed = specs.Conv(bias=choose.chance(60), groups=choose.pick((1, 64)))
    match choose.pick(("point first", "point last", "both")):
        case "point first":
            steps: tuple[Node, ...] = (pointed, conv(choose, stride, grow))
        case "point last":
            steps = (conv(choose, stride, grow), pointed)
        case _:
            steps = (first, second)
    between = (pointwise(choose),) if choose.chance(40) else ()
    return specs.Serial((steps[0], *between, steps[1]))


def _pool(choose: Choose, stride: Pair, grow: Pair) -> Node:
    square = stride[0] == stride[1]
    if not square or grow != (0, 0):
        return conv(choose, stride, grow)
    kernel = choose.pick((3, 5))
    pool = specs.AvgPool(
        kernel,
        stride[0],
        kernel // 2,
        count_include_pad=not choose.chance(30),
        ceil_mode=choose.chance(10),
        divisor=7 if choose.chance(10) else 0,
    )
    if choose.chance(40):
        return specs.Serial((specs.Conv(groups=choose.pick((1, 64)), bias=choose.chance(50)), pool))
    return pool


# --- blocks ---------------------------------------------------------------------------------------


def aggregate(choose: Choose, percent_cat: int) -> str:
    """A spelling of cat or of a sum; in-place sums are rare, they make most other things inexact."""
    if choose.chance(percent_cat):
        return choose.pick(("cat", "cat", *JOINS))
    return choose.pick(SUMS[:-2]) if not choose.chance(10) else choose.pick(SUMS[-2:])


def block(choose: Choose, depth: int = 1) -> Node:
    """Distribute, transform, aggregate; then perhaps a batch norm, a scale or a 1x1."""
    stride, grow = (1, 1), (0, 0)
    if choose.chance(20):
        stride = choose.pick(((2, 2), (2, 1), (3, 3)))
    if choose.chance(15):
        grow = choose.pick(((-2, -2), (2, 2), (1, 1), (0, -1)))
    count = choose.pick((2, 3, 4))
    loose = choose.chance(8)

    def one(i: int) -> Node:
        extra = (grow[0] + 1, grow[1] + 1) if loose and i == 0 else grow
        return transform(choose, stride, extra, depth)

    if choose.chance(40):
        weights = choose.pick(((1, 1, 1, 1), (3, 1, 1, 1), (1, 2, 1, 3)))
        parts = tuple(specs.Part(one(i), weights[i]) for i in range(count))
        body: Node = specs.Split(
            parts,
            choose.pick(("split", "chunk", "slice", "narrow", "tensor_split")),
            aggregate(choose, 75),
            choose.pick(("same", "reversed", "dropped", "doubled")) if choose.chance(30) else "same",
        )
    else:
        body = specs.Parallel(tuple(one(i) for i in range(count)), aggregate(choose, 25))
    tail = tuple(pointwise(choose) for _ in range(choose.pick((0, 1, 2))))
    return specs.Serial((body, *tail)) if tail else body


def framed(choose: Choose, depth: int = 1) -> Node:
    """A block, perhaps with a head convolution before, an activation after, or a residual around."""
    body = block(choose, depth)
    if choose.chance(15):
        body = specs.Serial((pointwise(choose), body))
    if choose.chance(15):
        body = specs.Parallel((specs.Identity(), body), choose.pick(SUMS))
    if choose.chance(15):
        body = specs.Serial((body, specs.Act(choose.pick(ACTIVATIONS))))
    return body


# --- networks -------------------------------------------------------------------------------------

TRICK_NAMES = tuple(TRICKS)
ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "hardswish", "relu.inplace")


def step(choose: Choose) -> Node:
    """One step of a network: mostly blocks and activations, and everything that is in the way."""
    match choose.pick(("block", "block", "act", "residual", "unit", "shared", "other", "star", "trick", "trick")):
        case "trick":
            trick: Node = specs.Trick(choose.pick(TRICK_NAMES))
            if choose.chance(20):
                trick = specs.Parallel((specs.Identity(), trick), choose.pick(SUMS))
            return trick if not choose.chance(10) else specs.Twice(trick)
        case "act":
            return specs.Act(choose.pick(ACTIVATIONS))
        case "residual":
            inner = specs.Serial((block(choose, 0), specs.Act(choose.pick(ACTIVATIONS)), pointwise(choose)))
            return specs.Parallel((specs.Identity(), inner), choose.pick(SUMS))
        case "unit":
            channels = choose.pick((0, 3, 6, 8))
            grown = conv(choose, choose.pick(((1, 1), (1, 1), (2, 2))))
            widened = specs.Conv(channels, grown.kernel, grown.before, grown.after, grown.stride, grown.dilation)
            return specs.Serial((widened, specs.Norm("act" if choose.chance(20) else "module")))
        case "shared":
            shared = specs.Shared(choose.pick((0, 1)), choose.chance(30), not choose.chance(20))
            return shared if not choose.chance(20) else specs.Twice(shared)
        case "star":
            a, b = (transform(choose, (1, 1), (0, 0), 0) for _ in range(2))
            return specs.Parallel((a, b), choose.pick(PRODUCTS))
        case "other":
            return _other(choose)
        case _:
            return block(choose, 1)


def _other(choose: Choose) -> Node:
    return choose.pick(  # type: ignore[return-value]
        (
            specs.MaxPool(),
            specs.Gate("squeeze"),
            specs.Gate("dynamic"),
            specs.GroupNorm("layer"),
            specs.GroupNorm("group"),
            specs.Norm("stateless"),
            specs.Tokens(bias=True),
            specs.Tokens(norm_last=True),
            specs.Tokens(6, norm_first=True, norm_last=True),
            specs.Generated("sum"),
            specs.Generated("parametrized"),
            specs.Generated("weight_norm"),
            specs.Generated("weight_norm.new"),
            specs.ConvTranspose(kernel=2, stride=2, bias=True),
            specs.ConvTranspose(kernel=3, stride=1, padding=1, groups=64),
            specs.Serial((specs.ConvTranspose(kernel=4, stride=2, padding=1, groups=2), specs.Norm(), specs.Conv())),
            specs.Serial((specs.Norm(), specs.ConvTranspose(kernel=3, stride=1, bias=True), specs.Scale("affine"))),
            specs.Serial((specs.Resize("nearest"), specs.Norm(), specs.Conv(bias=True))),
            specs.Serial((specs.Permute("shuffle"), specs.Act("relu"), specs.Permute("flip"), specs.Conv())),
            specs.Resize("nearest"),
            specs.Resize("unshuffle"),
            specs.Resize("shuffle"),
            specs.Resize("slice"),
            specs.Pad((1, 1), (1, 1), 0.0),
            specs.Pad((1, 0), (0, 1), 0.7),
            specs.AvgPool(2, 2),
            specs.Serial((specs.Pad(spelling="assign"), specs.Conv(kernel=(3, 3), bias=True))),
        )
    )


def network(choose: Choose, most: int = 6) -> specs.Network:
    """A whole network of one to `most` steps, perhaps with a head and with more than one result."""
    steps = tuple(step(choose) for _ in range(choose.pick(range(1, most + 1))))
    head = None
    if choose.chance(40):
        head = specs.Head(
            heads=choose.pick((1, 2, 3)),
            norm=choose.chance(60),
            pool=choose.pick(("mean", "adaptive", "max")),
            average=choose.pick(("half", "weighted", "stack.mean", "stack.sum", "add")),
        )
    taps = (choose.pick(range(len(steps))),) if choose.chance(20) else ()
    return specs.Network(
        choose.pick((4, 3, 6, 8, 1)), steps, taps, head, choose.pick(("tuple", "dict")) if taps else "tuple"
    )


# --- both drivers ---------------------------------------------------------------------------------


def random_block(seed: int, depth: int = 1) -> Node:
    """The block of this seed."""
    return framed(SeededChoose(random.Random(seed)), depth)


def random_network(seed: int, most: int = 6) -> specs.Network:
    """The network of this seed."""
    return network(SeededChoose(random.Random(seed)), most)


@st.composite
def blocks(draw: st.DrawFn, depth: int = 1) -> Node:
    """Strategy for `framed` blocks."""
    return framed(DrawnChoose(draw), depth)


@st.composite
def networks(draw: st.DrawFn, most: int = 5) -> specs.Network:
    """Strategy for whole networks."""
    return network(DrawnChoose(draw), most)
