"""A layered drawing of an acyclic graph: where its boxes stand and how its edges pass them.

Rows by longest path from the top, order within a row by barycentres (Sugiyama, Tagawa, Toda 1981), columns
by least squares.  Lengths are in inches; y grows upwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

GAP = 0.14  # inches between neighbouring boxes
ROWS_APART = 0.26  # inches between rows of boxes, and more where many edges spread out
SPREAD = 0.035  # inches more for each such edge

Size = tuple[float, float]  # (width, height)


@dataclass(frozen=True)
class Layout:
    """Centres of boxes and bends of long edges, in inches; y grows upwards."""

    places: Mapping[str, tuple[float, float]]
    routes: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]  # edge -> points on its way


def layout_of(picture: nx.DiGraph[str], sizes: Mapping[str, Size]) -> Layout:
    """The drawing of an acyclic graph whose boxes have these sizes."""
    rows, chains, widths = _rows(picture, sizes)
    above: dict[str, list[str]] = {name: [] for row in rows for name in row}
    below: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for chain in chains.values():
        for a, b in pairwise(chain):
            above[b].append(a)
            below[a].append(b)
    _order(rows, above, below)
    x = _columns(rows, above, below, widths)
    heights = [max(sizes[n][1] for n in row if n in sizes) for row in rows]
    y: dict[str, float] = {}
    at = 0.0
    for row, height, following in zip(rows, heights, [*heights[1:], 0.0]):
        y.update(dict.fromkeys(row, at))
        most = max(max(len(below[n]) for n in row), max((len(above[m]) for n in row for m in below[n]), default=0))
        at -= height / 2 + following / 2 + ROWS_APART + SPREAD * min(most - 1, 10)
    places = {name: (x[name], y[name]) for name in picture}
    level = {name: index for index, row in enumerate(rows) for name in row}
    routes = {}
    for edge, chain in chains.items():  # straight past the boxes of a row, bent between rows
        half = [(x[n], y[n], heights[level[n]] / 2) for n in chain[1:-1]]
        routes[edge] = tuple(point for a, b, h in half for point in ((a, b + h), (a, b - h)))
    return Layout(places, routes)


def _rows(
    picture: nx.DiGraph[str], sizes: Mapping[str, Size]
) -> tuple[list[list[str]], dict[tuple[str, str], list[str]], dict[str, float]]:
    """Rows of names, the chain of names each edge takes, and widths; an edge passing a row has a name there."""
    depth = {name: index for index, names in enumerate(nx.topological_generations(picture)) for name in names}
    for name in picture:
        if not picture.in_degree(name) and picture.out_degree(name):
            depth[name] = min(depth[reader] for reader in picture.successors(name)) - 1
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    widths = {name: sizes[name][0] for name in picture}
    for name in picture:
        rows[depth[name]].append(name)
    chains = {}
    for a, b in picture.edges:
        bends = [f"{a} to {b} at {level}" for level in range(depth[a] + 1, depth[b])]
        for level, bend in enumerate(bends, depth[a] + 1):
            rows[level].append(bend)
            widths[bend] = 0.1
        chains[a, b] = [a, *bends, b]
    return rows, chains, widths


def _order(rows: list[list[str]], above: Mapping[str, list[str]], below: Mapping[str, list[str]]) -> None:
    """Sort each row by the mean position of its neighbours, downwards and upwards in turn; keep the best."""
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(24):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            position = {name: i for other in rows for i, name in enumerate(other)}
            own = {name: i for i, name in enumerate(row)}
            row.sort(key=lambda n: _mean([position[m] for m in near[n]], own[n]))
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    for row, kept in zip(rows, best):
        row[:] = kept


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, list[str]]) -> int:
    position = {name: i for row in rows for i, name in enumerate(row)}
    total = 0
    for row in rows:
        ends = [(position[a], position[b]) for a in row for b in below[a]]
        total += sum(p[0] < q[0] and p[1] > q[1] for p in ends for q in ends)
    return total


def _columns(
    rows: Sequence[Sequence[str]],
    above: Mapping[str, list[str]],
    below: Mapping[str, list[str]],
    widths: Mapping[str, float],
) -> dict[str, float]:
    """Every box as near as the order and the gaps allow to the mean of its neighbours."""
    x: dict[str, float] = {}
    for row in rows:
        at = -sum(widths[name] + GAP for name in row) / 2
        for name in row:
            x[name] = at + widths[name] / 2
            at += widths[name] + GAP
    for sweep in range(60):
        for row in rows:
            wanted = [_mean([x[m] for m in (*above[name], *below[name])], x[name]) for name in row]
            if sweep >= 50:  # at last, below what feeds it
                wanted = [_mean([x[m] for m in above[name]] or [x[m] for m in below[name]], x[name]) for name in row]
            offsets, at = [], 0.0
            for index, name in enumerate(row):
                at += 0.0 if not index else (widths[row[index - 1]] + widths[name]) / 2 + GAP
                offsets.append(at)
            monotone = _nearest_monotone([w - o for w, o in zip(wanted, offsets)])
            x.update({name: m + o for name, m, o in zip(row, monotone, offsets)})
    return x


def _nearest_monotone(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` (least squares; pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            other, members = blocks.pop()
            mean, count = (mean * count + other * members) / (count + members), count + members
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
