"""Ink: pictures as graphs become one matplotlib figure.  Only this file of the room needs matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path

from repfx.drawing.boxes import COLOURS, DARK, Box
from repfx.drawing.layered import Layout, layout_of


def figure_of(panels: Sequence[tuple[str, nx.DiGraph[str]]], title: str, subtitle: str) -> Figure:
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


def bare_figure_of(picture: nx.DiGraph[str]) -> Figure:
    """One picture, without heading and legend."""
    layout = layout_of(picture, _sizes(picture))
    left, right, depth = _span(picture, layout)
    figure = Figure(figsize=(right - left, depth), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(0.3 - depth, 0.3)
    _ink(axes, picture, layout)
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


def _curve(points: Sequence[tuple[float, float]]) -> Path:
    """Through the points, leaving and arriving vertically."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for (xa, ya), (xb, yb) in pairwise(points):
        half = (ya - yb) / 2
        vertices += [(xa, ya - half), (xb, yb + half), (xb, yb)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)
