"""Operations counted from structure: of a traced graph, and of a plan whose modules are not written yet."""

from __future__ import annotations

import functools
from collections import Counter

from torch import fx, nn

from repfx.constants import attribute
from repfx.form import Kind, form_of
from repfx.graph import LiftedGraph
from repfx.inplace import is_size
from repfx.modules import BorderTerm, ChannelOrder, ScaleShift, module_at
from repfx.naming import live
from repfx.report import OpCounts
from repfx.walking import modules_of

_FUNCTION_KINDS = {
    "conv1d": "convolutions", "conv2d": "convolutions", "conv3d": "convolutions", "linear": "linears",
    "batch_norm": "batch_norms", "add": "adds", "iadd": "adds", "sub": "adds", "isub": "adds", "mul": "muls",
    "imul": "muls", "truediv": "muls", "div": "muls", "cat": "concats", "concat": "concats", "stack": "concats",
    "chunk": "splits", "split": "splits", "index_select": "permutations", "conv_transpose1d": "convolutions",
    "conv_transpose2d": "convolutions", "conv_transpose3d": "convolutions",
}  # fmt: skip

_MODULE_KINDS = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "convolutions"),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "convolutions"),
    (nn.Linear, "linears"),
    (nn.modules.batchnorm._BatchNorm, "batch_norms"),
    (ChannelOrder, "permutations"),
    (ScaleShift, "muls"),
    (BorderTerm, "border_terms"),
)


def _kind_of_call(node: fx.Node) -> str | None:
    """What a function or method that is called counts as."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    kind = _FUNCTION_KINDS.get(name.rstrip("_"))
    return None if kind is None or not node.all_input_nodes or is_size(node) else kind


def count_graph(graph: fx.Graph, root: nn.Module) -> OpCounts:
    """Operations that one forward of the graph executes, from structure (no input needed)."""
    counts: Counter[str] = Counter()
    modules = modules_of(root)
    found = dict(modules)
    for node in graph.nodes:
        if node.op == "call_module":
            path = str(node.target)
            _count(found[path] if path in found else module_at(root, path), counts)
        elif (kind := _kind_of_call(node)) is not None:
            counts[kind] += 1
    held = {id(p): p for _, module in modules for p in module._parameters.values() if p is not None}
    return OpCounts(**counts, parameters=sum(p.numel() for p in held.values()))


def count_module(module: nn.Module) -> Counter[str]:
    """What one call of a module counts as, its parts included."""
    counts: Counter[str] = Counter()
    _count(module, counts)
    return counts


def _count(module: nn.Module, counts: Counter[str]) -> None:
    for part in module.modules() if module._modules else (module,):
        kind = _kind_of_module(type(part))  # type: ignore[arg-type]  # the hash is the type's, not its instances'
        if kind is not None:
            counts[kind] += 1


@functools.lru_cache(maxsize=512)
def _kind_of_module(of: type) -> str | None:
    """What a module of this type counts as."""
    return next((kind for types, kind in _MODULE_KINDS if issubclass(of, types)), None)


def count_plan(lifted: LiftedGraph) -> OpCounts:
    """What a rewritten graph will execute, before its modules are written."""
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
        if kind is not None and (form.kind is not Kind.COPY or form.gathers):  # a slice is a view
            counts[kind] += 1
        counts["border_terms"] += form.borders
        counts["permutations"] += (form.gather is not None and kind == "convolutions") + (form.order is not None)
        parameters += form.parameters
    needed = live(lifted)  # constants that only folded weights read are not written
    left = [n for n in lifted.graph.nodes if n not in lifted.records and n in needed]
    seen: set[str] = set()
    for node in left:
        if node.op == "call_module":
            module = module_at(lifted.root, str(node.target))
            counts.update(count_module(module))
            if str(node.target) not in seen:
                seen.add(str(node.target))
                parameters += sum(p.numel() for p in module.parameters())
        elif (kind := _kind_of_call(node)) is not None:
            counts[kind] += 1
        elif node.op == "get_attr":
            value = attribute(lifted.root, str(node.target))
            parameters += value.numel() if isinstance(value, nn.Parameter) else 0
    return OpCounts(**{k: int(v) for k, v in counts.items()}, parameters=parameters)
