"""Random Python against the compiler.

    python -m tests.pyfuzz --minutes 10 --seed 0 --out out/pyfuzz

Each program is a file with a module in it, compiled with or without an example, and compared with itself call by
call.  A find is shrunk and written as a file that fails on its own.  Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from tests.pyfuzz.program import Program
from tests.pyfuzz.running import Finding, Seen, UnfitError, examine
from tests.pyfuzz.shrinking import outline, reproducer, shrink
from tests.pyfuzz.writing import programs


def replay(program: Program) -> None:
    """Run one program loudly; used by reproducers."""
    finding = examine(program)
    if finding is None:
        print("passes")
        return
    print(f"{finding.kind}\n{finding.message}")
    sys.exit(1)


def count(tally: Counter[str], seen: Seen) -> None:
    """Add what a program was good for."""
    tally["programs"] += 1
    tally["folded"] += seen.folded
    tally["folded, all in one graph"] += seen.folded and seen.whole
    tally["with islands"] += bool(seen.islands)
    tally["with refused sizes"] += bool(seen.refused)
    tally["declined"] += bool(seen.declined)


def run(minutes: float, seed: int, out: Path, limit: int, skip: str = "") -> int:
    """Fuzz for some minutes; returns how many different finds there were."""
    stop = time.monotonic() + 60 * minutes
    tally: Counter[str] = Counter()
    known: set[str] = set()
    kinds: Counter[str] = Counter()
    for program in programs(seed):
        if time.monotonic() > stop or len(known) >= limit:
            break
        if skip and re.search(skip, program.source()):
            tally["skipped"] += 1
            continue
        seen = Seen()
        try:
            finding = examine(program, seen)
        except UnfitError:
            tally["unfit"] += 1
            continue
        count(tally, seen)
        if finding is None:
            continue
        tally["finds"] += 1
        kinds[finding.kind] += 1
        if finding.kind.startswith("compile ") and kinds[finding.kind] > 1:
            continue  # one reproducer per exception is enough
        small = shrink(program, finding.kind)
        final = examine(small) or finding
        shape = outline(small, final)
        if shape not in known:
            known.add(shape)
            _write(out, f"pyfuzz_{seed}_{len(known):02d}", small, final)
    print(", ".join(f"{number} {name}" for name, number in sorted(tally.items())))
    return len(known)


def _write(out: Path, name: str, program: Program, finding: Finding) -> None:
    out.mkdir(parents=True, exist_ok=True)
    words = "_".join(re.findall(r"[A-Za-z]+", finding.kind)[:5])
    path = out / f"{name}_{words}.py"
    path.write_text(reproducer(program, finding))
    code = " ; ".join(statement.code for statement in program.all()).replace("\n", " / ")
    print(f"FOUND {path}: {finding.message.strip().splitlines()[-1][:200]}\n    {code}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.pyfuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/pyfuzz"))
    parser.add_argument("--skip", default="", help="leave out programs whose source holds this pattern")
    parser.add_argument("--limit", type=int, default=40, help="stop after so many different finds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(1 if run(options.minutes, options.seed, options.out, options.limit, options.skip) else 0)


if __name__ == "__main__":
    main()
