"""What the tables say that torch's methods, functions and attributes are, against torch's own schemas and objects."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from repfx.tracing import proxy_queries as questions

SPACES = {
    "aten::{}": (torch, torch.nn.functional, torch.functional),
    "aten::linalg_{}": (torch.linalg,),
    "aten::fft_{}": (torch.fft,),
    "aten::special_{}": (torch.special,),
}
SCHEMAS: dict[str, list[Any]] = {}
for schema in torch._C._jit_get_all_schemas():
    SCHEMAS.setdefault(schema.name, []).append(schema)


def told(target: Any, args: list[Any], kwargs: dict[str, Any]) -> type | None:
    """What the tables say of a call in which every `...` is a tensor."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    given = [x if a is ... else a for a in args]
    make = graph.call_method if isinstance(target, str) else graph.call_function
    node = make(target, tuple(given), {name: x if a is ... else a for name, a in kwargs.items()})
    return questions.kind(node, lambda _: Tensor, nn.Module())


_PLAIN = {"Tensor": ..., "Optional[Tensor]": None, "List[Tensor]": [...], "int": 1, "bool": False, "List[int]": [1]}


def arguments(schema: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that a call must give."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in schema.arguments:
        if argument.has_default_value():
            break
        kind = argument.type.annotation_str
        value = _PLAIN[kind] if kind in _PLAIN else {"float": 1.0, "number": 1.0, "str": "ij"}.get(kind, 1)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


def returned(schema: Any) -> type | None:
    """The type of what comes back; None where it is several things, or nothing."""
    kinds = [r.type.annotation_str for r in schema.returns]
    single = {"Tensor": Tensor, "bool": bool, "int": int, "float": float, "number": None}
    if schema.name == "aten::size" and kinds == ["List[int]"]:
        return torch.Size
    if kinds == ["List[Tensor]"]:
        return tuple
    return single.get(kinds[0]) if len(kinds) == 1 else None


def calls() -> Iterator[tuple[str, Any, Any]]:
    """Every public method of tensors, and function of torch's, with each of its schemas."""
    for name in dir(Tensor):
        if not name.startswith("_") and callable(getattr(Tensor, name)):
            yield from ((f"Tensor.{name}", name, schema) for schema in SCHEMAS.get(f"aten::{name}", []))
    for pattern, spaces in SPACES.items():
        for space in spaces:
            for name in dir(space):
                target = getattr(space, name)
                written = inspect.isfunction(target) or inspect.isclass(target)  # in Python: the schema is another's
                if not name.startswith("_") and callable(target) and not written:
                    found = SCHEMAS.get(pattern.format(name), [])
                    yield from ((f"{space.__name__}.{name}", target, schema) for schema in found)


def test_what_schemas_return_is_what_is_told() -> None:
    wrong, seen, sure = [], 0, 0
    for name, target, schema in calls():
        if any(a.is_out for a in schema.arguments) or schema.overload_name.endswith(("_out", "out")):
            continue
        given = arguments(schema)
        if ... not in given[0]:
            continue  # of numbers, or of nothing: never traced
        kind, right = told(target, *given), returned(schema)
        seen, sure = seen + 1, sure + (kind is not None)
        if kind is not None and kind is not right:
            wrong.append((name, kind, str(schema)))
    assert not wrong
    assert seen > 1500
    assert sure > 0.8 * seen  # most is told


def test_what_functions_say_that_they_return_is_what_is_told() -> None:
    wrong, seen = [], 0
    for space in (torch, torch.nn.functional, torch.functional):
        for name in dir(space):
            target = getattr(space, name)
            if not inspect.isfunction(target) or name.startswith("_") or "return" not in target.__annotations__:
                continue
            try:
                hints = typing.get_type_hints(target)
            except NameError:
                continue
            right = hints.pop("return")
            if Tensor not in hints.values():
                continue  # never traced
            seen += 1
            kind = told(target, [...], {})
            if kind is Tensor and right is not Tensor:
                wrong.append((name, right))
    assert not wrong
    assert seen > 50


TENSORS = {
    "plain": torch.zeros(2, 3, dtype=torch.float64),
    "whole": torch.zeros(2, 3, dtype=torch.int64),
    "complex": torch.zeros(2, 3, dtype=torch.complex64),
    "meta": torch.zeros(2, 3, device="meta"),
    "parameter": nn.Parameter(torch.zeros(2, 3)),
    "computed": nn.Parameter(torch.zeros(2, 3)) * 2,
}


@pytest.mark.filterwarnings("ignore:volatile was removed:UserWarning")
@pytest.mark.parametrize("name", TENSORS)
def test_attributes_are_what_is_told(name: str) -> None:
    tensor, seen = TENSORS[name], 0
    for attribute, kind in questions.ATTRIBUTES.items():
        try:
            value = getattr(tensor, attribute)
        except (AttributeError, RuntimeError):
            continue  # none of this tensor's
        seen += 1
        assert isinstance(value, kind), attribute
    assert seen > 20


def test_every_attribute_of_tensors_is_told_or_known_not_to_be() -> None:
    tensor = torch.zeros(2, 3)
    unsure = {"grad", "grad_fn", "grad_dtype", "name", "names", "_backward_hooks"}  # set by people, or None mostly
    for name in dir(Tensor):
        if name.startswith("_") or name in questions.ATTRIBUTES or name in unsure:
            continue
        value = inspect.getattr_static(Tensor, name)
        if not inspect.isdatadescriptor(value):
            continue
        assert not hasattr(tensor, name) or not isinstance(getattr(tensor, name), Tensor | int | bool), name
