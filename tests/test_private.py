"""What is read that is nobody's promise: frames, bytecode and source in one file, torch's private names in this table.

A private name may be gone in the next torch.  Each has its reason here, and a test that goes red when it is gone.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = sorted((*(ROOT / "repfx").rglob("*.py"), *(ROOT / "passes").rglob("*.py")))
LOOKING = {  # at frames, bytecode, exception tables and source text
    "_getframe", "currentframe", "f_back", "f_code", "f_lasti", "f_locals", "f_globals", "f_lineno", "getsource",
    "getsourcelines", "exception_entries", "get_instructions", "co_code", "co_consts", "co_names", "co_flags",
    "co_filename", "co_qualname", "tb_frame", "tb_lineno", "tb_next", "__traceback__", "settrace", "setprofile",
}  # fmt: skip
MAY_LOOK = {
    "introspection.py": LOOKING,
    "reach.py": {"co_filename"},  # hands a function's file to `is_library`
    "unread.py": {"co_filename"},
}
PRIVATE = {
    "_modules": "children by name: `named_children` leaves out those that are there twice",
    "_parameters": "a module's own, as it registered them",
    "_buffers": "as _parameters",
    "_forward_hooks": "whether a call is more than the forward; torch has no other way to ask",
    "_forward_pre_hooks": "as _forward_hooks",
    "_backward_hooks": "as _forward_hooks",
    "_state_dict_hooks": "as _forward_hooks, of loading",
    "_BatchNorm": "the base of all batch norms, of other packages too",
    "_InstanceNorm": "as _BatchNorm",
    "_DropoutNd": "as _BatchNorm",
    "_ConvNd": "as _BatchNorm",
    "_make_wrapper_subclass": "how the manual of torch makes a tensor without memory",
    "_schema": "which arguments an operation writes to",
    "_overloadname": "that `view(dtype)` reads memory as something else",
    "_orig_mod": "what `torch.compile` has wrapped",
    "_pytree": "containers as torch takes them apart",
    "_python_dispatch": "TorchDispatchMode, which the manual names by this path",
    "_subclasses": "FakeTensorMode, which the manual names by this path",
    "_ops": "OpOverload and HigherOrderOperator: what an exported program calls",
    "_symbolic_trace": "`_patch_function` for `*args`; `is_fx_tracing`, which models ask",
    "_patch_function": "as _symbolic_trace",
    "_CircularPadNd": "as _BatchNorm, of pads",
    "_ConstantPadNd": "as _CircularPadNd",
    "_ReflectionPadNd": "as _CircularPadNd",
    "_ReplicationPadNd": "as _CircularPadNd",
    "_call_impl": "whether a class does more in a call than its forward",
    "_non_persistent_buffers_set": "which buffers a state_dict leaves out",
    "_assert_tensor_metadata": "an operation that exported programs hold, and that computes nothing",
    "_tracer_cls": "what a GraphModule is traced with again when it is unpickled",
    "_C": "ScriptMethod: a scripted function is called past its class",
}
PYTHONS = {"_replace", "_fields", "_asdict", "_getframe", "_ParameterKind", "_lru_cache_wrapper"}


def attributes(tree: ast.Module) -> set[str]:
    """Every name that a file reads as an attribute or imports from somewhere."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found |= {*node.module.split("."), *(name.name for name in node.names)}
    return found


def defined(tree: ast.Module) -> set[str]:
    """Every name that a file gives to a function, class, attribute or variable."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store(), value=ast.Name(id="self")):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return found


TREES = {path: ast.parse(path.read_text()) for path in FILES}


def test_one_file_looks_at_frames_bytecode_and_source() -> None:
    for path, tree in TREES.items():
        looked = attributes(tree) & LOOKING
        assert looked <= MAY_LOOK.get(path.name, set()), path


def test_every_look_has_its_reason() -> None:
    tree = TREES[ROOT / "repfx" / "introspection.py"]
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef) and not node.name.startswith(("_", "is_"))
        if public:
            assert "Why:" in (ast.get_docstring(node) or ""), node.name  # type: ignore[attr-defined, arg-type]


def test_torchs_private_names_are_known() -> None:
    own = set().union(*map(defined, TREES.values()))
    used: dict[str, list[str]] = defaultdict(list)
    for path, tree in TREES.items():
        for name in attributes(tree):
            private = name.startswith("_") and not name.endswith("__") and name not in PYTHONS
            if private and (name in PRIVATE or name not in own):
                used[name].append(path.name)
    assert set(used) - set(PRIVATE) == set(), dict(used)
    assert set(PRIVATE) - set(used) == set(), "no longer used"
