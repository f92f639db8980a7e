"""What the fuzzer found, shrunk: each case stays, under the name of what was wrong."""

from __future__ import annotations

import pytest

from tests.check import Case, examine
from tests.specs import (
    AvgPool,
    Conv,
    ConvTranspose,
    Head,
    Identity,
    Network,
    Pad,
    Parallel,
    Part,
    Resize,
    Scale,
    Serial,
    Shared,
    Split,
    Trick,
)

FINDS = {
    # a model without parameters was given weights of torch's default dtype
    "pool plus identity, no parameters": Case(
        Network(steps=(Parallel(branches=(AvgPool(kernel=5, padding=2), Identity())),)), 507, example=(9, 8)
    ),
    # carry_permutations: a reader was asked before all orders around it were known
    "two orders meet in one sum": Case(
        Network(
            steps=(
                Conv(),
                Parallel(
                    branches=(
                        Identity(),
                        Split(
                            parts=(
                                Part(node=Conv(kernel=(4, 6), before=(-1, -1), after=(4, 6), groups=64)),
                                Part(node=Conv(groups=64)),
                            ),
                            order="reversed",
                        ),
                    )
                ),
            ),
            head=Head(),
        ),
        37,
    ),
    # a pad by a value counted as a convolution, so a scale behind it became one
    "pad by a value, scale": Case(Network(1, (ConvTranspose(), Pad(value=0.7), Scale())), 809, "macs"),
    "pad module by a value behind a scale": Case(
        Network(steps=(Trick("heads"), Pad(value=0.7))), 510, sizes=((9, 12),)
    ),
    # the merged kernel does not fit where a crop leaves an empty map
    "cropped to nothing, verified": Case(
        Network(
            steps=(Serial((Conv(kernel=(3, 3), before=(2, 2), after=(2, 2)), Conv(before=(-2, -2), after=(-2, -2)))),)
        ),
        759,
        verify=True,
    ),
    # a pad whose frame is written later was taken for the last reader of its input
    "written border behind an unshuffle": Case(
        Network(steps=(Shared(), Resize(spelling="unshuffle"), Pad(spelling="assign"))), 796, "macs", sizes=((8, 8),)
    ),
    # a circular pad that is cropped away again made a sum with a zero-padded branch circular
    "circular pad cropped away, beside a zero-padded branch": Case(
        Network(
            steps=(
                Parallel(
                    branches=(
                        Conv(kernel=(1, 2), after=(0, 1)),
                        Serial(
                            parts=(
                                Conv(before=(1, 1), after=(1, 1), mode="circular"),
                                Conv(before=(-1, -1), after=(-1, -1)),
                            )
                        ),
                    )
                ),
            )
        ),
        409,
        sizes=((9, 12),),
    ),
}


@pytest.mark.parametrize("name", FINDS)
def test_find(name: str) -> None:
    finding = examine(FINDS[name])
    assert finding is None, f"{finding.kind}: {finding.message}"
