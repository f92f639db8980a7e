"""Random whole networks against the compiler.

    python -m tests.fuzz --minutes 10 --seed 0 --out finds

Each network is compiled under one objective, with or without an example input, and compared with the
original in float64 at many sizes.  A failure is shrunk greedily over its specification and written as
a reproducer that runs on its own.  Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.fx import symbolic_trace

from tests import builders, specs
from tests.check import OBJECTIVES, Case, Finding, VacuousError, examine
from tests.generators import random_block, random_network


def cases(seed: int) -> Iterator[Case]:
    """An endless stream of cases; two in three are whole networks, the rest single blocks.

    A third repeat some of their steps: blocks of one structure, each with its own weights.
    """
    rng = random.Random(seed)
    while True:
        draw = rng.randrange(2**31)
        if draw % 3:
            network = random_network(draw, most=8)
        else:
            network = specs.Network(rng.choice((8, 4, 6, 3, 12)), (random_block(draw, depth=2),))
        if rng.random() < 0.35:
            steps = network.steps[: rng.randint(1, 4)] * rng.randint(2, 4)
            network = replace(network, steps=(*steps, *network.steps[4:6]))
        example = rng.choice((None, None, (9, 8), (16, 16)))
        yield Case(network, rng.randrange(1000), rng.choice(OBJECTIVES), example, verify=rng.random() < 0.1)


def outcome(case: Case) -> Finding | None:
    """`examine`, a vacuous case counting as a pass."""
    try:
        return examine(case)
    except VacuousError:
        return None


def shrink(case: Case, kind: str, seconds: float = 40.0) -> Case:
    """A smaller case that fails in the same way."""
    stop = time.monotonic() + seconds
    best, moved = case, True
    while moved and time.monotonic() < stop:
        moved = False
        for smaller in _simpler(best):
            if time.monotonic() > stop:
                break
            try:
                finding = outcome(smaller)
            except Exception:
                continue  # the specification itself cannot be built or run
            if finding is not None and finding.kind == kind:
                best, moved = smaller, True
                break
    return best


def _simpler(case: Case) -> Iterator[Case]:
    if len(case.sizes) > 1:
        yield from (replace(case, sizes=(size,)) for size in case.sizes)
    if case.example is not None:
        yield replace(case, example=None)
    if case.verify:
        yield replace(case, verify=False)
    steps = case.network.steps
    for node in [child for step in steps for child in step.children()]:
        if len(steps) == 1:
            yield replace(case, network=replace(case.network, steps=(node,)))
    for network in case.network.simpler():
        if network.size() < case.network.size() and network.channels > 0:
            yield replace(case, network=network)
    for channels in (1, 2, 3):
        if channels < case.network.channels:
            yield replace(case, network=replace(case.network, channels=channels))


def reproducer(case: Case, finding: Finding) -> str:
    """Source of a file that fails as the case does, with the traced code as a comment."""
    try:
        code = symbolic_trace(builders.network(case.network)).code
    except Exception as error:
        code = f"does not trace plainly: {error}"
    lines = [f"# {line}" for line in code.strip().splitlines()]
    message = finding.message.strip().replace('"""', "'''").replace("\\", "/")
    return "\n".join(
        [
            f'"""{finding.kind}: {message.splitlines()[-1]}',
            "",
            "Run from the repository's root: PYTHONPATH=. python FILE",
            '"""',
            "from tests.check import Case",
            "from tests.fuzz import replay",
            "from tests.specs import *",
            "",
            f"replay({case!r})",
            "",
            "# The model, traced:",
            *lines,
            "",
        ]
    )


def replay(case: Case) -> None:
    """Run one case loudly; used by reproducers."""
    finding = examine(case)
    if finding is None:
        print("passes")
        return
    print(f"{finding.kind}\n{finding.message}")
    sys.exit(1)


def run(minutes: float, seed: int, out: Path, limit: int) -> int:
    """Fuzz for some minutes; returns how many different failures were found."""
    stop = time.monotonic() + 60 * minutes
    tally: Counter[str] = Counter()
    known: set[str] = set()
    kinds: Counter[str] = Counter()
    for case in cases(seed):
        if time.monotonic() > stop or len(known) >= limit:
            break
        try:
            finding = examine(case)
        except VacuousError:
            tally["vacuous"] += 1
            continue
        tally["networks"] += 1
        tally[case.objective] += 1
        if finding is None:
            continue
        tally["failures"] += 1
        kinds[finding.kind] += 1
        if finding.kind.startswith("compile") and kinds[finding.kind] > 1:
            continue  # one reproducer per exception is enough
        small = shrink(case, finding.kind)
        final = outcome(small) or finding
        text = reproducer(small, final)
        shape = f"{final.kind} {_outline(small.network)}"
        if shape in known:
            continue
        known.add(shape)
        out.mkdir(parents=True, exist_ok=True)
        name = "_".join(re.findall(r"[A-Za-z]+", final.kind)[:5])
        path = out / f"fuzz_{seed}_{len(known):02d}_{name}.py"
        path.write_text(text)
        print(f"FOUND {path}: {final.kind}: {final.message.strip().splitlines()[-1]}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in sorted(tally.items())))
    return len(known)


def _outline(spec: object) -> str:
    """The kinds of nodes in order, without their numbers: alike failures share it."""
    if not isinstance(spec, specs.Spec):
        return ""
    inner = ",".join(_outline(child) for child in spec.children())
    word = getattr(spec, "spelling", getattr(spec, "how", ""))
    return f"{type(spec).__name__}.{word}({inner})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--limit", type=int, default=20, help="stop after so many different failures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(1 if run(options.minutes, options.seed, options.out, options.limit) else 0)


if __name__ == "__main__":
    main()
