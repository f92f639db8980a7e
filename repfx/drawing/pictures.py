"""Pictures: one module of a network before and after, as two graphs side by side.

Owns: fx graphs -> networkx graphs of executed operations -> a matplotlib figure.  Values run
from top to bottom.  Weights, constants and operations that do nothing (Identity, eval dropout, taking
one part of a split) are left out; nested sums are one sum.  A network that does not trace as a whole is
refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from repfx.graph import Constants, place_of
from repfx.io import whole_output
from repfx.layers import BorderTerm, ChannelOrder, ChannelSlice, ScaleShift

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
CALLS = ("call_function", "call_method", "call_module")
BORDER_AXES: dict[tuple[bool, ...], str] = {
    (False, True): "rows",
    (True, False): "columns",
}  # what is free -> over which it varies
NO_OPS = (nn.Identity, nn.Dropout, ChannelSlice)
ACTIVATIONS = ("relu", "relu6", "gelu", "silu", "sigmoid", "hardswish", "hardsigmoid", "tanh", "softmax")
WORDS = {"iadd": "add", "sub": "subtract", "isub": "subtract", "imul": "mul", "truediv": "div", "concat": "cat"}


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
        for box in _boxes(node, root):
            picture.add_node(node.name, box=box)
        for source in sources:
            picture.add_edge(value(source), node.name)
        names[node] = _with_borders(picture, node, root)
    for name in dict.fromkeys(names[node] for node in _results(chosen)):
        picture.add_node(f"output of {name}", box=Box("output", "value"))
        picture.add_edge(name, f"output of {name}")
    _flatten_sums(picture)
    return picture


def _results(chosen: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes that are read by others than the chosen, or by nothing."""
    made = set(chosen)
    return [node for node in chosen if not node.users or not made.issuperset(node.users)]


def _is_no_op(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), NO_OPS)
    return getattr(node.target, "__name__", node.target) in ("getitem", "contiguous", "dropout")


def _boxes(node: fx.Node, root: nn.Module) -> Iterable[Box]:
    if node.op == "call_module":
        yield _module_box(root.get_submodule(str(node.target)))
        return
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))
    word = WORDS.get(name.rstrip("_"), name.rstrip("_"))
    if word == "add":
        yield Box("+", "add")
    elif word == "batch_norm":
        yield Box("batch norm", "norm")
    elif word in ("cat", "chunk", "split", "stack", "index_select"):
        yield Box(word, "split, concatenate")
    elif word in ("conv1d", "conv2d", "conv3d"):
        yield Box("conv", "convolution")
    elif word in ACTIVATIONS:
        yield Box(word, "activation")
    else:
        yield Box(word.replace("_", " "), "other")


def _module_box(module: nn.Module) -> Box:
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return _convolution_box(module, "conv")
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return _convolution_box(module, "transposed conv")
        case nn.Linear():
            return Box(f"linear\n{module.in_features} → {module.out_features}", "linear")
        case nn.modules.batchnorm._BatchNorm():
            return Box("batch norm", "norm")
        case nn.LayerNorm() | nn.GroupNorm():
            return Box("norm", "norm")
        case ScaleShift():
            return Box("scale, shift", "norm")
        case ChannelOrder():
            return Box("reorder", "split, concatenate")
        case _:
            name = type(module).__name__
            return Box(name, "activation" if name.lower() in ACTIVATIONS else "other")


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
