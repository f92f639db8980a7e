"""Operations counted from structure: of a traced graph, and of a plan whose modules are not written yet."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from repfx.algebra import Form, Kind, form_of
from repfx.emission import live
from repfx.graph import LiftedGraph, attribute, is_size, module_at, modules_of
from repfx.layers import BorderTerm, ChannelOrder, ScaleShift
from repfx.reporting import OpCounts

_FUNCTION_KINDS = {
    "conv1d": "convolutions", "conv2d": "convolutions", "conv3d": "convolutions", "linear": "linears",
    "batch_norm": "batch_norms", "add": "adds", "iadd": "adds", "sub": "adds", "isub": "adds", "mul": "muls",
    "imul": "muls", "truediv": "muls", "div": "muls", "cat": "concats", "concat": "concats", "stack": "concats",
    "concatenate": "concats", "hstack": "concats", "vstack": "concats", "chunk": "splits", "split": "splits",
    "split_with_sizes": "splits", "unbind": "splits", "index_select": "permutations",
    "conv_transpose1d": "convolutions", "conv_transpose2d": "convolutions", "conv_transpose3d": "convolutions",
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


@dataclass
class Held:
    """What a module holds, or will hold: the operations of all its parts, and every parameter once."""

    kinds: Counter[str] = field(default_factory=Counter)
    parameters: dict[Hashable, int] = field(default_factory=dict)

    def add(self, other: Held) -> None:
        """Hold that, too."""
        self.kinds.update(other.kinds)
        self.parameters.update(other.parameters)

    def drop(self, module: nn.Module) -> None:
        """Hold the parts of a module no more; what others hold of it stays."""
        self.kinds.subtract(count_module(module))

    @property
    def counts(self) -> OpCounts:
        """As counts of one forward that runs every part once."""
        return OpCounts(**{k: n for k, n in self.kinds.items() if n}, parameters=sum(self.parameters.values()))


def held_by(module: nn.Module) -> Held:
    """What a module holds."""
    return Held(count_module(module), _parameters_of(module))


def _parameters_of(module: nn.Module) -> dict[Hashable, int]:
    held = (p for _, part in modules_of(module) for p in part._parameters.values() if p is not None)
    return {id(p): p.numel() for p in held}


def count_plan(
    lifted: LiftedGraph, shared: Mapping[fx.Node, fx.Node], islands: Mapping[str, Held]
) -> tuple[OpCounts, Held]:
    """What a rewritten graph will execute, before its modules are written, and what these will hold.

    `shared` as for `repfx.emission.assembly.emit_all`; `islands` are what the modules that do not trace will hold.
    """
    executed: Counter[str] = Counter()
    held = Held()
    needed = live(lifted)  # constants that only folded weights read are not written
    called: set[str] = set()
    for node in lifted.graph.nodes:
        record = lifted.records.get(node)
        if record is not None:
            form = form_of(record.map)
            own = _kinds_of_form(form)
            executed.update(own)
            if node not in shared:
                held.add(Held(own, {node: form.parameters}))
        elif node not in needed:
            continue
        elif node.op == "call_module":
            path = str(node.target)
            part = islands[path] if path in islands else held_by(module_at(lifted.root, path))
            executed.update(part.kinds)
            if path not in called:
                called.add(path)
                held.add(part)
        elif (kind := _kind_of_call(node)) is not None:
            executed[kind] += 1
        elif node.op == "get_attr":
            value = attribute(lifted.root, str(node.target))
            held.parameters.update({id(value): value.numel()} if isinstance(value, nn.Parameter) else {})
    executed.update(parameters=sum(held.parameters.values()))
    return OpCounts(**{kind: n for kind, n in executed.items() if n}), held


_KINDS_OF_FORMS = {
    Kind.CONV: "convolutions", Kind.TRANSPOSED: "convolutions", Kind.LINEAR: "linears", Kind.SCALE: "muls",
}  # fmt: skip


def _kinds_of_form(form: Form) -> Counter[str]:
    """What the modules of a form count as; a slice is a view, and counts as nothing."""
    counts: Counter[str] = Counter()
    if form.kind in _KINDS_OF_FORMS:
        counts[_KINDS_OF_FORMS[form.kind]] += 1
        counts["permutations"] += (form.gather is not None and form.gathers) + (form.order is not None)
    elif form.kind is Kind.COPY and form.gathers:
        counts["permutations"] += 1
    counts["border_terms"] += form.borders
    return counts
