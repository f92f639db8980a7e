"""trace -> lift -> passes -> emit -> verify -> report: `reparameterize` and `explain`."""

from __future__ import annotations

import copy
import gc
import importlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from repfx.arguments import Example, Passed, SignatureTracer, example_values, parameters_of
from repfx.attributes import carry_attributes
from repfx.capture import Capture, Exclusion, capture, check_mode, unchanged, unwrapped
from repfx.constants import attribute
from repfx.cost import count_operations
from repfx.dead import has_effect, remove_dead
from repfx.decline import Decline, Reason, UserError
from repfx.emission import Target, emit
from repfx.equivalence import verify as verify_models
from repfx.form import form_of
from repfx.graph import Call, LiftedGraph, Record, common_path
from repfx.inplace import is_size
from repfx.keys import below, key_map_of, weights_read, with_weights
from repfx.objective import OBJECTIVES, Objective
from repfx.protocol import Pass
from repfx.report import Equivalence, Merge, OpCounts, Report
from repfx.rewriting import PENDING, Engine
from repfx.state import copied, held

Progress = Callable[[str, float], None]


def reparameterize(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    objective: str = "single-branch",
    passes: Sequence[Pass] | None = None,
    exclude: Exclusion = (),
    verify: bool = True,
    progress: Progress | None = None,
) -> nn.Module:
    """Compile `model` into an exactly equal network with fewer, cheaper operations.

    Args:
        model: any module in eval mode.  It is never changed.
        example_inputs: positional arguments of one forward.  Optional; what needs shapes is declined
            without them, with a reason that says so.  They never narrow the sizes the result accepts, but
            where the model's own code takes another way for another size: then the report names the line,
            and another size is an `InputError`.
        example_kwargs: keyword arguments of that forward.  Tensors are inputs of the result; anything else
            (None, flags, numbers) is compiled in, as given or as its default, and checked at run time.
        objective: "single-branch" (fewest convolutions) or "macs" (nothing grows).
        passes: the passes to run, in order; default `passes.DEFAULT_PASSES`.
        exclude: module paths, globs or types that must stay as they are.
        verify: check every rewrite on hostile inputs in float64, and with example_inputs the whole model.
        progress: called with a text and a fraction in 0..1.

    Returns:
        A new module with the same forward signature, dtype and device; an `fx.GraphModule` if the
        whole model traces.  `repfx.report(result)` tells what was done.

    Raises:
        TrainingModeError: the model is in training mode.
        UserError: an unknown objective, or a folded weight that overflows a half-precision dtype.
    """
    plan = _Plan(_objective(objective), _passes(passes), tuple(exclude), verify, progress)
    model = unwrapped(model)
    check_mode(model)
    started = time.perf_counter()
    with uncollected():
        fused, outcome = _compile(model, _example(example_inputs, example_kwargs), plan)
    seconds = time.perf_counter() - started - outcome.verify_seconds
    report = _report(model, fused, outcome, plan, seconds)
    example = _example(example_inputs, example_kwargs)
    if example is not None:
        report = _measured(report, model, fused, example, verify)
    carry_attributes(model, fused, _repfx_report=report)
    return fused


def explain(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    objective: str = "single-branch",
    passes: Sequence[Pass] | None = None,
    exclude: Exclusion = (),
) -> Report:
    """What `reparameterize` would do, without reading a weight or building anything.

    Works on the meta device.  Arguments as for `reparameterize`.
    """
    plan = _Plan(_objective(objective), _passes(passes), tuple(exclude), verify=False, progress=None, build=False)
    model = unwrapped(model)
    check_mode(model)
    started = time.perf_counter()
    with uncollected():
        fused, outcome = _compile(model, _example(example_inputs, example_kwargs), plan)
    return _report(model, fused, outcome, plan, time.perf_counter() - started)


def report(fused: nn.Module) -> Report:
    """The record that `reparameterize` left on its result."""
    found = fused.__dict__.get("_repfx_report")
    if not isinstance(found, Report):
        raise UserError(f"{type(fused).__name__} was not made by repfx.reparameterize, so it has no report")
    return found


def key_map(fused: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every weight of a compiled module the names of the original weights that went into it."""
    return key_map_of(fused, report(fused))


@contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: nothing big is in cycles, and each collection walks all of torch."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class _Plan:
    objective: Objective
    passes: tuple[Pass, ...]
    exclude: tuple[str | type, ...]
    verify: bool
    progress: Progress | None
    build: bool = True


@dataclass
class _Outcome:
    """What one compilation did, before it becomes a report."""

    merges: list[Merge]
    declines: list[Decline]
    capture: Capture
    before: OpCounts
    after: OpCounts
    verify_seconds: float = 0.0


def _objective(name: str) -> Objective:
    if name not in OBJECTIVES:
        raise UserError(f"objective {name!r} is not known; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _passes(passes: Sequence[Pass] | None) -> tuple[Pass, ...]:
    if passes is not None:
        return tuple(passes)
    return tuple(importlib.import_module("passes").DEFAULT_PASSES)


def _example(example_inputs: object, example_kwargs: Mapping[str, Any] | None) -> Example | None:
    if example_inputs is None and example_kwargs is None:
        return None
    if example_inputs is None:
        return Example((), example_kwargs or {})
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    return Example(args, example_kwargs or {})


def _compile(
    model: nn.Module, example: Example | None, plan: _Plan, passed: Passed | None = None
) -> tuple[nn.Module, _Outcome]:
    captured = capture(model, plan.exclude, example, passed)
    if captured.graph is None:
        return _compile_island(model, captured, plan, "")
    traced = captured.root
    before = _count_graph(captured.graph, traced)
    read = weights_read(captured.graph, traced)
    lifted = LiftedGraph(captured.graph, traced, _whole(captured), _propagated(captured, model, example))
    engine = Engine(
        lifted,
        plan.objective,
        lambda node: node.op == "call_module" and str(node.target) in captured.excluded,
        verify=plan.verify and not _on_meta(model),
        progress=plan.progress,
    )
    dtype = _default_dtype(traced, example)
    engine.run(plan.passes if dtype is not None else ())
    declines = [*engine.declines(), *lifted.declines()]
    if dtype is None:
        fact = "has no parameters, so the dtype of its values is not known"
        declines.append(Decline(Reason.UNKNOWN_FACT, fact, type(model).__name__, "pass example_inputs"))
    outcome = _Outcome([], declines, captured, before, before, engine.verify_seconds)
    if not plan.build:
        outcome.merges += with_weights(_planned(lifted), read)
        outcome.after = _count_plan(lifted)
        return model, outcome
    merges, emitted = _emit_all(lifted, traced, dtype)
    outcome.merges += with_weights(merges, read)
    fused = _graph_module(lifted, traced, emitted, captured, plan, outcome)
    outcome.after = _count_graph(fused.graph, fused)
    return fused, outcome


def _whole(captured: Capture) -> set[str]:
    return captured.excluded | {island.path for island in captured.islands}


def _on_meta(model: nn.Module) -> bool:
    return any(p.device.type == "meta" for p in model.parameters())


def _propagated(captured: Capture, model: nn.Module, example: Example | None) -> dict[str, tuple[int, ...]]:
    """Shapes of all values for the example inputs, by node name."""
    if example is None or captured.graph is None:
        return {}
    values = example_values(parameters_of(model.forward), example)
    module = fx.GraphModule(captured.root, captured.graph)
    given = {n: values[str(n.target).lstrip("*")] for n in module.graph.nodes if n.op == "placeholder"}
    shapes = {node.name: tuple(value.shape) for node, value in given.items() if isinstance(value, Tensor)}
    with torch.no_grad(), held(captured.root):
        ShapeProp(module).run(initial_env=given)
    for node in module.graph.nodes:
        meta = node.meta.pop("tensor_meta", None)
        if hasattr(meta, "shape"):
            shapes[node.name] = tuple(meta.shape)
    for node in captured.graph.nodes:
        node.meta.pop("tensor_meta", None)
    captured.graph.owning_module = None  # it is ours to rewrite again
    return shapes


# --- writing the result ---------------------------------------------------------------------------


def _emit_all(
    lifted: LiftedGraph, model: nn.Module, dtype: torch.dtype | None
) -> tuple[list[Merge], dict[str, nn.Module]]:
    """Write the module of every rewritten value and point its node at it."""
    names = _Names(lifted)
    merges = []
    for node in lifted.nodes():
        record = lifted.records.get(node)
        if record is None:
            continue
        path = names.choose(record, node)
        modules = emit(record.map, _target(record, model, dtype), path)
        value = node.args[0]
        for suffix, module in modules:
            with lifted.graph.inserting_before(node):
                call = lifted.graph.call_module(path + suffix, (value,))
            call.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
            names.emitted[path + suffix] = module
            value = call
        node.replace_all_uses_with(value)  # type: ignore[arg-type]
        lifted.graph.erase_node(node)
        if record.kinds:
            merges.append(_merge(record, path))
        del lifted.records[node]
    merges += [_called(call) for call in lifted.calls.values()]
    remove_dead(lifted.graph)
    return merges, names.emitted


def _planned(lifted: LiftedGraph) -> list[Merge]:
    names = _Names(lifted)
    found = [(n, lifted.records[n]) for n in lifted.nodes() if n in lifted.records]
    merges = [_merge(record, names.choose(record, node)) for node, record in found if record.kinds]
    return [*merges, *(_called(call) for call in lifted.calls.values())]


def _called(call: Call) -> Merge:
    return Merge(call.place, call.rule, _counted(call.kinds), call.text, call.note, call.sources, call.error)


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda item: -item[1]))


def _merge(record: Record, path: str) -> Merge:
    return Merge(
        path,
        " + ".join(record.rules),
        _counted(record.kinds),
        str(form_of(record.map)),
        record.note,
        tuple(record.sources),
        record.error,
    )


def _live(lifted: LiftedGraph) -> set[fx.Node]:
    """Nodes that the output needs; constants that only folded weights read are not among them."""
    work = [n for n in lifted.graph.nodes if n.op == "output" or has_effect(n)]
    seen = set(work)
    while work:
        for source in work.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                work.append(source)
    return seen


class _Names:
    """Readable, unique module paths for what is emitted."""

    def __init__(self, lifted: LiftedGraph) -> None:
        self.taken = {str(n.target) for n in _live(lifted) if n.op in ("call_module", "get_attr")} - {PENDING}
        self.emitted: dict[str, nn.Module] = {}

    def choose(self, record: Record, node: fx.Node) -> str:
        """The path of the merged modules' common ancestor, or of the largest part where that is in use."""
        paths = [s.split(":")[0] for s in record.sources if ":" not in s or s.split(":")[0]]
        paths = [p for p in paths if p] or [node.name]
        convs = [p for p in paths if p.rpartition(".")[2] not in ("norm", "bn")] or paths
        for path in (common_path(paths), common_path(convs), *convs, *paths):
            if path and self._free(path):
                self.taken.add(path)
                return path
        base = (common_path(convs) or convs[0]).replace(".", "_")
        path = next(p for i in itertools.count(1) if self._free(p := f"{base}_fused{i}"))
        self.taken.add(path)
        return path

    def _free(self, path: str) -> bool:
        return not any(t == path or t.startswith(path + ".") or path.startswith(t + ".") for t in self.taken)


def _default_dtype(model: nn.Module, example: Example | None) -> torch.dtype | None:
    """The dtype of weights that were merged from none: the model's, or the example's."""
    given = () if example is None else (*example.args, *example.kwargs.values())
    tensors = [*model.parameters(), *model.buffers(), *(x for x in given if isinstance(x, Tensor))]
    return next((t.dtype for t in tensors if t.is_floating_point()), None)


def _target(record: Record, model: nn.Module, dtype: torch.dtype | None) -> Target:
    """dtype, device, requires_grad and memory format of the weights that were merged."""
    for source in record.sources:
        tensors: list[Tensor] = []
        try:
            owner = model.get_submodule(source.split(":")[0])
            tensors = [*owner.parameters(), *owner.buffers()]
        except AttributeError:
            continue
        floats = [t for t in tensors if t.is_floating_point()]
        if floats:
            last = any(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
                       for t in floats)  # fmt: skip
            return Target(floats[0].dtype, floats[0].device, any(t.requires_grad for t in floats), last)
    parameters: list[Tensor] = [t for t in model.parameters() if t.is_floating_point()]
    floats = parameters or [t for t in model.buffers() if t.is_floating_point()]
    if not floats:
        return Target(dtype or torch.get_default_dtype())
    return Target(floats[0].dtype, floats[0].device, any(t.requires_grad for t in parameters))


def _graph_module(
    lifted: LiftedGraph,
    model: nn.Module,
    emitted: dict[str, nn.Module],
    captured: Capture,
    plan: _Plan,
    outcome: _Outcome,
) -> fx.GraphModule:
    """A GraphModule that owns copies of what is left of the model, and the emitted modules."""
    root = nn.Module()
    memo: dict[int, Any] = {}
    held = [n for n in lifted.graph.nodes if n.op == "call_module"] + [
        n for n in lifted.graph.nodes if n.op == "get_attr"
    ]
    for node in held:  # modules first: a parameter read by itself may belong to one of them
        path = str(node.target)
        if path in emitted:
            _attach(root, path, emitted[path])
            continue
        if _has(root, path):
            continue
        original = attribute(model, path)
        if node.op == "call_module" and path in {i.path for i in captured.islands}:
            own, inner = _compile_island(original, capture_nothing(original, captured, path), plan, path)
            outcome.merges += inner.merges
            outcome.declines += inner.declines
            outcome.verify_seconds += inner.verify_seconds
        else:
            own = copied(original, memo) if isinstance(original, nn.Module) else copy.deepcopy(original, memo)
            if getattr(own, "inplace", False) is True and not node.meta.get("aliased"):
                own.inplace = False
        _attach(root, path, own)
    for node in lifted.graph.nodes:
        if (
            node.op == "call_method"
            and node.target == "view"
            and not any(isinstance(a, torch.dtype) for a in node.args)
        ):
            node.target = "reshape"  # a merged value need not lie in memory as the original did
    root.training = False
    lifted.graph._tracer_cls = SignatureTracer  # unpickling traces again
    fused = fx.GraphModule(root, lifted.graph, class_name=type(model).__name__)
    for module in fused.modules():
        if type(module) is nn.Module:
            module.training = False  # containers; what was copied keeps its own mode
    return fused


def capture_nothing(model: nn.Module, captured: Capture, path: str) -> Capture:
    """The capture of a module that is known not to trace."""
    return Capture(model, None, [i for i in captured.islands if i.path == ""], _below(captured.excluded, path))


def _below(paths: set[str], parent: str) -> set[str]:
    """The paths below a module, seen from there."""
    return {path.removeprefix(f"{parent}.") for path in paths if path.startswith(f"{parent}.")}


def _attach(root: nn.Module, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        if not hasattr(owner, parent):
            owner.add_module(parent, nn.Module())
        owner = getattr(owner, parent)
    if isinstance(value, nn.Module):
        owner.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        owner.register_parameter(name, value)
    elif isinstance(value, Tensor):
        owner.register_buffer(name, value)
    else:
        setattr(owner, name, value)


def _has(root: nn.Module, path: str) -> bool:
    try:
        attribute(root, path)
    except AttributeError:
        return False
    return True


# --- islands --------------------------------------------------------------------------------------


def _compile_island(model: nn.Module, captured: Capture, plan: _Plan, path: str) -> tuple[nn.Module, _Outcome]:
    """A module whose own forward stays as it is; the children that it only calls are compiled in place."""
    from repfx.islands import called_children

    result = model if not plan.build else copied(model)
    outcome = _Outcome([], [], captured, OpCounts(), OpCounts())
    types = tuple(e for e in plan.exclude if isinstance(e, type))
    for name, passed in called_children(model):
        child = model.get_submodule(name)
        inner = replace(plan, exclude=(*types, *_below(captured.excluded, name)))
        if _has_own_hooks(child) or not any(True for _ in child.children()) or name in captured.excluded:
            continue
        compiled, part = _compile(child, None, inner, passed)
        where = f"{path}.{name}" if path else name
        outcome.merges += [below(m, where) for m in part.merges]
        outcome.declines += [replace(d, subject=f"{where}.{d.subject}") for d in part.declines]
        outcome.verify_seconds += part.verify_seconds
        outcome.capture.islands.extend(replace(i, path=f"{where}.{i.path}") for i in part.capture.islands)
        if plan.build and part.merges:
            parent, _, leaf = name.rpartition(".")
            setattr(result.get_submodule(parent), leaf, compiled)
    return result, outcome


def _has_own_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


# --- counting and reporting -----------------------------------------------------------------------

_FUNCTION_KINDS = {
    "conv1d": "convolutions", "conv2d": "convolutions", "conv3d": "convolutions", "linear": "linears",
    "batch_norm": "batch_norms", "add": "adds", "iadd": "adds", "sub": "adds", "isub": "adds", "mul": "muls",
    "imul": "muls", "truediv": "muls", "div": "muls", "cat": "concats", "concat": "concats", "stack": "concats",
    "chunk": "splits", "split": "splits", "index_select": "permutations", "conv_transpose1d": "convolutions",
    "conv_transpose2d": "convolutions", "conv_transpose3d": "convolutions",
}  # fmt: skip


def _count_graph(graph: fx.Graph, root: nn.Module) -> OpCounts:
    """Operations that one forward of the graph executes, from structure (no input needed)."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            counts.update(_count_module(root.get_submodule(str(node.target))))
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            kind = _FUNCTION_KINDS.get(name.rstrip("_"))
            if kind is not None and node.all_input_nodes and not is_size(node):
                counts[kind] += 1
    return OpCounts(**counts, parameters=sum(p.numel() for p in root.parameters()))


def _count_module(module: nn.Module) -> Counter[str]:
    from repfx.modules import BorderTerm, ChannelOrder, ScaleShift

    counts: Counter[str] = Counter()
    for part in module.modules():
        match part:
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                counts["convolutions"] += 1
            case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
                counts["convolutions"] += 1
            case nn.Linear():
                counts["linears"] += 1
            case nn.modules.batchnorm._BatchNorm():
                counts["batch_norms"] += 1
            case ChannelOrder():
                counts["permutations"] += 1
            case ScaleShift():
                counts["muls"] += 1
            case BorderTerm():
                counts["border_terms"] += 1
    return counts


def _count_plan(lifted: LiftedGraph) -> OpCounts:
    counts: Counter[str] = Counter()
    parameters = 0
    for node in lifted.graph.nodes:
        record = lifted.records.get(node)
        if record is None:
            continue
        form = form_of(record.map)
        kind = {
            "conv": "convolutions",
            "transposed conv": "convolutions",
            "linear": "linears",
            "scale": "muls",
            "copy": "permutations",
        }.get(form.kind.value)
        if kind is not None:
            counts[kind] += 1
        counts["border_terms"] += form.borders
        counts["permutations"] += (form.gather is not None and kind == "convolutions") + (form.order is not None)
        parameters += form.parameters
    left = [n for n in lifted.graph.nodes if n not in lifted.records]
    seen: set[str] = set()
    for node in left:
        if node.op == "call_module":
            module = lifted.root.get_submodule(str(node.target))
            counts.update(_count_module(module))
            if str(node.target) not in seen:
                seen.add(str(node.target))
                parameters += sum(p.numel() for p in module.parameters())
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            kind = _FUNCTION_KINDS.get(name.rstrip("_"))
            if kind is not None and node.all_input_nodes and not is_size(node):
                counts[kind] += 1
        elif node.op == "get_attr":
            value = attribute(lifted.root, str(node.target))
            parameters += value.numel() if isinstance(value, nn.Parameter) else 0
    return OpCounts(**{k: int(v) for k, v in counts.items()}, parameters=parameters)


def _report(model: nn.Module, fused: nn.Module, outcome: _Outcome, plan: _Plan, seconds: float) -> Report:
    name = getattr(model, "default_cfg", {}).get("architecture") if hasattr(model, "default_cfg") else None
    return Report(
        model=name or type(model).__name__,
        objective=plan.objective.name,
        merges=tuple(outcome.merges),
        declines=tuple(outcome.declines),
        islands=tuple(outcome.capture.islands),
        conditions=tuple(outcome.capture.conditions),
        before=outcome.before,
        after=outcome.after,
        compile_seconds=seconds,
        verify_seconds=outcome.verify_seconds,
    )


def _measured(report: Report, model: nn.Module, fused: nn.Module, example: Example, verify: bool) -> Report:
    """The report with operations counted in a real forward, and the whole model compared."""
    started = time.perf_counter()
    args, kwargs = example.args, example.kwargs
    with unchanged(model), unchanged(fused), held(model), held(fused):
        before, after = count_operations(model, args, kwargs), count_operations(fused, args, kwargs)
    equivalence: Equivalence | None = verify_models(model, fused, args, example_kwargs=kwargs) if verify else None
    seconds = report.verify_seconds + time.perf_counter() - started
    return replace(report, before=before, after=after, equivalence=equivalence, verify_seconds=seconds)


__all__ = ["OBJECTIVES", "Reason", "explain", "key_map", "reparameterize", "report"]
