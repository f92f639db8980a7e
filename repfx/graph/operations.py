"""What is known of an operation, in one place: one `OpInfo` for each, and how a node of a graph finds its own.

A fact that permits something (the result has this shape, each channel is computed alone) is asked of the very
function, method or module: `operation_of`.  What is not in the table, or computes in a way of its own, is unknown.
A fact that forbids something (the result may share memory, a random generator moves) is asked of the name:
`operation_named`.  A stranger's function with the name of one of torch's is taken for the worst.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repfx.graph.kinds import Draws, Keeps, OpKind, Shares
from repfx.graph.shape_rules import ShapeRule, unknown


@dataclass(frozen=True)
class OpInfo:
    """One operation, whatever it is spelled like."""

    names: tuple[str, ...]  # the first is its own; others are aliases, and what Python's operators call it
    kind: OpKind = OpKind.OTHER
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()  # besides those of torch that have one of the names
    shape: ShapeRule = unknown
    keeps: Keeps = Keeps.NOTHING
    elementwise: bool = False  # each number from those at the same place alone, alike everywhere
    axes: int | None = None  # over how many spatial axes, where that is part of what it is
    channelwise: bool = False  # where there are that many: each channel from the same one alone, all alike
    shares: Shares = Shares.NOTHING
    moves_axes: bool = False
    draws: Draws = Draws.NEVER
    jumps: bool = False  # at some places the last bit of what it reads decides
    returns: type | None = Tensor  # None: several things, or it depends

    @property
    def name(self) -> str:
        """What it is called here."""
        return self.names[0]


_SPACES = (torch, F, torch.special, operator)
_OTHERWISE: tuple[Callable[..., Any], ...] = (  # what torch calls otherwise
    operator.concat,  # of sequences
    operator.index,  # of an integer
    torch.adaptive_max_pool1d,  # returns the indices, too, unlike torch.nn.functional's
)
_COMPUTING = ("forward", "_conv_forward", "_output_padding")  # what torch's own layers compute with


def functions_of(info: OpInfo) -> Iterator[Callable[..., Any]]:
    """Every function of torch and Python that is this operation, in place or not."""
    yield from info.functions
    for name in info.names:
        if name.startswith("__"):
            continue
        for spelled in (name, f"{name}_"):
            for space in _SPACES:
                found = getattr(space, spelled, None)
                if callable(found) and found not in _OTHERWISE:
                    yield found


class Operations:
    """The table, and its indices."""

    def __init__(self, table: tuple[OpInfo, ...]) -> None:
        self.table = table
        self._by_name: dict[str, OpInfo] = {}
        self._by_type: dict[type[nn.Module], OpInfo] = {}
        self._by_function: dict[int, OpInfo] = {}
        for info in table:
            for name in info.names:
                if name in self._by_name:
                    raise ValueError(f"{name} is in the table of operations twice")
                self._by_name[name] = info
            self._by_type.update(dict.fromkeys(info.modules, info))
        for info in table:
            self._by_function.update({id(function): info for function in functions_of(info)})

    def __iter__(self) -> Iterator[OpInfo]:
        return iter(self.table)

    def named(self, name: str) -> OpInfo | None:
        """The operation of that name: of a function, a method, an overload of ATen's, in place or not."""
        return self._by_name.get(name) or self._by_name.get(_plain(name))

    def of_function(self, function: object) -> OpInfo | None:
        """The operation that this very function is."""
        return self._by_function.get(id(function))

    def like(self, module: nn.Module) -> OpInfo | None:
        """The operation that a module is a kind of, whatever it computes."""
        base = self._base(type(module))
        return None if base is None else self._by_type[base]

    def of_module(self, module: nn.Module) -> OpInfo | None:
        """The operation that a module computes: it has all that torch's own class computes with."""
        base = self._base(type(module))
        if base is None or not module.__dict__.keys().isdisjoint(_COMPUTING) or module.__dict__.get("return_indices"):
            return None
        if any(getattr(type(module), name, None) is not getattr(base, name, None) for name in _COMPUTING):
            return None
        return self._by_type[base]

    def _base(self, of: type[nn.Module]) -> type[nn.Module] | None:
        """The class of the table that modules of this type are derived from, the nearest."""
        return next((base for base in of.__mro__ if base in self._by_type), None)


def _plain(name: str) -> str:
    """`add` of `add_`, `__add__`, `add.Tensor` and `special_add`."""
    name = name.partition(".")[0].strip("_")
    for space in ("special_", "linalg_", "fft_"):
        name = name.removeprefix(space)
    return name
