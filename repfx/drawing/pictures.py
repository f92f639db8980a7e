"""Pictures: one module of a network before and after, as two graphs side by side.

Owns: fx graphs -> networkx graphs of executed operations.  `ink` makes a matplotlib figure of them.  Values run
from top to bottom.  Weights, constants and operations that do nothing (Identity, eval dropout, taking
one part of a split) are left out; nested sums are one sum.  A network that does not trace as a whole is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import networkx as nx
from torch import fx, nn

from repfx.capture import capture
from repfx.compiler import report
from repfx.drawing.boxes import Box
from repfx.errors import UserError
from repfx.extras import require
from repfx.graph import OPERATIONS, Constants, Draws, OpInfo, OpKind, name_of, operation_named, place_of
from repfx.io import check_writable, whole_output
from repfx.layers import BorderTerm

ENDINGS = (".png", ".svg", ".pdf")
CALLS = ("call_function", "call_method", "call_module")
BORDER_AXES: dict[tuple[bool, ...], str] = {
    (False, True): "rows",
    (True, False): "columns",
}  # what is free -> over which it varies
FILLS = {  # what kinds of operations are drawn as; those left out are drawn as "other"
    OpKind.CONVOLUTION: "convolution",
    OpKind.TRANSPOSED: "convolution",
    OpKind.LINEAR: "linear",
    OpKind.BATCH_NORM: "norm",
    OpKind.NORM: "norm",
    OpKind.SCALE_SHIFT: "norm",
    OpKind.BORDER_TERM: "border term",
    OpKind.ADD: "add",
    OpKind.CONCAT: "split, concatenate",
    OpKind.SPLIT: "split, concatenate",
    OpKind.PERMUTATION: "split, concatenate",
    OpKind.ACTIVATION: "activation",
}
LABELS = {  # where the code's own word would not do
    OpKind.CONVOLUTION: "conv",
    OpKind.TRANSPOSED: "transposed conv",
    OpKind.BATCH_NORM: "batch norm",
    OpKind.NORM: "norm",
    OpKind.SCALE_SHIFT: "scale, shift",
    OpKind.PERMUTATION: "reorder",
}


def draw(model: nn.Module, fused: nn.Module, at: str, path: str | Path) -> Path:
    """Draw the module `at` of `model`, and what became of it in `fused`, to a .png, .svg or .pdf file.

    Args:
        model: the network before.
        fused: `repfx.reparameterize(model)`.
        at: module path in `model`, e.g. "stages.0.blocks.0"; "" for the whole network.
        path: where the picture goes.

    Raises:
        UserError: no such module, an unknown ending, no matplotlib, or a network that torch.fx cannot trace.
    """
    path = Path(path)
    check_drawable(path)
    from repfx.drawing.ink import figure_of  # it needs matplotlib, which an extra brings

    record = report(fused)
    before, after = operations_of(model, at), operations_after(fused, at)
    figure = figure_of(
        [("before", before), ("after", after)], f"{record.model}  {at}".rstrip(), f"objective {record.objective}"
    )
    with whole_output(path) as staged:
        figure.savefig(staged, dpi=144)
    return path


def check_drawable(path: Path) -> None:
    """Raise `UserError` unless a picture could be written at `path` as things stand."""
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: unknown ending; a picture ends in {', '.join(ENDINGS)}.")
    require(f"{path}: drawing it", "matplotlib")
    check_writable(path)


def operations_of(model: nn.Module, at: str = "") -> nx.DiGraph[str]:
    """The operations inside the module `at`: nodes carry a `box`.  Raises `UserError`."""
    if at not in dict(model.named_modules()):
        raise UserError(f"{at!r}: {type(model).__name__} has no such module.")
    graph = capture(model).graph
    if graph is None:
        raise UserError(f"{type(model).__name__}: does not trace as a whole; draw one of its submodules.")
    return _operations(graph, model, lambda node: _within(place_of(node), at))


def operations_after(fused: nn.Module, at: str = "") -> nx.DiGraph[str]:
    """The operations of a compiled network that came out of the module `at`.  Raises `UserError`."""
    if not isinstance(fused, fx.GraphModule):
        raise UserError(f"{type(fused).__name__}: does not trace as a whole; draw one of its submodules.")
    merges = report(fused).merges
    merged = {merge.path for merge in merges if any(_within(source, at) for source in merge.sources)}
    from_inside = {f"{path}{suffix}" for path in merged for suffix in ("", "_gather", "_order")}
    from_outside = {merge.path for merge in merges} - merged

    def inside(node: fx.Node) -> bool:
        place = place_of(node)
        return place in from_inside or (_within(place, at) and place not in from_outside)

    return _operations(fused.graph, fused, inside)


def _within(place: str, at: str) -> bool:
    path = place.split(":")[0]
    return not at or path == at or path.startswith(f"{at}.")


# --- what is executed -----------------------------------------------------------------------------


def _operations(graph: fx.Graph, root: nn.Module, inside: Callable[[fx.Node], bool]) -> nx.DiGraph[str]:
    """The chosen nodes of an fx graph, what they read from outside, and one output."""
    picture: nx.DiGraph[str] = nx.DiGraph()
    constants = Constants(root)
    names: dict[fx.Node, str] = {}  # fx node -> name of the box that makes its value

    def value(node: fx.Node) -> str:
        if node not in names:
            names[node] = node.name
            picture.add_node(node.name, box=Box("input", "value"))
        return names[node]

    executed = [node for node in graph.nodes if node.op in CALLS and not constants.is_constant(node)]
    chosen = [node for node in executed if inside(node)]
    for node in chosen:
        sources = [source for source in node.all_input_nodes if not constants.is_constant(source)]
        if _is_no_op(node, root):
            names[node] = value(sources[0])
            continue
        picture.add_node(node.name, box=_box(node, root))
        for source in sources:
            picture.add_edge(value(source), node.name)
        names[node] = _with_borders(picture, node, root)
    for name in dict.fromkeys(names[node] for node in _results(chosen)):
        picture.add_node(f"output of {name}", box=Box("output", "value"))
        picture.add_edge(name, f"output of {name}")
    _flatten_sums(picture)
    return picture


def _info(node: fx.Node, root: nn.Module) -> OpInfo | None:
    """What the table of operations says of a node: of what it is like, whatever it computes."""
    if node.op == "call_module":
        return OPERATIONS.like(root.get_submodule(str(node.target)))
    return operation_named(node)


def _results(chosen: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes that are read by others than the chosen, or by nothing."""
    made = set(chosen)
    return [node for node in chosen if not node.users or not made.issuperset(node.users)]


def _is_no_op(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node does nothing that is drawn: it hands a value on, or takes one part of a split."""
    info = _info(node, root)
    if info is None:
        return False
    dropout = info.kind is OpKind.COPY and info.draws is not Draws.NEVER
    return info.kind is OpKind.ITEM or dropout or info.name in ("identity", "contiguous")


def _box(node: fx.Node, root: nn.Module) -> Box:
    """The box of one operation."""
    info = _info(node, root)
    kind = OpKind.OTHER if info is None else info.kind
    subtracts = info is not None and kind is OpKind.ADD and info.name != "add"  # which no longer sum swallows
    fill = "other" if subtracts else FILLS.get(kind, "other")
    if node.op != "call_module":
        return Box(_label_of_call(node, kind, info), fill)
    module = root.get_submodule(str(node.target))
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution_box(module, LABELS[kind])
    if isinstance(module, nn.Linear):
        return Box(f"linear\n{module.in_features} → {module.out_features}", fill)
    return Box(LABELS.get(kind, type(module).__name__), fill)


def _label_of_call(node: fx.Node, kind: OpKind, info: OpInfo | None) -> str:
    """A function or method by its own name, where there is no shorter word."""
    if info is None:
        return name_of(node).rstrip("_").replace("_", " ")
    if info.name == "add":
        return "+"
    if kind in (OpKind.CONVOLUTION, OpKind.TRANSPOSED, OpKind.BATCH_NORM):
        return LABELS[kind]
    return WORDS.get(info.name, info.name.replace("_", " "))


WORDS = {"sub": "subtract", "truediv": "div"}  # of operations that are not called by their own name


def _convolution_box(conv: nn.modules.conv._ConvNd, word: str) -> Box:
    lines = [f"{word} {_times(conv.kernel_size)}"]
    inputs, outputs, groups = conv.in_channels, conv.out_channels, conv.groups
    depthwise = groups == inputs > 1
    if inputs != outputs or groups == 1:
        lines.append(f"{inputs} → {outputs}")
    if groups > 1:
        lines.append(f"groups {groups}")
    if any(s != 1 for s in conv.stride):
        lines.append(f"stride {_size(conv.stride)}")
    if any(d != 1 for d in conv.dilation):
        lines.append(f"dilation {_size(conv.dilation)}")
    return Box("\n".join(lines), "depthwise convolution" if depthwise else "convolution")


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _size(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else _times(sizes)


def _with_borders(picture: nx.DiGraph[str], node: fx.Node, root: nn.Module) -> str:
    """Draw the border terms of a convolution as what they are: a map that is added to its output."""
    if node.op != "call_module":
        return node.name
    module = root.get_submodule(str(node.target))
    terms = [part for part in module.modules() if isinstance(part, BorderTerm)]
    if not terms:
        return node.name
    total = f"{node.name} + border"
    picture.add_node(total, box=Box("+", "add"))
    picture.add_edge(node.name, total)
    for index, term in enumerate(terms):
        name = f"{node.name} border {index}"
        size = _times([k for k, free in zip(term.weight.shape[1:], term.free) if not free])
        axes = BORDER_AXES.get(term.free, "rows, columns")
        picture.add_node(name, box=Box(f"border term\n{size} taps\nover {axes}", "border term"))
        picture.add_edge(name, total)
    return total


def _flatten_sums(picture: nx.DiGraph[str]) -> None:
    """Sums that only another sum reads become part of it."""
    for name in list(picture):
        readers = list(picture.successors(name))
        if len(readers) == 1 and all(picture.nodes[n]["box"].kind == "add" for n in (name, readers[0])):
            picture.add_edges_from((source, readers[0]) for source in list(picture.predecessors(name)))
            picture.remove_node(name)
