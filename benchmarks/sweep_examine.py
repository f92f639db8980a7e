"""One network through the compiler: what was executed before and after, how far the two differ, what is left.

`examine` never raises for what a model or the compiler does: that is a `Row` with a status.
"""

from __future__ import annotations

import functools
import gc
import inspect
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

import repfx
from benchmarks.sweep_subjects import NotInstalledError, Subject, build, inputs, quiet
from repfx.layers import ScaleShift
from repfx.reporting import OpCounts, Report
from repfx.rewriting import FastDepthwise
from repfx.verification import count_operations

BOUND = 1e-10  # relative, in float64
EPSILON = torch.finfo(torch.float64).eps
CHAOS = 1e-6  # a larger error is wrong, however the network amplifies roundings
SCALE = "scale and shift"
NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Leftover:
    """A batch norm which is still executed, as it was or as a scale and shift; or another lone scale and shift."""

    path: str
    kind: str  # the module's type; SCALE for a scale and shift that was no batch norm
    producer: str  # what computes its input, and how often that is read
    readers: str  # what reads its output
    reason: str  # the compiler's own words, if it said any
    because: str = ""  # what stands on both sides, and why neither takes it


@dataclass
class Row:
    """One network of the table."""

    spec: str
    family: str
    size: int
    status: str = "ok"  # ok | wrong | exception | time limit | not built | skipped
    stage: str = ""  # what was being done when it failed
    message: str = ""
    traced: bool = False  # one graph, no islands at the top
    before: OpCounts = field(default_factory=OpCounts)
    own: OpCounts | None = None  # after timm's reparameterize_model, where that changes anything
    ours: OpCounts = field(default_factory=OpCounts)  # without example inputs
    shaped: OpCounts | None = None  # with them, where that changes anything
    error: float | None = None  # worst relative error over the probes, in float64
    own_error: float | None = None
    rounding: float | None = None  # what one rounding of the input does to the original, where that excuses the error
    signature: bool = True  # the same forward parameters
    untouched: bool = True  # the original's weights are what they were
    seconds: float = 0.0  # to compile, verification apart
    verify_seconds: float = 0.0
    total_seconds: float = 0.0
    islands: list[tuple[str, str]] = field(default_factory=list)
    left: list[Leftover] = field(default_factory=list)
    declines: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it went through with the same outputs and the same signature, and touched nothing."""
        return self.status == "skipped" or (self.status == "ok" and self.signature and self.untouched)

    @property
    def best(self) -> OpCounts:
        """Ours, with example inputs where they helped."""
        return self.shaped or self.ours

    @property
    def norms_left(self) -> int:
        """Batch norms that are still executed, in either spelling."""
        return max(sum(item.kind != SCALE for item in self.left), self.best.batch_norms)


def examine(subject: Subject, *, shapes: bool = True, verify: bool = False) -> Row:
    """Build, compile, compare and count one subject; with `shapes`, with example inputs as a second try.

    `verify` lets the compiler check every rewrite too, which costs more than everything else together.
    """
    row = Row(subject.spec, subject.family, subject.size)
    started = time.perf_counter()
    try:
        with quiet(), torch.no_grad(), FastDepthwise():
            _examine(subject, row, shapes, verify)
    except NotInstalledError as error:
        row.status, row.message = "skipped", str(error)
    except Exception as error:  # the sweep's purpose is to meet them
        row.status = "not built" if row.stage == "build" else "exception"
        row.message = _message(error)
    row.total_seconds = time.perf_counter() - started
    gc.collect()
    return row


def _examine(subject: Subject, row: Row, shapes: bool, verify: bool) -> None:
    row.stage = "build"
    model = build(subject)
    probe = inputs(subject, subject.size, subject.size)
    row.before, wanted = _counted(model, probe)
    further = inputs(subject, subject.size + 37, subject.size + 10)
    wanted_further = _accepted(model, further)
    before = _fingerprint(model)
    row.stage = "compile"
    fresh = subject.group == "others"  # transformers hooks its modules in their first forward
    if fresh:
        model = build(subject)
        before = _fingerprint(model)
    fused = repfx.reparameterize(model, verify=verify)
    row.untouched = _fingerprint(model) == before
    report = repfx.report(fused)
    row.seconds, row.verify_seconds = report.compile_seconds, report.verify_seconds
    row.islands = [(i.path, i.cause) for i in report.islands]
    row.traced = isinstance(fused, fx.GraphModule) and not row.islands
    row.declines = report.grouped_declines()
    row.stage = "compare"
    row.signature = _parameters_of(model) == _parameters_of(fused)
    row.ours, row.left = _compared(row, fused, probe, wanted)
    if wanted_further is not None:
        _hold(row, wanted_further, _outputs(fused(*further)))
    _excuse(row, model, fused, probe, wanted)
    del fused
    row.stage = "timm's own"
    row.own, row.own_error = _own(model, probe, wanted, row)
    if shapes and row.status == "ok" and (report.islands or any("example_inputs" in d.remedy for d in report.declines)):
        row.stage = "compile with example inputs"
        shaped = repfx.reparameterize(model, probe, verify=False)
        row.stage = "compare with example inputs"
        counts, left = _compared(row, shaped, probe, wanted)
        _excuse(row, model, shaped, probe, wanted)
        if counts != row.ours:
            row.shaped, row.left = counts, left
    row.untouched = row.untouched and (fresh or _fingerprint(model) == before)
    row.stage = "" if row.status == "ok" else row.stage


def _message(error: Exception) -> str:
    """The error, its innermost cause, and the last lines of the code that led there."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    lines = [f"{type(error).__name__}: {str(error)[:300]}"]
    if cause is not error:
        lines.append(f"from {type(cause).__name__}: {str(cause)[:300]}")
    frames = traceback.extract_tb(cause.__traceback__)[-6:]
    return "\n".join([*lines, *(f"  {frame.filename}:{frame.lineno} {frame.line}" for frame in frames)])


def _counted(model: nn.Module, arguments: Sequence[Any]) -> tuple[OpCounts, list[Tensor]]:
    """Operations of one forward, and what it returned."""
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, arguments, output: seen.append(output))
    counts = count_operations(model, arguments)
    handle.remove()
    return counts, _outputs(seen[0])


def _compared(
    row: Row, fused: nn.Module, arguments: Sequence[Any], wanted: Sequence[Tensor]
) -> tuple[OpCounts, list[Leftover]]:
    """Counts and what is left of one compiled model, its outputs held against the original's."""
    with _Norms(fused) as norms:
        counts, got = _counted(fused, arguments)
    _hold(row, wanted, got)
    return counts, _leftovers(fused, norms.executed, repfx.report(fused))


def _accepted(model: nn.Module, arguments: Sequence[Any]) -> list[Tensor] | None:
    """What the original returns for an odd, non-square input, if it takes it: then so must the result."""
    try:
        return _outputs(model(*arguments))
    except Exception:  # whatever the model raises for a size it does not take
        return None


def _own(
    model: nn.Module, arguments: Sequence[Any], wanted: Sequence[Tensor], row: Row
) -> tuple[OpCounts | None, float | None]:
    """Counts and error after timm's own fuse, where it changes anything; None where it fails."""
    try:
        counts, got = _counted(reparameterize_model(model), arguments)
    except Exception:  # not ours to answer for
        return None, None
    return (None, None) if counts == row.before else (counts, _error(wanted, got))


# --- comparing ------------------------------------------------------------------------------------


def _hold(row: Row, wanted: Sequence[Tensor], got: Sequence[Tensor]) -> None:
    """Write the error into the row, and that it is wrong where it is beyond the bound."""
    if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in wanted]:
        row.status, row.error = "wrong", float("inf")
        row.message = f"{row.stage}: {len(wanted)} outputs and {len(got)}, or other shapes"
        return
    error = _error(wanted, got)
    row.error = max(row.error or 0.0, error)
    if not error <= BOUND:
        row.status, row.message = "wrong", f"{row.stage}: relative error {error:.1e}"


def _excuse(row: Row, model: nn.Module, fused: nn.Module, probe: Sequence[Any], wanted: Sequence[Tensor]) -> None:
    """An error no larger than what rounding the input once more does to the original is the network's own.

    A detector selects boxes by comparing scores, many of which are equal in a network that is not trained;
    it is held to what it computes before that.
    """
    if row.status == "wrong" and row.spec.startswith("detection:"):
        before, after = _before_selection(model, probe), _before_selection(fused, probe)
        same = [t.shape for t in before] == [t.shape for t in after] and bool(before)
        error = _error(before, after) if same else float("inf")
        if error <= BOUND:
            row.status, row.error, row.message = "ok", error, "boxes of equal scores are selected in another order"
        return
    if row.status != "wrong" or row.error is None or not row.error < CHAOS:
        return
    generator = torch.Generator().manual_seed(2)
    own = 0.0
    for _ in range(2):
        nudged = tree_map(lambda x: x * (1 + EPSILON * _signs(x, generator)) if isinstance(x, Tensor) else x, probe)
        own = max(own, _error(wanted, _outputs(model(*nudged))))
    if row.error <= 10 * own:
        row.status, row.rounding = "ok", own
        row.message = f"ill-conditioned: one rounding of the input changes the outputs by {own:.0e}"


def _before_selection(model: nn.Module, probe: Sequence[Any]) -> list[Tensor]:
    """What a detector's backbone and the head that scores all positions return."""
    seen: list[Tensor] = []
    parts = [m for path, m in model.named_modules() if path in ("backbone", "head", "rpn.head")]
    handles = [m.register_forward_hook(lambda m, a, output: seen.extend(_outputs(output))) for m in parts]
    model(*probe)
    for handle in handles:
        handle.remove()
    return seen


def _signs(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).sign()


def _error(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        if not a.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else 1.0)
        elif a.numel():
            if not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
                return float("inf")
            scale = float(a.abs().max())
            worst = max(worst, float((a - b).abs().max()) / (scale or 1.0))
    return worst


def _outputs(value: Any) -> list[Tensor]:
    match value:
        case Tensor():
            return [value]
        case dict():
            return [t for key in sorted(value, key=str) for t in _outputs(value[key])]
        case tuple() | list():
            return [t for item in value for t in _outputs(item)]
        case _:
            return [t for item in vars(value).values() for t in _outputs(item)] if hasattr(value, "__dict__") else []


def _parameters_of(model: nn.Module) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(model.forward).parameters.values()]


def _fingerprint(model: nn.Module) -> list[tuple[str, object]]:
    """What compiling must leave alone: weights and buffers, and the caches that modules keep as plain attributes."""
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: list[tuple[str, object]] = [
        (name, (value._version, float(value.double().sum().nan_to_num()))) for name, value in values.items()
    ]
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, dict) and not name.startswith("_"):
                found.append((f"{path}.{name}", sorted((str(key), type(item).__name__) for key, item in value.items())))
            elif isinstance(value, fx.Proxy):
                found.append((f"{path}.{name}", "a proxy of torch.fx"))
    return found


# --- what is left ---------------------------------------------------------------------------------


class _Norms:
    """While it is open, the batch norm modules that are executed, by path."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.executed: dict[str, nn.Module] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> _Norms:
        for path, module in self.model.named_modules():
            if isinstance(module, (*NORMS, ScaleShift)):
                note = functools.partial(self._note, path)
                self.handles.append(module.register_forward_pre_hook(note))
        return self

    def _note(self, path: str, module: nn.Module, arguments: Any) -> None:
        self.executed[path] = module

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _leftovers(fused: nn.Module, executed: dict[str, nn.Module], report: Report) -> list[Leftover]:
    """The batch norms that one forward still executes, each with its neighbours in the graph."""
    places = dict(_neighbours(fused))
    others = {m.path for m in report.merges if "batch norm" not in m.before.replace("_", " ")}
    found = []
    for path, module in executed.items():
        kind = SCALE if path in others else type(module).__name__
        producer, readers, because = places.get(path, ("", "", ""))
        found.append(Leftover(path, kind, producer, readers, _reason(path, report), because))
    return found + [
        Leftover(path, "F.batch_norm", producer, readers, _reason(path, report), because)
        for path, (producer, readers, because) in places.items()
        if ":" in path
    ]


def _neighbours(fused: nn.Module) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """(path, (producer, readers, why neither takes it)) of all batch norms that are nodes of a graph."""
    for prefix, module in fused.named_modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            place = f"{prefix}.{node.target}" if prefix else str(node.target)
            if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), (*NORMS, ScaleShift)):
                yield place, _near(node, module)
            elif node.op == "call_function" and getattr(node.target, "__name__", "") == "batch_norm":
                yield f"{prefix}:{node.name}", _near(node, module)


def _near(node: fx.Node, root: fx.GraphModule) -> tuple[str, str, str]:
    source = node.all_input_nodes[0]
    read = len(source.users)
    producer = _word(source, root) + (f" (read {read} times)" if read > 1 else "")
    return producer, ", ".join(sorted({_word(user, root) for user in node.users})), _because(node, root)


def _because(node: fx.Node, root: fx.GraphModule) -> str:
    """Why neither what makes its input nor what reads its output takes a norm."""
    source = node.all_input_nodes[0]
    if not _reached_by_input(node):
        return "it normalises a weight, no activation"
    return f"{_made(source, root)}; {_taken(node, root)}"


def _made(source: fx.Node, root: fx.GraphModule) -> str:
    word = _word(source, root)
    if source.op == "placeholder":
        return "it reads the network's input"
    if len(source.users) > 1 and word not in ("cat", "add"):
        return f"its input ({word}) is read {len(source.users)} times"
    if word in ("cat", "add", "iadd"):
        parts = [n for n in source.all_input_nodes if not _is_affine(n, root) or len(n.users) > 1]
        what = "terms" if "add" in word else "parts"
        elsewhere = f", is itself read {len(source.users)} times" if len(source.users) > 1 else ""
        return (
            f"its input is {_article(word)}, of whose {what} {len(parts)} are not affine or read elsewhere{elsewhere}"
        )
    return f"its input ({word}) is affine" if _is_affine(source, root) else f"its input ({word}) is not affine"


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _taken(node: fx.Node, root: fx.GraphModule) -> str:
    affine = sorted({_word(user, root) for user in node.users if _is_affine(user, root)})
    others = sorted({_word(user, root) for user in node.users if not _is_affine(user, root)})
    if not affine:
        return f"nothing affine reads it ({', '.join(others)})"
    if others:
        return f"{', '.join(others)} read it beside {', '.join(affine)}"
    return f"{', '.join(affine)} reads it"


def _is_affine(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether a node is a convolution or a linear, which could take a norm."""
    word = _word(node, root)
    return any(kind in word for kind in ("Conv", "Linear", "conv1d", "conv2d", "conv3d", "linear", "BatchNorm"))


def _reached_by_input(node: fx.Node) -> bool:
    seen, work = {node}, [node]
    while work:
        for source in work.pop().all_input_nodes:
            if source.op == "placeholder" or source.op == "call_module":
                return True
            if source not in seen:
                seen.add(source)
                work.append(source)
    return False


def _word(node: fx.Node, root: fx.GraphModule) -> str:
    match node.op:
        case "call_module":
            return type(root.get_submodule(str(node.target))).__name__
        case "call_method":
            return f".{node.target}"
        case "call_function":
            return getattr(node.target, "__name__", str(node.target))
        case _:
            return node.op


def _reason(path: str, report: Report) -> str:
    """What the compiler said of this batch norm, or else of the island around it."""
    own = [str(d) for d in report.declines if d.subject and (d.subject == path or path in str(d))]
    if own:
        return min(own, key=len)
    around = [i for i in report.islands if path == i.path or path.startswith(f"{i.path}.") or not i.path]
    if around:
        inner = max(around, key=lambda i: len(i.path))
        return f"inside the island {inner.path or 'of the whole model'}: {inner.cause}"
    return ""
