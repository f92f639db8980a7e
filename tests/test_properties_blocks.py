"""Properties over random blocks and networks: what is compiled equals what was written, everywhere.

`REPFX_EXAMPLES` sets the number of examples per property (default 40); `pytest -m slow` runs the deep
sweep.  The fuzzer (`python -m tests.fuzz`) draws from the same generators without end.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import builders, hostile, specs
from tests.check import OBJECTIVES, Case, VacuousError, examine, of_block
from tests.generators import blocks, networks, random_block, random_network

EXAMPLES = int(os.environ.get("REPFX_EXAMPLES", "40"))
FIXED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CHANNELS = st.sampled_from((8, 4, 6, 3, 1))
WEIGHTS = st.integers(0, 999)
EXAMPLE = st.sampled_from((None, (8, 8), (9, 6)))


def holds(case: Case) -> None:
    try:
        finding = examine(case)
    except VacuousError:
        assume(False)
        return
    assert finding is None, f"{finding.kind}: {finding.message}\n{case!r}"


@pytest.mark.parametrize("objective", OBJECTIVES)
@FIXED
@given(spec=blocks(), channels=CHANNELS, weights=WEIGHTS)
def test_block_is_equal(objective: str, spec: specs.Node, channels: int, weights: int) -> None:
    holds(of_block(spec, channels, weights, objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
@FIXED
@given(spec=networks(), weights=WEIGHTS, example=EXAMPLE)
def test_network_is_equal(objective: str, spec: specs.Network, weights: int, example: tuple[int, int] | None) -> None:
    holds(Case(spec, weights, objective, example))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(FIXED, max_examples=1000)
@given(spec=blocks(depth=2), channels=CHANNELS, weights=WEIGHTS)
def test_deep_block_is_equal(objective: str, spec: specs.Node, channels: int, weights: int) -> None:
    holds(of_block(spec, channels, weights, objective))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(FIXED, max_examples=1000)
@given(spec=networks(most=8), weights=WEIGHTS, example=EXAMPLE)
def test_deep_network_is_equal(
    objective: str, spec: specs.Network, weights: int, example: tuple[int, int] | None
) -> None:
    holds(Case(spec, weights, objective, example, verify=True))


# --- the generators themselves --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_seed_gives_the_same_specification_and_its_repr_reads_back(seed: int) -> None:
    for spec in (random_block(seed), random_network(seed)):
        assert eval(repr(spec), vars(specs)) == spec
    assert random_network(seed) == random_network(seed)


def test_most_networks_accept_some_size() -> None:
    accepted = sum(_accepts(random_network(seed, most=4)) for seed in range(40))
    assert accepted >= 28


def _accepts(spec: specs.Network) -> bool:
    model = hostile.prepared(builders.network(spec), 0)
    generator = torch.Generator().manual_seed(0)
    return any(hostile.accepts(model, hostile.probes((spec.channels, *size), generator)) for size in hostile.SIZES)


def test_shrinking_only_simplifies() -> None:
    spec = random_network(5)
    smaller = list(spec.simpler())
    assert smaller
    assert spec not in smaller
