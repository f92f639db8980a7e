"""Pictures: one module of a network before and after, as two graphs side by side.

Owns: fx graphs -> networkx graphs of executed operations -> a matplotlib figure.  Values run
from top to bottom.  Weights, constants and operations that do nothing (Identity, eval dropout, taking
one part of a split) are left out; nested sums are one sum.  A network that does not trace as a whole is
refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Curve
from torch import fx, nn

from repfx.capture import capture
from repfx.compiler import report
from repfx.drawing.layered import Layout, layout_of
from repfx.errors import UserError
from repfx.graph import OPERATIONS, Constants, Draws, OpInfo, OpKind, name_of, operation_named, place_of
from repfx.io import whole_output
from repfx.layers import BorderTerm

ENDINGS = (".png", ".svg", ".pdf")
COLOURS = {  # kind of operation -> fill; chosen to differ in lightness too
    "depthwise convolution": "#9ecae9",
    "convolution": "#4c92c3",
    "linear": "#4c92c3",
    "norm": "#f7c97f",
    "border term": "#f28e6b",
    "add": "#d9d9d9",
    "split, concatenate": "#b6dfb3",
    "activation": "#cdb5e3",
    "other": "#efefef",
    "value": "#ffffff",
}
DARK = ("convolution", "linear")  # fills that carry white text
LETTER, LINE = 0.082, 0.155  # inches that one character and one line of a label take
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


@dataclass(frozen=True)
class Box:
    """One operation of a picture."""

    label: str
    kind: str  # a key of COLOURS

    @property
    def width(self) -> float:
        """Inches, wide enough for the longest line."""
        return max(0.42, 0.14 + LETTER * max(len(line) for line in self.label.split("\n")))

    @property
    def height(self) -> float:
        """Inches, high enough for all lines."""
        return 0.13 + LINE * len(self.label.split("\n"))


def draw(model: nn.Module, fused: nn.Module, at: str, path: str | Path) -> Path:
    """Draw the module `at` of `model`, and what became of it in `fused`, to a .png, .svg or .pdf file.

    Args:
        model: the network before.
        fused: `repfx.reparameterize(model)`.
        at: module path in `model`, e.g. "stages.0.blocks.0"; "" for the whole network.
        path: where the picture goes.

    Raises:
        UserError: no such module, an unknown ending, or a network that torch.fx cannot trace.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: unknown ending; a picture ends in {', '.join(ENDINGS)}.")
    record = report(fused)
    before, after = operations_of(model, at), operations_after(fused, at)
    figure = _figure(
        [("before", before), ("after", after)], f"{record.model}  {at}".rstrip(), f"objective {record.objective}"
    )
    with whole_output(path) as staged:
        figure.savefig(staged, dpi=144)
    return path


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
    merged = {m.path for m in report(fused).merges if any(_within(source, at) for source in m.sources)}
    suffixed = {f"{path}{suffix}" for path in merged for suffix in ("", "_gather", "_order")}
    others = {m.path for m in report(fused).merges} - merged

    def inside(node: fx.Node) -> bool:
        place = place_of(node)
        return place in suffixed or (_within(place, at) and place not in others)

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

    chosen = [n for n in graph.nodes if n.op not in ("placeholder", "output", "get_attr") and inside(n)]
    chosen = [n for n in chosen if not constants.is_constant(n)]
    for node in chosen:
        sources = [n for n in node.all_input_nodes if not constants.is_constant(n)]
        if _is_no_op(node, root):
            names[node] = value(sources[0])
            continue
        picture.add_node(node.name, box=_box(node, root))
        for source in sources:
            picture.add_edge(value(source), node.name)
        names[node] = _with_borders(picture, node, root)
    read = {n for node in chosen for n in node.all_input_nodes}
    made = set(chosen)
    for name in {names[n] for n in chosen if n not in read or any(u not in made for u in n.users)}:
        picture.add_node(f"output of {name}", box=Box("output", "value"))
        picture.add_edge(name, f"output of {name}")
    _flatten_sums(picture)
    return picture


def _info(node: fx.Node, root: nn.Module) -> OpInfo | None:
    """What the table of operations says of a node: of what it is like, whatever it computes."""
    if node.op == "call_module":
        return OPERATIONS.like(root.get_submodule(str(node.target)))
    return operation_named(node)


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
        axes = "rows" if term.free == (False, True) else "columns" if term.free == (True, False) else "rows, columns"
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


# --- ink ------------------------------------------------------------------------------------------


def _figure(panels: Sequence[tuple[str, nx.DiGraph[str]]], title: str, subtitle: str) -> Figure:
    """The panels side by side at one scale, a heading and a legend."""
    layouts = [layout_of(picture, _sizes(picture)) for _, picture in panels]
    spans = [_span(picture, layout) for (_, picture), layout in zip(panels, layouts)]
    top, bottom, between = 1.0, 0.62, 0.5
    widths = [max(2.4, right - left) for left, right, _ in spans]
    height = max(depth for _, _, depth in spans) + top + bottom
    width = sum(widths) + between * (len(panels) + 1)
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(between / width, 1 - 0.30 / height, title, fontsize=14, fontweight="bold", va="center")
    figure.text(1 - between / width, 1 - 0.30 / height, subtitle, fontsize=11, color="#555555", va="center", ha="right")
    at = between
    for (name, picture), layout, span, own in zip(panels, layouts, spans, widths):
        axes = figure.add_axes((at / width, bottom / height, own / width, (height - top - bottom) / height))
        axes.set_axis_off()
        middle = (span[0] + span[1]) / 2
        axes.set_xlim(middle - own / 2, middle + own / 2)
        axes.set_ylim(0.3 - (height - top - bottom), 0.3)
        _ink(axes, picture, layout)
        heading = f"{name}:  {_summary(picture)}"
        figure.text((at + own / 2) / width, 1 - 0.72 / height, heading, fontsize=11, va="center", ha="center")
        at += own + between
    kinds = {picture.nodes[n]["box"].kind for _, picture in panels for n in picture} - {"value"}
    handles = [Patch(facecolor=COLOURS[k], edgecolor="#333333", label=k) for k in COLOURS if k in kinds]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=10)
    return figure


def _sizes(picture: nx.DiGraph[str]) -> dict[str, tuple[float, float]]:
    boxes = {name: picture.nodes[name]["box"] for name in picture}
    return {name: (box.width, box.height) for name, box in boxes.items()}


def _span(picture: nx.DiGraph[str], layout: Layout) -> tuple[float, float, float]:
    """(left, right, depth) of a drawing in inches."""
    half = {name: picture.nodes[name]["box"].width / 2 for name in picture}
    left = min(x - half[name] for name, (x, _) in layout.places.items())
    right = max(x + half[name] for name, (x, _) in layout.places.items())
    bends = [x for route in layout.routes.values() for x, _ in route]
    depth = -min(y for _, y in layout.places.values())
    return min([left, *bends]) - 0.1, max([right, *bends]) + 0.1, depth + 0.6


def _summary(picture: nx.DiGraph[str]) -> str:
    counted = Counter(picture.nodes[name]["box"].kind for name in picture)
    convolutions = counted["convolution"] + counted["depthwise convolution"]
    parts = [(convolutions, "conv"), (counted["linear"], "linear"), (counted["norm"], "norm")]
    parts += [(counted["border term"], "border term"), (counted["split, concatenate"], "split or cat")]
    return ", ".join(f"{number} {word}" for number, word in parts if number) or "nothing"


def _ink(axes: Axes, picture: nx.DiGraph[str], layout: Layout) -> None:
    for a, b in picture.edges:
        low, high = picture.nodes[a]["box"].height / 2, picture.nodes[b]["box"].height / 2
        (xa, ya), (xb, yb) = layout.places[a], layout.places[b]
        points = [(xa, ya - low), *layout.routes[a, b], (xb, yb + high)]
        arrow = FancyArrowPatch(
            path=_curve(points), arrowstyle="-|>", mutation_scale=9, lw=1.1, color="#666666", shrinkA=0, shrinkB=0
        )
        axes.add_patch(arrow)
    for name, (x, y) in layout.places.items():
        box: Box = picture.nodes[name]["box"]
        corner = (x - box.width / 2 + 0.05, y - box.height / 2 + 0.05)
        shape = FancyBboxPatch(
            corner,
            box.width - 0.1,
            box.height - 0.1,
            boxstyle="round,pad=0.05,rounding_size=0.07",
            facecolor=COLOURS[box.kind],
            edgecolor="#333333",
            lw=0.0 if box.kind == "value" else 0.9,
            zorder=2,
        )
        axes.add_patch(shape)
        colour = "white" if box.kind in DARK else "#111111"
        axes.text(x, y, box.label, ha="center", va="center", fontsize=9.5, color=colour, zorder=3, linespacing=1.15)


def _curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Through the points, leaving and arriving vertically."""
    vertices, codes = [points[0]], [Curve.MOVETO]
    for (xa, ya), (xb, yb) in pairwise(points):
        half = (ya - yb) / 2
        vertices += [(xa, ya - half), (xb, yb + half), (xb, yb)]
        codes += [Curve.CURVE4] * 3
    return Curve(vertices, codes)
