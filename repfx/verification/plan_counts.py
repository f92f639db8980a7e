"""Operations counted from structure: of a traced graph, and of a plan whose modules are not written yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from repfx.algebra import Form, Kind, form_of
from repfx.emission import live
from repfx.graph import OPERATIONS, LiftedGraph, OpKind, attribute, is_size, module_at, modules_of, operation_named
from repfx.reporting import OpCounts

_COUNTED = {  # what each kind of operation is counted as; a form's kinds are the algebra's
    OpKind.CONVOLUTION: "convolutions",
    OpKind.TRANSPOSED: "convolutions",
    OpKind.LINEAR: "linears",
    OpKind.BATCH_NORM: "batch_norms",
    OpKind.ADD: "adds",
    OpKind.MULTIPLY: "muls",
    OpKind.SCALE_SHIFT: "muls",
    OpKind.CONCAT: "concats",
    OpKind.SPLIT: "splits",
    OpKind.PERMUTATION: "permutations",
    OpKind.BORDER_TERM: "border_terms",
    Kind.CONV: "convolutions",
    Kind.TRANSPOSED: "convolutions",
    Kind.LINEAR: "linears",
    Kind.SCALE: "muls",
}


def _kind_of_call(node: fx.Node) -> str | None:
    """What a function or method that is called counts as."""
    info = operation_named(node)
    kind = None if info is None else _COUNTED.get(info.kind)
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
        info = OPERATIONS.like(part)
        kind = None if info is None else _COUNTED.get(info.kind)
        if kind is not None:
            counts[kind] += 1


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


def _kinds_of_form(form: Form) -> Counter[str]:
    """What the modules of a form count as; a slice is a view, and counts as nothing."""
    counts: Counter[str] = Counter()
    if form.kind in _COUNTED:
        counts[_COUNTED[form.kind]] += 1
        counts["permutations"] += (form.gather is not None and form.gathers) + (form.order is not None)
    elif form.kind is Kind.COPY and form.gathers:
        counts["permutations"] += 1
    counts["border_terms"] += form.borders
    return counts
