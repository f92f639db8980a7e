"""The record of one compilation: what was merged, what was declined and why, before and after.

A `Report` is data.  `str(report)` is plain text, `report.to_markdown()` is for files, and
`rich.print(report)` shows tables: all three by `repfx.reporting.rendering`.  Nothing here decides or measures anything.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

from rich.console import Console, ConsoleOptions, RenderResult

from repfx.decline import Decline
from repfx.reporting import rendering


@dataclass(frozen=True)
class OpCounts:
    """Operations executed in one forward, parameters held, and multiply-accumulates.

    `border_terms` counts the broadcast adds of border terms; `adds` counts all the others.
    `macs` is None where no input size is known.
    """

    convolutions: int = 0
    linears: int = 0
    batch_norms: int = 0
    adds: int = 0
    muls: int = 0
    concats: int = 0
    splits: int = 0
    permutations: int = 0
    border_terms: int = 0
    others: int = 0
    parameters: int = 0
    macs: int | None = None

    @property
    def operations(self) -> int:
        """All executed operations together."""
        return (
            self.convolutions + self.linears + self.batch_norms + self.adds + self.muls + self.concats
            + self.splits + self.permutations + self.border_terms + self.others
        )  # fmt: skip


@dataclass(frozen=True)
class Merge:
    """One accepted rewrite."""

    path: str  # where the result lives in the compiled module, e.g. "stages.0.blocks.0.token_mixer"
    rule: str  # name of the pass
    before: str  # e.g. "14 conv, 1 cat, 1 split, 9 add"
    after: str  # e.g. "1 conv 40->40 11x11 groups=40 + border term"
    note: str = ""  # e.g. "valid for every input size"
    sources: tuple[str, ...] = ()  # module paths of what was merged, in the original model
    error: float | None = None  # relative float64 error on the hostile probes; None: not verified
    weights: tuple[str, ...] = ()  # names of the original weights that went into it


@dataclass(frozen=True)
class Equivalence:
    """How far two models differ on probes, and where the worst difference was seen."""

    max_error: float  # max |a - b| over all probes
    relative_error: float  # max_error / max |a|
    tolerance: float  # the bound the relative error was held against
    dtype: str
    probes: tuple[str, ...]  # what was tried, in words
    worst: str = ""  # probe, output and index of the worst difference
    tensors: int = 1  # how many tensors were compared; 0: none, so nothing is known
    note: str = ""  # why it was judged in this dtype, where that is not float64

    @property
    def equal(self) -> bool:
        """Whether something was compared, and the difference stays within the derived bound."""
        return self.tensors > 0 and self.relative_error <= self.tolerance

    def __str__(self) -> str:
        if not self.tensors:
            return f"not compared: the outputs hold no tensor ({len(self.probes)} probes)"
        verdict = "equal" if self.equal else "DIFFERENT"
        worst = f"; worst at {self.worst}" if self.worst else ""
        note = f"; {self.note}" if self.note else ""
        return (
            f"{verdict}: relative error {self.relative_error:.1e} (bound {self.tolerance:.1e}, {self.dtype}, "
            f"{len(self.probes)} probes){worst}{note}"
        )


@dataclass(frozen=True)
class Island:
    """A submodule that torch.fx could not trace; kept whole, its children compiled in turn."""

    path: str
    cause: str  # the line that stopped the trace, in words


@dataclass(frozen=True)
class Report:
    """What `reparameterize` or `explain` did to one model."""

    model: str
    objective: str
    merges: tuple[Merge, ...] = ()
    declines: tuple[Decline, ...] = ()
    islands: tuple[Island, ...] = ()
    before: OpCounts = field(default_factory=OpCounts)
    after: OpCounts = field(default_factory=OpCounts)
    equivalence: Equivalence | None = None  # of the whole model with the original
    not_compared: str = ""  # why the whole was not compared, and how to have it compared
    conditions: tuple[str, ...] = ()  # what the example's sizes decided; another size may be an InputError
    compile_seconds: float = 0.0
    verify_seconds: float = 0.0

    def counts(self) -> list[tuple[str, str, str]]:
        """Rows (what, before, after) of everything that either side has."""
        rows = []
        for item in fields(OpCounts):
            old, new = getattr(self.before, item.name), getattr(self.after, item.name)
            if old or new:
                rows.append((item.name.replace("_", " "), _number(old), _number(new)))
        return rows

    def grouped_merges(self) -> list[tuple[str, str, str, int, str, float | None]]:
        """Rows (rule, before, after, how many, first path, worst error), alike merges together."""
        groups: dict[tuple[str, str, str], list[Merge]] = {}
        for merge in self.merges:
            groups.setdefault((merge.rule, merge.before, merge.after), []).append(merge)
        return [(*key, len(items), items[0].path, _worst(items)) for key, items in groups.items()]

    def grouped_declines(self) -> list[tuple[str, str, int]]:
        """Rows (rule, sentence, how many), alike declines together."""
        counted = Counter((d.rule, d.reason.value, d.fact, d.remedy) for d in self.declines)
        first: dict[tuple[str, str, str, str], Decline] = {}
        for d in self.declines:
            first.setdefault((d.rule, d.reason.value, d.fact, d.remedy), d)
        return [(key[0], f"[{key[1]}] {first[key]}", n) for key, n in counted.items()]

    def summary(self) -> str:
        """Timing and equality in one line each."""
        lines = [f"compiled in {self.compile_seconds:.2f} s"]
        if self.verify_seconds:
            lines[0] += f", verified in {self.verify_seconds:.2f} s"
        if self.equivalence is not None:
            lines.append(str(self.equivalence))
        if self.not_compared:
            lines.append(f"the whole was not compared with the original: {self.not_compared}")
        return "\n".join(lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from rendering.rich_tables(self)
        yield rendering.rich_lines(self.summary())

    def __str__(self) -> str:
        return rendering.text(self)

    def to_markdown(self) -> str:
        """The report as Markdown tables."""
        return rendering.markdown(self)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _worst(merges: list[Merge]) -> float | None:
    errors = [merge.error for merge in merges if merge.error is not None]
    return max(errors, default=None)
