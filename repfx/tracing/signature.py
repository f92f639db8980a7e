"""The arguments of a forward: which are values of the graph, and which are compiled in.

A tensor (or a container of tensors) is a value.  Everything else decides which way the code goes:
`if mask is not None`, `return_features=False`.  So None, numbers, strings and the like are compiled in
as the example gives them, or as their defaults are; `repfx.layers.ArgumentGuard` refuses another
value at run time.  The compiled forward keeps the original's signature: names, order, defaults,
positional-only and keyword-only marks, `*args` and `**kwargs`.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _patch_function
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_map

from repfx.layers import OPEN

EMPTY = inspect.Parameter.empty
_IN_CODE = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum, torch.layout)


@dataclass(frozen=True)
class Example:
    """The arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def bound(self, parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
        """The arguments by parameter name, only those that the call gives.  Raises `TypeError` if it does not fit."""
        return dict(inspect.Signature(parameters).bind(*self.args, **self.kwargs).arguments)

    def fresh(self, dtype: torch.dtype | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Both with tensors and containers of their own, in this dtype: a forward may overwrite its arguments."""

        def leaf(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            own = x.detach().clone()
            own = own.to(dtype) if dtype is not None and own.is_floating_point() else own
            return own.requires_grad_(x.requires_grad)

        args, kwargs = tree_map(leaf, (self.args, dict(self.kwargs)))
        return args, kwargs


@dataclass(frozen=True)
class Passed:
    """What the only calls of a module, all written in one class, pass to it: how much, and by which names."""

    positional: int = 0
    keywords: frozenset[str] = frozenset()
    anything: bool = False  # `*args` or `**kwargs` somewhere

    def gives(self, index: int, name: str) -> bool:
        """Whether some call gives the parameter of that name and position."""
        return self.anything or index < self.positional or name in self.keywords

    def joined(self, other: Passed) -> Passed:
        """What either passes."""
        return Passed(
            max(self.positional, other.positional),
            self.keywords | other.keywords,
            self.anything or other.anything,
        )


class UnknownArgumentError(Exception):
    """The trace would depend on an argument of which nothing is known."""


def parameters_of(forward: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a bound forward."""
    return list(inspect.signature(forward).parameters.values())


def template(value: Any) -> Any:
    """What of an argument is compiled in: OPEN for a value of the graph."""
    return value if _is_plain(value) else OPEN


def _is_plain(value: Any) -> bool:
    if isinstance(value, _PLAIN):
        return True
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return type(value) is dict and all(map(_is_plain, value.values()))


def templates(
    parameters: Sequence[inspect.Parameter], example: Example | None, passed: Passed | None
) -> dict[str, Any]:
    """For every parameter what is compiled in.

    `example` is a call of the outermost module; `passed` is what the calls of an inner one pass, of which
    nothing more is known.  Raises `UnknownArgumentError` where that is not enough.
    """
    given: dict[str, Any] = {}
    sole: str | None = None
    if example is not None:
        given = example.bound(parameters)
    elif parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        raise UnknownArgumentError(f"it takes any number of arguments, *{parameters[0].name}")
    elif passed is None:
        sole = _taken_as_given(parameters)
    found: dict[str, Any] = {}
    for index, parameter in enumerate(parameters):
        name = parameter.name
        if parameter.kind in VARIADIC:
            _check_spill(parameters, name, passed)
            found[name] = _variadic_template(parameter, given)
        elif name in given:
            found[name] = template(given[name])
        elif parameter.default is EMPTY or name == sole:
            found[name] = OPEN
        else:
            found[name] = _compiled_default(parameter, index, passed)
    return found


def _check_spill(parameters: Sequence[inspect.Parameter], name: str, passed: Passed | None) -> None:
    """Raise where `*args` or `**kwargs` of this name may be given something that nobody knows."""
    if passed is not None and (passed.anything or _spills(parameters, passed)):
        raise UnknownArgumentError(f"its caller passes more than its named arguments, through {name}")


def _variadic_template(parameter: inspect.Parameter, given: Mapping[str, Any]) -> Any:
    """What is compiled in of `*args` or `**kwargs`: as many as the example gives."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return tuple(map(template, given.get(parameter.name, ())))
    return {key: template(value) for key, value in given.get(parameter.name, {}).items()}


def _compiled_default(parameter: inspect.Parameter, index: int, passed: Passed | None) -> Any:
    """The default of a parameter that is not given.  Raises `UnknownArgumentError` where it may not be that."""
    name, default = parameter.name, parameter.default
    if passed is not None and passed.gives(index, name):
        raise UnknownArgumentError(f"its caller passes {name}, whose default is {default!r}")
    if not _is_plain(default):
        raise UnknownArgumentError(f"{name} has a {type(default).__name__} as its default")
    return default


def _taken_as_given(parameters: Sequence[inspect.Parameter]) -> str | None:
    """The first argument of a forward that asks for none: it computes nothing from nothing."""
    named = [p for p in parameters if p.kind not in VARIADIC]
    if not named or any(p.default is EMPTY for p in named) or named[0].default is not None:
        return None
    return named[0].name


def _spills(parameters: Sequence[inspect.Parameter], passed: Passed) -> bool:
    named = [p for p in parameters if p.kind not in VARIADIC]
    positional = [p for p in named if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    return passed.positional > len(positional) or bool(passed.keywords - {p.name for p in named})


def guarded(parameters: Sequence[inspect.Parameter], found: Mapping[str, Any]) -> dict[str, Any]:
    """The templates that need a guard: all but the plainly required arguments, of which the first is a tensor.

    A required argument behind the first one may be None, and the trace has taken it for a value.
    """
    required = [p.name for p in parameters if p.default is EMPTY and p.kind not in VARIADIC]
    return {name: value for name, value in found.items() if value is not OPEN or name not in required[:1]}


def arguments_of(
    parameters: Sequence[inspect.Parameter], found: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The positional and keyword arguments of a call, with `values` of the graph where a template is open."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in parameters:
        own, value = found[parameter.name], values[parameter.name]
        match parameter.kind:
            case inspect.Parameter.VAR_POSITIONAL:
                args += [value[i] if item is OPEN else item for i, item in enumerate(own)]
            case inspect.Parameter.VAR_KEYWORD:
                kwargs |= {key: value[key] if item is OPEN else item for key, item in own.items()}
            case inspect.Parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = _filled(own, value)
            case _:
                args.append(_filled(own, value))
    return args, kwargs


def _filled(own: Any, value: Any) -> Any:
    return value if own is OPEN else own


def example_values(parameters: Sequence[inspect.Parameter], example: Example) -> dict[str, Any]:
    """The value of every placeholder in a call with these arguments."""
    given = example.bound(parameters)
    empty: dict[Any, Any] = {inspect.Parameter.VAR_POSITIONAL: (), inspect.Parameter.VAR_KEYWORD: {}}
    return {p.name: given.get(p.name, empty.get(p.kind, p.default)) for p in parameters}


class SignatureCodeGen(CodeGen):
    """torch.fx's code, whose `def` line keeps positional-only and keyword-only parameters."""

    def __init__(self, positional_only: Sequence[str], keyword_only: Sequence[str], starred: bool) -> None:
        super().__init__()
        self.positional_only, self.keyword_only = tuple(positional_only), tuple(keyword_only)
        self.starred = starred  # there is an *args, behind which everything is keyword-only

    def gen_fn_def(self, free_vars: list[str], *rest: Any, **options: Any) -> str:
        """The `def` line."""
        line = list(free_vars)
        names = [_name(item) for item in line]
        last = [i for i, name in enumerate(names) if name in self.positional_only]
        if last:
            line.insert(last[-1] + 1, "/")
            names.insert(last[-1] + 1, "/")
        first = [i for i, name in enumerate(names) if name in self.keyword_only]
        if first and not self.starred:
            line.insert(first[0], "*")
        free_vars[:] = line
        return super().gen_fn_def(free_vars, *rest, **options)


def _name(declared: str) -> str:
    found = re.match(r"\**(\w+)", declared)
    return found[1] if found else ""


class SignatureTracer(fx.Tracer):
    """torch.fx's tracer with the signature kept.  Unpickling a compiled module traces with it again."""

    example: Example | None = None
    passed: Passed | None = None

    def templates(self, root: nn.Module, parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
        """What is compiled in; nothing of a graph's own forward, which has no way to go but one."""
        return {p.name: OPEN for p in parameters}

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders in the order of the signature, and a function that calls `root_fn` with them."""
        root = self.root
        own = root.__dict__.get("forward")  # a forward that was set on this very object
        parameters = list(inspect.signature(own or root_fn).parameters.values())
        parameters = parameters if own is not None else parameters[1:]
        found = self.templates(root, parameters)
        values = {p.name: self._placeholder(p) for p in parameters}
        self._keep_marks(parameters)
        self.guard(parameters, found, values)
        if any(found[p.name] is OPEN and p.kind in VARIADIC for p in parameters):
            ordered = sorted(parameters, key=lambda p: _IN_CODE.index(p.kind))  # as the code object has them
            call_whole: Callable[..., Any] = _patch_function(cast("FunctionType", root_fn), 1 + len(parameters))
            return call_whole, [root, *(values[p.name] for p in ordered)]
        given = [arguments_of(parameters, found, values)]

        def call() -> Any:
            args, kwargs = given.pop()  # no frame that outlives the trace leads to them
            return root_fn(root, *args, **kwargs) if own is None else own(*args, **kwargs)

        returned = getattr(root_fn, "__annotations__", {}).get("return")
        call.__annotations__ = {} if isinstance(returned, str) else {"return": returned}  # a name from elsewhere
        return call, []

    def _keep_marks(self, parameters: Sequence[inspect.Parameter]) -> None:
        """Let the graph's code have the positional-only and keyword-only marks of the signature."""
        kinds = {kind: [p.name for p in parameters if p.kind is kind] for kind in inspect._ParameterKind}
        positional, keyword = kinds[inspect.Parameter.POSITIONAL_ONLY], kinds[inspect.Parameter.KEYWORD_ONLY]
        if positional or keyword:
            starred = bool(kinds[inspect.Parameter.VAR_POSITIONAL])
            self.graph.set_codegen(SignatureCodeGen(positional, keyword, starred))

    def guard(self, parameters: Sequence[inspect.Parameter], found: Any, values: Mapping[str, fx.Proxy]) -> None:
        """Nothing is compiled in, so nothing is guarded."""

    def _placeholder(self, parameter: inspect.Parameter) -> fx.Proxy:
        stars = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else stars
        default = () if parameter.default is EMPTY else (parameter.default if _is_plain(parameter.default) else None,)
        return self.create_proxy("placeholder", stars + parameter.name, default, {}, type_expr=_type_of(parameter))


def _type_of(parameter: inspect.Parameter) -> Any:
    """The annotation, where torch.fx can write it down again."""
    annotation = parameter.annotation
    module = getattr(annotation, "__module__", "")
    return annotation if isinstance(annotation, type) and module in ("builtins", "torch") else None
