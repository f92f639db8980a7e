"""The sweep: every family through the compiler, as one table.

    python -m benchmarks.sweep                                  # all of it, about an hour on two cores
    python -m benchmarks.sweep --families timm                  # the smallest variant of timm's 98 modules
    python -m benchmarks.sweep --families 'ghost*,levit'        # some of them
    python -m benchmarks.sweep --models 'timm:fastvit_*'        # any of timm's models
    python -m benchmarks.sweep --markdown docs/sweep.md --json sweep.json
    python -m benchmarks.sweep --families levit --json sweep.json --update    # replace rows, keep the rest

Each network is built in float64 with random batch-norm statistics, compiled without example inputs and
once more with them, run on two inputs, and counted in a forward: before → timm's own
`reparameterize_model` → repfx.  Groups: timm, features (`features_only` backbones), torchvision,
segmentation, detection, others (of packages that may not be installed).
"""

from __future__ import annotations

import platform
import queue
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import timm
import torch
import torchvision
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import sweep_table
from benchmarks.sweep_examine import Row
from benchmarks.sweep_subjects import GROUPS, Subject, chosen
from benchmarks.sweep_worker import Worker

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(help=__doc__)
def main(
    models: Annotated[str | None, typer.Option(help="globs on names, by commas; any timm model")] = None,
    families: Annotated[str | None, typer.Option(help="globs on families or groups, by commas")] = None,
    limit_seconds: Annotated[float, typer.Option(min=1, help="time for one network")] = 120,
    markdown: Annotated[Path | None, typer.Option(help="write the table here")] = None,
    json: Annotated[Path | None, typer.Option(help="write everything here")] = None,
    update: Annotated[bool, typer.Option(help="keep the rows that --json holds and this run does not replace")] = False,
    shapes: Annotated[bool, typer.Option(help="compile with example inputs too")] = True,
    verify: Annotated[bool, typer.Option(help="let the compiler check every rewrite too; slow")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
) -> None:
    """Run the sweep; the exit status is 1 if a network fails."""
    wanted = chosen(models, families)
    if not wanted:
        print("no network has such a name; `timm:NAME` names any of timm's models", file=sys.stderr)
        raise typer.Exit(2)
    old = sweep_table.from_json(json.read_text()) if update and json is not None and json.exists() else []
    rows = {row.spec: row for row in old}
    with _progress() as bar:
        task = bar.add_task("starting", total=len(wanted))
        for row in sweep(wanted, limit_seconds, shapes=shapes, verify=verify, jobs=jobs):
            rows[row.spec] = row
            bar.update(task, advance=1, description=row.spec)
            if not row.passed:
                bar.console.print(f"{row.spec}: {row.status} {row.stage} {row.message.splitlines()[:1]}", markup=False)
            if json is not None:
                json.write_text(sweep_table.as_json(rows.values()))
    done = [rows[s.spec] for s in wanted]
    _show(done)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(sweep_table.markdown(_ordered(rows.values()), "The sweep", _notes()))
    raise typer.Exit(0 if all(row.passed for row in done) else 1)


def sweep(
    wanted: Sequence[Subject], limit_seconds: float, *, shapes: bool = True, verify: bool = False, jobs: int = 1
) -> Iterator[Row]:
    """Rows as they are done, each network within its time."""
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    workers = [Worker(limit_seconds, shapes=shapes, verify=verify) for _ in range(jobs)]
    for worker in workers:
        idle.put(worker)

    def examine(subject: Subject) -> Row:
        worker = idle.get()
        try:
            return worker.examine(subject)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from (done.result() for done in as_completed([pool.submit(examine, s) for s in wanted]))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for worker in workers:
                worker.close()


def _ordered(rows: Iterable[Row]) -> list[Row]:
    place = {group: i for i, group in enumerate(GROUPS)}
    return sorted(rows, key=lambda row: (place[row.spec.partition(":")[0]], row.family, row.spec))


def _show(rows: Sequence[Row]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(sweep_table.terminal(_ordered(rows)))
    for line in sweep_table.summary(rows):
        console.print(line, highlight=False)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _notes() -> list[str]:
    return [
        "Written by `python -m benchmarks.sweep --markdown docs/sweep.md`. One network of each family, in float64",
        "with random batch-norm statistics, compiled without changes to it. Counts are of one executed forward,",
        "before → timm's own `reparameterize_model` → repfx (one number: all the same; two: there is no own fuse, or",
        "it changes nothing). A batch norm that is left as a scale and shift counts as a batch norm. *traced* says",
        "whether the network is one graph; *error* is the worst relative difference over the probes; *s* the seconds",
        "to compile, verification apart.",
        "",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, "
        f"{platform.machine()}, {torch.get_num_threads()} thread per process.",
    ]


if __name__ == "__main__":
    app()
