"""The rooms of docs/architecture.md hold: who may import whom, through which face; and every import order works."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("repfx", "passes", "repnext")

# A room imports only from rooms that stand before it.  A new file belongs to one of these rooms.
ORDER = (
    "repfx.decline",
    "repfx.errors",
    "repfx.extras",
    "repfx.plugins",
    "repfx.introspection",
    "repfx.algebra",
    "repfx.layers",
    "repfx.reporting",
    "repfx.graph",
    "repfx.state",
    "repfx.tracing",
    "repfx.capture",
    "repfx.lifting",
    "repfx.emission",
    "repfx.attention",
    "repfx.rewriting",
    "passes",
    "repfx.verification",
    "repfx.pipeline",
    "repfx.compiler",
    "repfx",
    "repfx.io",
    "repfx.export",
    "repfx.drawing",
    "repfx.cli",
)
CALL_TIME = {("repfx.compiler", "passes"), ("repfx.io.model_names", "repnext")}  # looked up by name, when called


def modules() -> dict[str, Path]:
    """Every module of the three packages by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """Our own modules that a file imports anywhere in it, inside functions too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names: list[str] = []
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(level=0, module=str(source), names=aliases):
                names = [f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in aliases]
            case ast.ImportFrom():
                raise AssertionError(f"{module} imports relatively; write the whole name")
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def room(module: str) -> str:
    """The room that a module stands in: itself, or the subpackage or package it is part of."""
    parts = module.split(".")
    return parts[0] if parts[0] != "repfx" else ".".join(parts[:2])


def face_of(name: str) -> set[str]:
    """What a room exports."""
    for node in ast.parse(MODULES[name].read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return set(ast.literal_eval(value))
    return set()


def test_every_file_is_in_a_room_and_every_room_has_files() -> None:
    rooms = {room(module) for module in MODULES if not module.startswith("repnext")}
    assert not rooms - set(ORDER), "name the place of these in ORDER and in docs/architecture.md"
    assert not set(ORDER) - rooms, "these rooms are gone"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) in ORDER))
def test_a_module_imports_only_from_rooms_before_its_own(module: str) -> None:
    own = room(module)
    for imported in imports(module):
        other = room(imported)
        if other == own:
            continue
        assert other in ORDER, f"{module} imports {imported}"
        assert ORDER.index(other) < ORDER.index(own), f"{module} imports {imported}, which stands after it"


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) in ORDER))
def test_other_rooms_are_entered_through_their_face(module: str) -> None:
    foreign = [name for name in imports(module) if room(name) not in (room(module), name)]
    deep = [name for name in foreign if name.rpartition(".")[2] not in face_of(room(name))]
    assert deep == [], f"{module} reaches into other rooms; import from their face"


@pytest.mark.parametrize("name", [room for room in ORDER if room in MODULES and MODULES[room].name == "__init__.py"])
def test_a_face_says_what_the_room_owns_and_hides_none_of_its_files(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))
    exported = {n for n in face_of(name) if not inspect.ismodule(getattr(importlib.import_module(name), n))}
    files = {path.stem for path in MODULES[name].parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not exported & files, "a name of the face has the name of a file, which `import` would then not find"


def test_passes_never_import_the_package_root() -> None:
    roots = [module for module in MODULES if module.startswith("passes") and "repfx" in imports(module)]
    assert roots == []


def test_the_model_family_knows_nothing_of_the_compiler() -> None:
    foreign = {(m, i) for m in MODULES if m.startswith("repnext") for i in imports(m) if not i.startswith("repnext")}
    assert foreign == set()


def test_the_upward_edges_are_looked_up_by_name_when_called() -> None:
    found = set()
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                    found.add((module, name))
    assert found == CALL_TIME


FORKING = """
import importlib, itertools, os, sys
import networkx, numpy, safetensors, rich, torch, typer, timm, torchvision, matplotlib  # not ours, so shared

for order in {orders!r}:
    child = os.fork()
    if child == 0:
        try:
            for name in order:
                importlib.import_module(name)
        except BaseException as error:
            print(f"import {{', '.join(order)}}: {{type(error).__name__}}: {{error}}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_every_import_order_works() -> None:
    orders = [*itertools.permutations(PACKAGES), *((module,) for module in sorted(MODULES))]
    code = FORKING.format(orders=orders)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
