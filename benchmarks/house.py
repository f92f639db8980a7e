"""The shape of the code: rooms, arrows, density; and the picture and tables of docs/architecture.md.

    python -m benchmarks.house            # print the figures
    python -m benchmarks.house --write    # draw docs/images/rooms.png, rewrite the tables of docs/architecture.md

Branches are `if`, `elif`, `for`, `while`, `except`, `case`, `assert`, ternaries, boolean operators (one for each
operand after the first), comprehensions and their conditions.  A function's complexity is one more than its
branches, those of functions inside it included.  Lines are those that hold code: no blanks, comments or docstrings.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "rooms.png"
TREES = ("repfx", "passes")
COMPLEX = 10  # a function with a higher complexity is counted


def name_of(path: Path, root: Path = ROOT) -> str:
    """The dotted name of a module."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """`repfx.algebra` of `repfx.algebra.affine`; `passes` of all passes."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "repfx" else parts[0]


def files(root: Path = ROOT) -> dict[str, Path]:
    """Every file of the compiler and its passes, by the name of its module."""
    return {name_of(path, root): path for tree in TREES for path in sorted((root / tree).rglob("*.py"))}


def imported(tree: ast.Module, known: dict[str, Path]) -> Iterator[str]:
    """Our own modules that a file imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases if alias.name in known)
            case ast.ImportFrom(module=str(source), names=aliases):
                for alias in aliases:
                    whole = f"{source}.{alias.name}"
                    if whole in known or source in known:
                        yield whole if whole in known else source


def code_lines(text: str) -> int:
    """Lines that hold code."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    held: set[int] = set()
    docs = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - docs)


def branches(tree: ast.AST) -> int:
    """Branches anywhere in a piece of code."""
    total = 0
    for node in ast.walk(tree):
        match node:
            case ast.BoolOp(values=values):
                total += len(values) - 1
            case ast.comprehension(ifs=conditions):
                total += 1 + len(conditions)
            case ast.If() | ast.IfExp() | ast.For() | ast.While() | ast.ExceptHandler() | ast.Assert():
                total += 1
            case ast.match_case():
                total += 1
    return total


@dataclass(frozen=True)
class Room:
    """What is counted of one room, or of several together."""

    files: int
    lines: int
    branches: int
    functions: int
    complex: int

    @property
    def density(self) -> float:
        """Branches per 100 lines of code."""
        return 100 * self.branches / max(self.lines, 1)


def measured(paths: list[Path]) -> Room:
    """The counts of some files."""
    lines = found = 0
    complexities = []
    for path in paths:
        text = path.read_text()
        tree = ast.parse(text)
        lines += code_lines(text)
        found += branches(tree)
        complexities += [1 + branches(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return Room(len(paths), lines, found, len(complexities), sum(c > COMPLEX for c in complexities))


def arrows(known: dict[str, Path]) -> networkx.DiGraph[str]:
    """room -> room for every import of another room."""
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    for module, path in known.items():
        graph.add_node(room_of(module))
        for other in imported(ast.parse(path.read_text()), known):
            if room_of(other) != room_of(module):
                graph.add_edge(room_of(module), room_of(other))
    return graph


def file_arrows(known: dict[str, Path]) -> int:
    """Imports from file to file, those of a face not followed."""
    return sum(len(set(imported(ast.parse(path.read_text()), known)) - {module}) for module, path in known.items())


def floors(graph: networkx.DiGraph[str]) -> dict[str, int]:
    """On which floor each room stands: above everything that it imports."""
    found: dict[str, int] = {}
    for room in reversed(list(networkx.topological_sort(graph))):
        found[room] = 1 + max((found[other] for other in graph.successors(room)), default=0)
    return found


def print_figures(known: dict[str, Path]) -> None:
    """Print all figures as a table."""
    graph = arrows(known)
    levels = floors(graph)
    table = Table(title="rooms, from the ground up")
    for column in ("room", "floor", "files", "lines", "branches per 100 lines", f"functions above {COMPLEX}"):
        table.add_column(column, justify="left" if column == "room" else "right")
    by_room: dict[str, list[Path]] = {}
    for module, path in known.items():
        by_room.setdefault(room_of(module), []).append(path)
    rows = [(room, measured(paths)) for room, paths in sorted(by_room.items(), key=lambda item: levels[item[0]])]
    for room, counts in rows:
        above = f"{counts.complex} of {counts.functions}"
        table.add_row(room, str(levels[room]), str(counts.files), str(counts.lines), f"{counts.density:.1f}", above)
    Console(width=110).print(table)
    total = measured(list(known.values()))
    print(f"{len(levels)} rooms on {max(levels.values())} floors, {graph.number_of_edges()} arrows between rooms")
    print(f"{total.files} files with {file_arrows(known)} imports of each other, {total.lines} lines of code")
    print(f"{total.density:.1f} branches per 100 lines")
    share = 100 * total.complex / total.functions
    print(f"{total.complex} of {total.functions} functions ({share:.1f} %) have a complexity above {COMPLEX}")


def first_sentence(path: Path) -> str:
    """The first line of a file's docstring, without its full stop."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].rstrip(".")


def cell(path: Path) -> str:
    """The first line of a file's docstring, in a table."""
    return first_sentence(path).replace("|", "\\|")


def ordered_rooms() -> tuple[str, ...]:
    """The rooms as `tests/test_layering.py` has them."""
    tree = ast.parse((ROOT / "tests" / "test_layering.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "ORDER":
            return tuple(ast.literal_eval(node.value))
    raise LookupError("tests/test_layering.py names no ORDER")


def page(known: dict[str, Path], text: str) -> str:
    """docs/architecture.md with its two tables as the code has them."""
    order = ordered_rooms()
    rooms = ["| room | owns |", "| --- | --- |"]
    rooms += [f"| `{shown(room, known)}` | {cell(known[room])} |" for room in order]
    owned = ["| file | owns |", "| --- | --- |"]
    for room in order:
        paths = [path for module, path in known.items() if room_of(module) == room and path.name != "__init__.py"]
        owned += [f"| `{path.relative_to(ROOT)}` | {cell(path)} |" for path in paths]
    for name, rows in (("rooms", rooms), ("files", owned)):
        marks = (f"<!-- {name}: python -m benchmarks.house --write -->", f"<!-- end of {name} -->")
        start, end = text.index(marks[0]) + len(marks[0]), text.index(marks[1])
        text = text[:start] + "\n" + "\n".join(rows) + "\n" + text[end:]
    return text


def shown(room: str, known: dict[str, Path]) -> str:
    """A room as a path."""
    path = known[room]
    return str(path.relative_to(ROOT).parent) + "/" if path.name == "__init__.py" else str(path.relative_to(ROOT))


def draw(graph: networkx.DiGraph[str], target: Path) -> None:
    """The rooms, each above those that it imports, as `repfx draw` draws; an arrow that others imply is left out."""
    from repfx.drawing.boxes import Box  # counting needs none of the code that is counted
    from repfx.drawing.ink import bare_figure_of

    picture = networkx.transitive_reduction(graph)
    for room in picture:
        picture.nodes[room]["box"] = Box(room.removeprefix("repfx."), "depthwise convolution")
    bare_figure_of(picture).savefig(target, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="rewrite docs/architecture.md's tables and picture")
    parser.add_argument("--root", type=Path, default=ROOT, help="measure another checkout")
    arguments = parser.parse_args()
    known = files(arguments.root)
    print_figures(known)
    if arguments.write:
        PAGE.write_text(page(known, PAGE.read_text()))
        draw(arrows(known), PICTURE)


if __name__ == "__main__":
    main()
