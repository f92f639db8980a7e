"""Operations counted from structure: of a traced graph, and of a plan whose modules are not written yet."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from repfx.constants import attribute
from repfx.form import Kind, form_of
from repfx.graph import LiftedGraph
from repfx.inplace import is_size
from repfx.modules import BorderTerm, ChannelOrder, ScaleShift, module_at
from repfx.naming import live
from repfx.report import OpCounts

_FUNCTION_KINDS = {
    "conv1d": "convolutions", "conv2d": "convolutions", "conv3d": "convolutions", "linear": "linears",
    "batch_norm": "batch_norms", "add": "adds", "iadd": "adds", "sub": "adds", "isub": "adds", "mul": "muls",
    "imul": "muls", "truediv": "muls", "div": "muls", "cat": "concats", "concat": "concats", "stack": "concats",
    "chunk": "splits", "split": "splits", "index_select": "permutations", "conv_transpose1d": "convolutions",
    "conv_transpose2d": "convolutions", "conv_transpose3d": "convolutions",
}  # fmt: skip


def _kind_of_call(node: fx.Node) -> str | None:
    """What a function or method that is called counts as."""
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes or is_size(node):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return _FUNCTION_KINDS.get(name.rstrip("_"))


def count_graph(graph: fx.Graph, root: nn.Module) -> OpCounts:
    """Operations that one forward of the graph executes, from structure (no input needed)."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            counts.update(count_module(module_at(root, str(node.target))))
        elif (kind := _kind_of_call(node)) is not None:
            counts[kind] += 1
    return OpCounts(**counts, parameters=sum(p.numel() for p in root.parameters()))


def count_module(module: nn.Module) -> Counter[str]:
    """What one call of a module counts as, its parts included."""
    counts: Counter[str] = Counter()
    for part in module.modules() if module._modules else (module,):
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
