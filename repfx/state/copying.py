"""Deep copies of modules, whose hooks and functions reach the copy where they reached the module."""

from __future__ import annotations

import copy
import functools
import operator
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

from repfx.errors import UserError, first_line
from repfx.state.containers import CONTAINERS
from repfx.state.reach import reach_of
from repfx.state.walking import state_of, walk

_PLAIN_MODULES = {
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Identity, nn.Dropout,
}  # fmt: skip
_TABLES = ("_parameters", "_modules")


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, whose hooks and functions reach the copy where they reached the module.

    Also of a module that holds what its last forward computed.  What its code reaches as a global stays that global.
    """
    memo = {} if memo is None else memo
    parts = list(module.modules()) if module._modules else [module]
    if type(module) in _PLAIN_MODULES and len(parts) == 1:
        return _copied_plain(module, memo)
    _let_results_be_copied(parts, memo)
    _let_globals_stay(parts, memo)
    own = _deep_copy(module, memo)
    if own.training is not module.training:  # a class of its own may copy itself in its own way
        own.train(module.training)
    for part in own.modules() if own._modules else (own,):
        tables: tuple[dict[Any, Any], ...] = (part.__dict__, part._forward_hooks, part._forward_pre_hooks)
        for table in tables:
            table.update({name: _rebound(value, memo) for name, value in table.items()})
    return own


def _let_results_be_copied(parts: Sequence[nn.Module], memo: dict[int, Any]) -> None:
    """Note copies of the tensors that were computed: torch copies none that has a history."""
    values: list[Any] = []
    for part in parts:
        values += [value for name, value in part.__dict__.items() if name not in _TABLES]
    for value in walk(values):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo.setdefault(id(value), value.detach().clone())


def _let_globals_stay(parts: Sequence[nn.Module], memo: dict[int, Any]) -> None:
    """Note what the code of these modules names beside them as its own copy."""
    if all(type(part).__module__.startswith("torch.nn") for part in parts):
        return
    for binding in reach_of(parts).bindings:
        value = binding.value
        if type(value) in CONTAINERS or state_of(value) is not None:
            memo.setdefault(id(value), value)


def _deep_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # what lies in a module may forbid it: locks, open files, generators
        raise UserError(
            f"{type(module).__name__} cannot be copied: {type(error).__name__}: {first_line(error)}; a compiled model "
            "is a copy, so keep what it holds somewhere else, or give its class a __deepcopy__"
        ) from error


def _rebound(value: Any, memo: Mapping[int, Any]) -> Any:
    """A function whose variables are the copies of what they were: Python copies no function."""
    if type(value) is functools.partial:
        return functools.partial(_rebound(value.func, memo), *value.args, **value.keywords)
    if not isinstance(value, FunctionType):
        return value
    try:
        held = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # not assigned yet
        return value
    fresh = [one if one is value else _rebound(memo.get(id(one), one), memo) for one in held]
    defaults, named = value.__defaults__ or (), value.__kwdefaults__ or {}
    own_defaults, own_named = _copies(defaults, memo), dict(zip(named, _copies(named.values(), memo)))
    before, after = (*held, *defaults, *named.values()), (*fresh, *own_defaults, *own_named.values())
    if all(map(operator.is_, after, before)):
        return value
    return _like(value, fresh, own_defaults, own_named)


def _copies(values: Iterable[Any], memo: Mapping[int, Any]) -> tuple[Any, ...]:
    """What was copied of these values; those that were not, themselves."""
    return tuple([memo.get(id(value), value) for value in values])


def _like(value: FunctionType, held: list[Any], defaults: tuple[Any, ...], named: dict[str, Any]) -> FunctionType:
    """The same code with other variables around it, and other defaults."""
    cells = tuple(map(CellType, held))
    own = FunctionType(value.__code__, value.__globals__, value.__name__, defaults or None, cells or None)
    own.__kwdefaults__, own.__qualname__ = named or None, value.__qualname__
    own.__dict__.update(value.__dict__)
    return own


def _copied_plain(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) not in memo:
        memo[id(module)] = plain = type(module).__new__(type(module))
        plain.__dict__.update((name, _copied_value(value, memo)) for name, value in module.__dict__.items())
    found: nn.Module = memo[id(module)]
    return found


def _copied_value(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; most attributes of a module are constants, or containers with nothing in them."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    is_empty = kind in (dict, OrderedDict, list, set) and not value
    return kind() if is_empty else copy.deepcopy(value, memo)
