"""A layered drawing of an acyclic graph: where its boxes stand and how its edges pass them.

Rows by longest path from the top, order within a row by barycentres (Sugiyama, Tagawa, Toda 1981), columns
by least squares.  Lengths are in inches; y grows upwards.

Why no library does this: grandalf is the one in pure Python that knows sizes of boxes, was last released in January
2023, and leads lines behind boxes of other sizes; graph-layout knows no sizes; graphviz and igraph are compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, combinations, pairwise

import networkx as nx

GAP = 0.14  # inches between neighbouring boxes
ROWS_APART = 0.26  # inches between rows of boxes, and more where many edges spread out
SPREAD = 0.035  # inches more for each such edge
MOST_SPREAD = 10  # edges, after which there is room enough
PASSING = 0.1  # inches of a row that a passing edge takes
ORDERING, SETTLING, HANGING = 24, 50, 10  # sweeps; the last, in which a box hangs below what feeds it

Size = tuple[float, float]  # (width, height)
Point = tuple[float, float]
Edge = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """Centres of boxes and bends of long edges, in inches; y grows upwards."""

    places: Mapping[str, Point]
    routes: Mapping[Edge, tuple[Point, ...]]  # edge -> points on its way


@dataclass(frozen=True)
class _Rows:
    """The boxes in rows.  An edge that passes a row has a name there, and is then a chain of links."""

    rows: list[list[str]]
    chains: Mapping[Edge, tuple[str, ...]]  # edge -> the names on its way, both ends included
    links: nx.DiGraph[str]  # from each row to the next
    sizes: Mapping[str, Size]

    def neighbours(self, name: str) -> list[str]:
        """What is linked to a name, above and then below."""
        return [*self.links.predecessors(name), *self.links.successors(name)]

    def feeding(self, name: str) -> list[str]:
        """What is linked to a name above, or below where nothing is."""
        return list(self.links.predecessors(name)) or list(self.links.successors(name))

    def positions(self) -> dict[str, int]:
        """The place of each name in its row."""
        return {name: place for row in self.rows for place, name in enumerate(row)}


def layout_of(picture: nx.DiGraph[str], sizes: Mapping[str, Size]) -> Layout:
    """The drawing of an acyclic graph whose boxes have these sizes."""
    drawing = _rows(picture, sizes)
    _order(drawing)
    x, y = _columns(drawing), _levels(drawing)
    half = {name: _height(drawing, row) / 2 for row in drawing.rows for name in row}

    def past(name: str) -> tuple[Point, Point]:
        """Straight past the boxes of a row; edges bend between rows."""
        return (x[name], y[name] + half[name]), (x[name], y[name] - half[name])

    routes = {edge: tuple(chain.from_iterable(map(past, names[1:-1]))) for edge, names in drawing.chains.items()}
    return Layout({name: (x[name], y[name]) for name in picture}, routes)


def _rows(picture: nx.DiGraph[str], sizes: Mapping[str, Size]) -> _Rows:
    """The boxes in rows, in no particular order within one."""
    depth = _depths(picture)
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for name in picture:
        rows[depth[name]].append(name)
    links: nx.DiGraph[str] = nx.DiGraph()
    links.add_nodes_from(picture)
    chains: dict[Edge, tuple[str, ...]] = {}
    all_sizes = dict(sizes)
    for a, b in picture.edges:
        passed = {level: f"{a} to {b} at {level}" for level in range(depth[a] + 1, depth[b])}
        for level, name in passed.items():
            rows[level].append(name)
            all_sizes[name] = (PASSING, 0.0)
        chains[a, b] = (a, *passed.values(), b)
        nx.add_path(links, chains[a, b])
    return _Rows(rows, chains, links, all_sizes)


def _depths(picture: nx.DiGraph[str]) -> dict[str, int]:
    """The row of each box: below all that it reads; what reads nothing stands right above its first reader."""
    depth = {name: index for index, names in enumerate(nx.topological_generations(picture)) for name in names}
    for name in picture:
        if not picture.in_degree(name) and picture.out_degree(name):
            depth[name] = min(depth[reader] for reader in picture.successors(name)) - 1
    return depth


def _order(drawing: _Rows) -> None:
    """Sort each row by the mean position of its neighbours, downwards and upwards in turn; keep the best."""
    best, fewest = [list(row) for row in drawing.rows], _crossings(drawing)
    for sweep in range(ORDERING):
        if sweep % 2:
            _sort_by(drawing, reversed(drawing.rows), drawing.links.successors)
        else:
            _sort_by(drawing, drawing.rows, drawing.links.predecessors)
        crossings = _crossings(drawing)
        if crossings < fewest:
            best, fewest = [list(row) for row in drawing.rows], crossings
    for row, kept in zip(drawing.rows, best):
        row[:] = kept


def _sort_by(drawing: _Rows, rows: Iterable[list[str]], near: Callable[[str], Iterable[str]]) -> None:
    for row in rows:
        position = drawing.positions()
        means = {name: _mean([position[other] for other in near(name)], position[name]) for name in row}
        row.sort(key=means.__getitem__)


def _crossings(drawing: _Rows) -> int:
    """How many pairs of links cross."""
    position = drawing.positions()
    total = 0
    for row in drawing.rows:
        ends = sorted((position[a], position[b]) for a, b in drawing.links.out_edges(row))
        total += sum(p[0] < q[0] and p[1] > q[1] for p, q in combinations(ends, 2))
    return total


def _columns(drawing: _Rows) -> dict[str, float]:
    """Every box as near as the order and the gaps allow to the mean of its neighbours."""
    x: dict[str, float] = {}
    for row in drawing.rows:
        widths = [drawing.sizes[name][0] for name in row]
        first = (widths[0] - sum(widths) - GAP * len(row)) / 2
        x.update((name, first + offset) for name, offset in zip(row, _offsets(widths)))
    for sweep in range(SETTLING + HANGING):
        for row in drawing.rows:
            near = drawing.neighbours if sweep < SETTLING else drawing.feeding
            wanted = [_mean([x[other] for other in near(name)], x[name]) for name in row]
            widths = [drawing.sizes[name][0] for name in row]
            x.update(zip(row, _spread(wanted, _offsets(widths))))
    return x


def _offsets(widths: Sequence[float]) -> list[float]:
    """Where the boxes of a row stand when they stand as close as they may, the first at 0."""
    return [*accumulate(((a + b) / 2 + GAP for a, b in pairwise(widths)), initial=0.0)]


def _spread(wanted: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (least squares) that keep the order and the gaps."""
    slack = _nearest_monotone([place - offset for place, offset in zip(wanted, offsets)])
    return [own + offset for own, offset in zip(slack, offsets)]


def _levels(drawing: _Rows) -> dict[str, float]:
    """How high every box stands: rows are further apart where many edges spread out."""
    y: dict[str, float] = {}
    at = 0.0
    below = [*drawing.rows[1:], []]
    for row, following in zip(drawing.rows, below):
        y.update(dict.fromkeys(row, at))
        most = max((_fan(drawing, link) for link in drawing.links.out_edges(row)), default=0)
        halves = (_height(drawing, row) + _height(drawing, following)) / 2
        at -= halves + ROWS_APART + SPREAD * min(most - 1, MOST_SPREAD)
    return y


def _fan(drawing: _Rows, link: Edge) -> int:
    """How many links leave where this one leaves, or arrive where it arrives."""
    a, b = link
    return max(drawing.links.out_degree(a), drawing.links.in_degree(b))


def _height(drawing: _Rows, row: Sequence[str]) -> float:
    return max((drawing.sizes[name][1] for name in row), default=0.0)


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
