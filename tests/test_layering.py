"""The layers of docs/architecture.md hold: who may import whom, and that every import order works."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("repfx", "passes", "repnext")

# A room imports only rooms that stand before it.  A new file needs a place here.
LAYERS: dict[str, tuple[str, ...]] = {
    "values": (
        "repfx.decline",
        "repfx.incidence",
        "repfx.values",
        "repfx.kernels",
        "repfx.affine",
        "repfx.makers",
        "repfx.parallel",
        "repfx.serial",
        "repfx.form",
        "repfx.ops",
        "repfx.modules",
        "repfx.report",
    ),
    "reading": (
        "repfx.messages",
        "repfx.aten",
        "repfx.walking",
        "repfx.functional",
        "repfx.introspection",
        "repfx.reach",
        "repfx.arguments",
        "repfx.islands",
        "repfx.inplace",
        "repfx.dead",
        "repfx.sizes",
        "repfx.keywords",
        "repfx.recording",
        "repfx.state",
        "repfx.constants",
        "repfx.shapes",
        "repfx.questions",
        "repfx.traced",
        "repfx.surroundings",
        "repfx.unread",
        "repfx.tracing",
        "repfx.example_tracer",
        "repfx.leaks",
        "repfx.worlds",
        "repfx.spelling",
        "repfx.capture",
        "repfx.lifting",
        "repfx.graph",
        "repfx.alike",
        "repfx.attention",
        "repfx.strands",
        "repfx.regions",
        "repfx.agreement",
    ),
    "deciding": ("repfx.cost", "repfx.objective", "repfx.protocol", "repfx.absorbing"),
    "passes": ("passes",),
    "writing": (
        "repfx.emission",
        "repfx.attending",
        "repfx.layout",
        "repfx.depthwise",
        "repfx.verification",
        "repfx.precision",
        "repfx.equivalence",
        "repfx.inputs",
        "repfx.whole",
        "repfx.expressions",
        "repfx.repeating",
        "repfx.building",
        "repfx.rewriting",
        "repfx.sharing",
        "repfx.naming",
        "repfx.assembly",
    ),
    "composing": ("repfx.attributes", "repfx.keys", "repfx.counting", "repfx.compilation", "repfx.compiler", "repfx"),
    "outside": (
        "repfx.files",
        "repfx.weights",
        "repfx.models",
        "repfx.checkpoint",
        "repfx.layered",
        "repfx.drawing",
        "repfx.export",
        "repfx.cli",
    ),
}
ORDER = [room for rooms in LAYERS.values() for room in rooms]
CALL_TIME = {("repfx.compiler", "passes"), ("repfx.models", "repnext")}  # looked up by name, when called


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


def test_every_file_has_a_layer_and_every_layer_has_files() -> None:
    rooms = {room(module) for module in MODULES if not module.startswith("repnext")}
    assert not rooms - set(ORDER), "name the layer of these in LAYERS and in docs/architecture.md"
    assert not set(ORDER) - rooms, "these rooms are gone"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) in ORDER))
def test_a_module_imports_only_what_stands_before_it(module: str) -> None:
    own = room(module)
    for imported in imports(module):
        other = room(imported)
        if other == own:
            continue
        assert other in ORDER, f"{module} imports {imported}"
        assert ORDER.index(other) < ORDER.index(own), f"{module} imports {imported}, which stands after it"


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
