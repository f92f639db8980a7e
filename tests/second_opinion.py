"""A second opinion on the capture: torch.export sees the same computation.

A model is read twice.  repfx captures it, before any rewriting, and writes its graph as a module; torch.export
follows the model itself.  The written module is exported too, so that both readings are graphs of ATen operations.
Two readings are equal when their outputs have the same digests: the digest of a value is made of its operation, the
constants of that operation and the digests of what it reads; that of a weight is made of its numbers.  So an
operation, a stride, a weight or an order of operands that differs is another digest, and so is everything behind it.
How often each operation is executed is compared as well, which digests do not tell.

A value that reads neither an argument nor a parameter is a constant, and known by its numbers too: repfx runs the
code that makes it, torch.export writes it down.

What the two ways of reading may differ in is written down twice, with reasons: `SAME` are the spellings that have one
digest, `MORE` the operations of which the written module may execute more.  Anything else is a difference, and
`Opinion.differences` names the operations where the two part.
"""

from __future__ import annotations

import hashlib
import operator
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from timm.layers import helpers
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_map

from benchmarks.sweep_subjects import quiet
from repfx.capture import capture, unwrapped
from repfx.emission import graph_module
from repfx.errors import first_line
from repfx.lifting import lift_graph
from repfx.pipeline.agreement import agree
from repfx.reporting import Island
from repfx.state import copied
from repfx.tracing import Example

Digest = str
Arguments = tuple[Any, ...]

SAME: Mapping[str, tuple[str, ...]] = {
    "a copy of a value is the value": ("clone", "alias", "detach", "lift_fresh_copy", "contiguous"),
    "the same numbers in the same order, and the shape says the rest": ("view", "_unsafe_view", "reshape", "flatten"),
    "a cast to the dtype and device that a value has is the value": ("_to_copy", "to"),
    "a dropout drops nothing in evaluation": ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
}
_COPIES, _VIEWS, _CASTS, _DROPOUTS = SAME.values()
MORE: Mapping[str, str] = {
    "clone": "a slice assignment is written as a function of values, which copies what it is given",
}
_LAYOUT = ("memory_format", "layout", "pin_memory", "non_blocking", "copy")  # arguments that change no number


class NotExportedError(Exception):
    """torch.export does not follow the model's own code."""


@dataclass(frozen=True)
class Operation:
    """One value of a program, and what computes it."""

    digest: Digest
    text: str  # the operation and its constants
    given: tuple[Digest, ...]
    name: str  # what the program calls the value


@dataclass(frozen=True)
class Reading:
    """What one program computes."""

    outputs: tuple[tuple[str, Digest], ...]  # what becomes of each, and what it is
    structure: str  # how the outputs are put together
    operations: tuple[Operation, ...]  # those that an output reads
    executed: Counter[str]  # operations by name, in-place ones under the name of those that are not


@dataclass
class Opinion:
    """How two readings of one model compare."""

    size: int  # operations compared
    differences: list[str] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)  # operations of which one may execute more

    @property
    def equal(self) -> bool:
        """Whether both compute the same, operation by operation."""
        return not self.differences

    def __str__(self) -> str:
        return "\n".join(self.differences[:24]) or f"equal in {self.size} operations"


# --- both captures --------------------------------------------------------------------------------


def captured(model: nn.Module, example: Arguments | None = None) -> tuple[fx.GraphModule | None, list[Island]]:
    """The module that repfx's capture is, before any rewriting, and its islands; None where nothing traces."""
    model = unwrapped(model)
    found = capture(model, (), None if example is None else Example(example), None, agree)
    if found.graph is None:
        return None, found.islands
    memo: dict[int, Any] = {}
    islands = {island.path: lambda module: copied(module, memo) for island in found.islands}
    lifted = lift_graph(found.graph, found.root, set(islands))
    return graph_module(lifted, found.root, {}, islands, memo), found.islands


def exported(model: nn.Module, arguments: Arguments) -> ExportedProgram:
    """What torch.export makes of a model.  Raises `NotExportedError`."""
    try:
        return _program(model, arguments)
    except Exception as error:  # torch.export raises whatever it meets in the model's code
        raise NotExportedError(f"{type(error).__name__}: {first_line(error)}") from error


def second_opinion(own: ExportedProgram, written: nn.Module, arguments: Arguments) -> Opinion:
    """How what torch.export makes of a model compares with the module that repfx's capture of it is."""
    ours = _program(written, arguments)
    functional = writes_memory(own) or writes_memory(ours)
    return compared(read(own, functional), read(ours, functional))


def _program(module: nn.Module, arguments: Arguments) -> ExportedProgram:
    """Exported as it runs: some of timm's code asks whether it is being exported, and goes another way then."""
    with torch.no_grad(), quiet(), _asking_nothing():
        return torch.export.export(module, arguments, strict=False)


@contextmanager
def _asking_nothing() -> Iterator[None]:
    """Libraries that compute in another way while they are exported do as in a plain forward.

    timm chooses other layers; transformers makes an attention mask that hides nothing, instead of none.
    """
    transformers = sys.modules.get("transformers.masking_utils")
    with ExitStack() as stack:
        stack.enter_context(patch.object(helpers, "_compiler_is_exporting", lambda: False, create=True))
        if transformers is not None:
            stack.enter_context(patch.object(transformers, "is_torchdynamo_exporting", lambda: False))
        yield


def writes_memory(program: ExportedProgram) -> bool:
    """Whether an operation of a program writes into what it is given, or is given a graph that might."""
    return any(_may_write(node.target) for node in _calls(program.graph_module))


def _may_write(target: Any) -> bool:
    if not callable(target) or target is operator.getitem:
        return False
    schema = getattr(target, "_schema", None)
    return not isinstance(schema, torch._C.FunctionSchema) or schema.is_mutable


# --- reading a program ----------------------------------------------------------------------------


def read(program: ExportedProgram, functional: bool) -> Reading:
    """The values of a program, made functional first where that is asked; nothing in it is decomposed."""
    executed = Counter(_plain_name(node) for node in _living(program))
    if functional:
        with torch.no_grad(), quiet():
            program = program.run_decompositions({})
    reader = _Reader()
    outputs = reader.read(program.graph_module, _input_digests(program), _held(program))
    kinds = [f"{spec.kind.name} {spec.target or ''}" for spec in program.graph_signature.output_specs]
    structure = str(program.call_spec.out_spec).replace("immutable_", "")  # torch.export interprets a graph
    return Reading(tuple(zip(kinds, outputs, strict=True)), structure, reader.read_by(outputs), executed)


def _calls(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The calls of a graph and of the graphs inside it."""
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            yield from (node for node in inner.graph.nodes if node.op == "call_function")


def _living(program: ExportedProgram) -> Iterator[fx.Node]:
    """The calls that an output, or what writes memory, reads; dead code, checks and constants are not compared."""
    for inner in program.graph_module.modules():
        if not isinstance(inner, fx.GraphModule):
            continue
        constant = _constants(inner, _held(program) if inner is program.graph_module else ())
        living: set[fx.Node] = set()
        for node in reversed(inner.graph.nodes):
            if node.op == "output" or not living.isdisjoint(node.users) or _may_write(node.target):
                living.add(node)
        yield from (node for node in living - constant if node.op == "call_function")


def _constants(module: fx.GraphModule, held: Sequence[Tensor | None]) -> set[fx.Node]:
    """The values of a graph that read neither an argument nor a parameter."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    found = {node for node, value in zip(inputs, held) if value is not None}
    for node in module.graph.nodes:
        if node.op == "call_function" and _is_determined(node.target) and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _is_determined(target: Any) -> bool:
    """Whether an operation gives the same numbers each time."""
    if target is operator.getitem:
        return True
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in target.tags


def _plain_name(node: fx.Node) -> str:
    """The name of an operation, in place or not, however it spells a view."""
    name = _name(node)
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return "view" if name in _VIEWS else name


def _name(node: fx.Node) -> str:
    """The name of an operation, without its overload."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).removeprefix("aten::")
    return str(getattr(target, "__name__", target))


def _input_digests(program: ExportedProgram) -> list[Digest]:
    """Of every input of the graph: an argument is known by its place, a weight by its numbers."""
    digests, arguments = [], 0
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            digests.append(_held_digest(program, spec.target))
            continue
        digests.append(_hash("argument", str(arguments), repr(getattr(spec.arg, "value", "a tensor"))))
        arguments += 1
    return digests


def _held_digest(program: ExportedProgram, name: str) -> Digest:
    return digest_of(program.constants.get(name, program.state_dict.get(name)))


def _held(program: ExportedProgram) -> list[Tensor | None]:
    """The buffers and constants among the inputs of the graph; None for arguments and parameters."""
    known = (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    found = []
    for spec in program.graph_signature.input_specs:
        value = program.constants.get(spec.target, program.state_dict.get(spec.target)) if spec.kind in known else None
        found.append(value if isinstance(value, Tensor) else None)
    return found


def digest_of(value: Any) -> Digest:
    """What a tensor holds: dtype, shape and numbers; of a tuple, what each holds."""
    if isinstance(value, tuple | list):
        return _hash("tuple", *map(digest_of, value))
    if not isinstance(value, Tensor):
        return _hash("object", repr(value))
    tensor = value
    flat = tensor.detach().contiguous().reshape(-1)
    numbers = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return _hash("tensor", str(tensor.dtype), str(tuple(tensor.shape)), hashlib.sha1(numbers).hexdigest())  # type: ignore[arg-type]


def _hash(*parts: str) -> Digest:
    return hashlib.sha1("\0".join(parts).encode()).hexdigest()


class _Made(str):
    """A digest where an argument stands."""


class _Hole:
    """What stands for a value in the text of an operation."""

    def __repr__(self) -> str:
        return "_"


class _Reader:
    """Gives every value of a graph its digest."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.constants: dict[fx.Node, Any] = {}

    def read(self, module: fx.GraphModule, given: Sequence[Digest], held: Sequence[Tensor | None] = ()) -> list[Digest]:
        """The digests of the outputs of a graph that is given these; `held` are the constants among them."""
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        digests: dict[fx.Node, Digest] = dict(zip(inputs, given, strict=True))
        self.constants = {node: value for node, value in zip(inputs, held) if value is not None}
        constant = _constants(module, held)
        for node in module.graph.nodes:
            if node in constant and node.op == "call_function":
                digests[node] = digest_of(self._evaluate(node))
                continue
            match node.op:
                case "get_attr":
                    digests[node] = self._attribute(getattr(module, str(node.target)))
                case "call_function":
                    digests[node] = self._call(node, digests)
        returned = module.graph.output_node().args[0]
        return [digests[v] if isinstance(v, fx.Node) else _hash("constant", repr(v)) for v in returned]

    def read_by(self, outputs: Sequence[Digest]) -> tuple[Operation, ...]:
        """The operations that the outputs are computed by."""
        by_digest = {operation.digest: operation for operation in self.operations}
        wanted: set[Digest] = set()
        work = list(outputs)
        while work:
            digest = work.pop()
            if digest in by_digest and digest not in wanted:
                wanted.add(digest)
                work += by_digest[digest].given
        return tuple(operation for operation in self.operations if operation.digest in wanted)

    def _evaluate(self, node: fx.Node) -> Any:
        """The numbers of a constant."""
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self.constants.__getitem__)
        with torch.no_grad():
            self.constants[node] = node.target(*args, **kwargs)
        return self.constants[node]

    def _attribute(self, value: Any) -> Digest:
        """A tensor, or a graph that an operation is given: a branch, a body."""
        if isinstance(value, Tensor):
            return digest_of(value)
        count = sum(node.op == "placeholder" for node in value.graph.nodes)
        return _hash("graph", *_Reader().read(value, [_hash("inner", str(i)) for i in range(count)]))

    def _call(self, node: fx.Node, digests: Mapping[fx.Node, Digest]) -> Digest:
        name, arguments = _name(node), _arguments(node)
        if _is_first_argument(node, name, arguments):
            return digests[node.args[0]]
        if name in _VIEWS:
            return self._noted(node, "view", {"self": node.args[0], "shape": _shape(node)}, digests)
        return self._noted(node, str(node.target), arguments, digests)

    def _noted(
        self, node: fx.Node, kind: str, arguments: Mapping[str, Any], digests: Mapping[fx.Node, Digest]
    ) -> Digest:
        """The digest of an operation, and a note of it."""
        given: list[Digest] = []

        def hole(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            given.append(digests[value])
            return _Hole()

        constants = {key: tree_map(hole, value) for key, value in arguments.items()}
        text = f"{kind}({', '.join(f'{key}={value!r}' for key, value in constants.items())})"
        digest = _hash(text, *given)
        self.operations.append(Operation(digest, text, tuple(given), node.name))
        return digest


def _is_first_argument(node: fx.Node, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an operation gives back the numbers that it is given."""
    if name in _VIEWS:
        return _shape(node) == _shape(node.args[0])
    if name in _CASTS:
        return _kind(node) == _kind(node.args[0])
    if name in _DROPOUTS:
        return arguments["train"] is False or arguments["p"] == 0
    return name in _COPIES


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _kind(node: Any) -> tuple[Any, Any]:
    return node.meta["val"].dtype, node.meta["val"].device


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, with the defaults of those that are not given."""
    schema = getattr(node.target, "_schema", None)
    if not isinstance(schema, torch._C.FunctionSchema):
        return {**{str(i): value for i, value in enumerate(node.args)}, **node.kwargs}
    found: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, default)
        if argument.name not in _LAYOUT:
            found[argument.name] = list(value) if isinstance(value, list | tuple) else value
    return found


# --- comparing ------------------------------------------------------------------------------------


def compared(own: Reading, ours: Reading) -> Opinion:
    """What torch.export reads in a model, and what it reads in the module that repfx's capture is."""
    opinion = Opinion(len(own.operations))
    if own.structure != ours.structure:
        opinion.differences.append(f"outputs: {own.structure} is {ours.structure} in repfx")
    if own.outputs != ours.outputs:
        parting = [*_parting("torch.export", own, ours), *_parting("repfx", ours, own)]
        opinion.differences += parting or ["the outputs are in another order"]
    for name in sorted(own.executed | ours.executed):
        more = ours.executed[name] - own.executed[name]
        if more > 0 and name in MORE:
            opinion.explained[name] = more
        elif more:
            opinion.differences.append(f"{name}: executed {own.executed[name]} times, {ours.executed[name]} in repfx")
    return opinion


def _parting(who: str, one: Reading, other: Reading) -> list[str]:
    """The operations that only one reading has, of values that both have."""
    known = {operation.digest for operation in other.operations}
    new = {operation.digest: operation for operation in one.operations if operation.digest not in known}
    return [f"{who}: {o.name} = {o.text}" for o in new.values() if new.keys().isdisjoint(o.given)]
