"""How long compiling takes, and how much memory: against tracing and copying the model, and against its size.

    python benchmarks/compile_time.py                          # the table of docs/results.md
    python benchmarks/compile_time.py repnext_m0 timm:resnet18 --rounds 9
    python benchmarks/compile_time.py --curve docs/images/compile_curve.png     # 1,000, 3,000 and 10,000 nodes

Base: `torch.fx.symbolic_trace(model)` and one `copy.deepcopy(model)`, which every tool of this kind needs at
least.  Both sides are timed in turn in one process, in processor time of one thread, which other programs
on the machine disturb least; medians, with the spread.  Verification is timed apart: it runs the network's
pieces many times in float64.  Memory is the largest resident size during the call above that before it,
in units of the model's weights.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

import repfx
from repfx.io import build_model

MODELS = ("repnext_m5", "timm:repvgg_b3", "timm:resnet50", "timm:mobileone_s0")
CURVE = (1_000, 3_000, 10_000)


class Block(nn.Module):
    """A residual block of every kind of region: chunks, chains, sums, norms, an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.square = nn.Conv2d(part, part, 7, padding=3, groups=part)
        self.wide = nn.Sequential(
            nn.Conv2d(part, part, (1, 11), padding=(0, 5), groups=part), nn.BatchNorm2d(part),
            nn.Conv2d(part, part, (11, 1), padding=(5, 0), groups=part),
        )  # fmt: skip
        self.small = nn.ModuleList(nn.Conv2d(part, part, k, padding=k // 2, groups=part) for k in (3, 1, 3))
        self.norm = nn.BatchNorm2d(channels)
        self.expand = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.BatchNorm2d(2 * channels))
        self.project = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W)."""
        a, b, c, d = x.chunk(4, 1)
        c = self.small[0](c) + self.small[1](c) + self.small[2](c)
        y = self.norm(torch.cat([self.square(a), self.wide(b), c, d], 1))
        return x + self.drop(self.project(torch.relu(self.expand(y))))


def synthetic(nodes: int, channels: int = 8) -> nn.Module:
    """A network of about that many nodes, in evaluation mode, with random statistics."""
    per_block = len(fx.symbolic_trace(Block(channels)).graph.nodes) - 2
    blocks = nn.Sequential(*(Block(channels) for _ in range(round(nodes / per_block))))
    return repfx.randomize_statistics(blocks).eval()


def base(model: nn.Module) -> object:
    """What is compared with."""
    return fx.symbolic_trace(model), copy.deepcopy(model)


def processor_seconds(run: Callable[[], object]) -> float:
    """Processor time of one call; its result is let go first."""
    gc.collect()
    started = time.process_time()
    result = run()
    seconds = time.process_time() - started
    del result
    return seconds


def spread(values: Sequence[float]) -> str:
    """Median and range, in seconds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def peak_bytes(run: Callable[[], object]) -> int:
    """How far the resident memory rises during a call (Linux)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    page = 4096

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page

    gc.collect()
    before = highest = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run()
    highest = max(highest, resident())
    done.set()
    watcher.join()
    del result
    return highest - before


def compare(name: str, rounds: int) -> str:
    """One row of the table."""
    model = repfx.randomize_statistics(build_model(name).module).eval()
    left, right, plan = [], [], []
    for _ in range(rounds + 1):
        left.append(processor_seconds(lambda: base(model)))
        right.append(processor_seconds(lambda: repfx.reparameterize(model, verify=False)))
        plan.append(processor_seconds(lambda: repfx.explain(model)))
    checked = repfx.report(repfx.reparameterize(model)).verify_seconds
    ratios = [b / a for a, b in zip(left[1:], right[1:])]
    return (
        f"| {name.removeprefix('timm:')} | {spread(left[1:])} | {spread(right[1:])} | {statistics.median(ratios):.1f} "
        f"| {spread(plan[1:])} | {checked:.1f} | {memory_of(name)} |"
    )


def memory_of(name: str) -> str:
    """The rise of memory in units of the weights, in a process that has compiled nothing but a small network."""
    command = [sys.executable, __file__, "--memory", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def memory(name: str) -> float:
    """What `memory_of` asks its process."""
    repfx.reparameterize(synthetic(100), verify=False)
    model = repfx.randomize_statistics(build_model(name).module).eval()
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return peak_bytes(lambda: repfx.reparameterize(model, verify=False)) / weights


def curve(path: Path | None, rounds: int) -> None:
    """Time against the number of nodes, printed and drawn."""
    rows = []
    for wanted in CURVE:
        model = synthetic(wanted)
        nodes = len(fx.symbolic_trace(model).graph.nodes)
        traced = [processor_seconds(functools.partial(base, model)) for _ in range(rounds)]
        compiling = functools.partial(repfx.reparameterize, model, verify=False)
        ours = [processor_seconds(compiling) for _ in range(rounds)]
        rows.append((nodes, statistics.median(traced), statistics.median(ours)))
        per_node = 1e3 * rows[-1][2] / nodes
        print(f"| {nodes:,} | {rows[-1][1]:.2f} | {rows[-1][2]:.2f} | {per_node:.2f} |", flush=True)
    if path is not None:
        draw(rows, path)


def draw(rows: Sequence[tuple[int, float, float]], path: Path) -> None:
    """The curve, with a straight line through its first point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    sizes = [nodes for nodes, *_ in rows]
    axes.plot(sizes, [ours for *_, ours in rows], "o-", label="repfx.reparameterize(verify=False)")
    axes.plot(sizes, [traced for _, traced, _ in rows], "s-", label="symbolic_trace + deepcopy")
    axes.plot(sizes, [rows[0][2] * n / sizes[0] for n in sizes], ":", color="grey", label="proportional")
    axes.set(xlabel="nodes of the traced graph", ylabel="processor time, s", xlim=(0, None), ylim=(0, None))
    axes.set_title("Time to compile against the size of the network")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """The table, or the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--curve", type=Path, nargs="?", const=Path("out/compile_curve.png"), default=None)
    parser.add_argument("--memory", metavar="MODEL", help="only this, and print only that")
    wish = parser.parse_args()
    torch.set_num_threads(1)
    if wish.memory:
        print(f"{memory(wish.memory):.2f}")
        return
    if wish.curve is not None:
        print("| nodes | symbolic_trace + deepcopy, s | repfx, s | repfx per node, ms |\n| ---: | ---: | ---: | ---: |")
        curve(wish.curve, wish.rounds)
        return
    print("| model | symbolic_trace + deepcopy, s | repfx, s | ratio | explain, s | verifying, s | memory / weights |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in wish.models:
        print(compare(name, wish.rounds), flush=True)


if __name__ == "__main__":
    main()
