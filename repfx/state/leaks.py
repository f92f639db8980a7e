"""Traced values that the user's code has put where they outlive the trace, taken back out.

A forward may keep what it computes in a cache of its file, in a global, in an attribute of something that is no
module.  After a trace nothing of the trace may be there: the next forward would compute with it.
"""

from __future__ import annotations

import functools
import gc
import operator
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import CellType, FrameType
from typing import Any

from torch import fx

from repfx.introspection import clear_finished


def take_back(made: Iterable[weakref.ref[fx.Proxy]], ours: Iterable[object] = ()) -> list[fx.Node]:
    """Remove the traced values that still live from whatever holds them; returns their nodes.

    `ours` are containers of the trace itself.  Which objects hold a value is known to the garbage collector alone.
    """
    made = list(made)
    alive = _living(made)
    if alive:
        _clear_finished_frames(alive)
        alive = _living(made)
    if not alive:
        return []
    origin = {id(value): value.node for value in alive}  # of each value, and of each tuple that has one in it
    level: list[Any] = list(alive)
    skipped = {id(thing) for thing in (alive, origin, *ours, *(value.__dict__ for value in alive))}
    found: dict[fx.Node, None] = {}
    while level:
        holders = gc.get_referrers(*level)
        outer: list[Any] = []
        for holder in holders:
            kind = type(holder)  # isinstance() would ask a traced value what it stands for
            if holder is level or holder is outer or id(holder) in skipped or issubclass(kind, FrameType | fx.Proxy):
                continue
            if issubclass(kind, tuple | frozenset):
                inside = [origin[id(item)] for item in holder if id(item) in origin]
                arguments = len(holder) == len(level) and all(map(operator.is_, holder, level))  # of the call above
                if inside and id(holder) not in origin and not arguments:
                    origin[id(holder)] = inside[0]
                    outer.append(holder)
            else:
                found |= dict.fromkeys(_removed(holder, origin))
        level = outer
    return list(found)


def _living(made: Iterable[weakref.ref[fx.Proxy]]) -> list[fx.Proxy]:
    return [value for value in (ref() for ref in made) if value is not None]


def _clear_finished_frames(alive: list[fx.Proxy]) -> None:
    """Let go what functions that have returned still hold: a traceback or an import may have kept their frames."""
    level: list[Any] = list(alive)
    for _ in range(_DEEPEST):
        holders = gc.get_referrers(*level)
        for holder in holders:
            if type(holder) is FrameType:
                clear_finished(holder)
        level = [holder for holder in holders if type(holder) in (tuple, list, CellType) and holder is not level]
        if not level:
            return


_DEEPEST = 3  # a list of arguments in a variable of an inner function


def _removed(holder: Any, origin: Mapping[int, fx.Node]) -> list[fx.Node]:
    """Remove what is in `origin` from what holds it, if that is a place where code keeps things."""
    if isinstance(holder, dict):
        pairs = [(key, item) for key, item in dict.items(holder) if id(item) in origin or id(key) in origin]
        rest = [(key, item) for key, item in dict.items(holder) if id(item) not in origin and id(key) not in origin]
        if all(type(key) is str for key, _ in pairs):
            for key, _ in pairs:
                del holder[key]
        else:  # a traced value is a key, or in one: nothing may ask for its hash
            holder.clear()
            for key, item in rest:
                with suppress(Exception):
                    holder[key] = item
        return [origin[id(key) if id(key) in origin else id(item)] for key, item in pairs]
    if isinstance(holder, list | deque):
        lost = [item for item in holder if id(item) in origin]
        kept = [item for item in holder if id(item) not in origin]
        if lost:
            holder.clear()
            holder.extend(kept)
        return [origin[id(item)] for item in lost]
    if isinstance(holder, set):
        kept = [item for item in holder if id(item) not in origin]
        lost = [item for item in holder if id(item) in origin]
        holder.clear()
        holder.update(kept)
        return [origin[id(item)] for item in lost]
    if isinstance(holder, CellType):
        node = origin[id(holder.cell_contents)]
        del holder.cell_contents
        return [node]
    if isinstance(holder, functools._lru_cache_wrapper):
        holder.cache_clear()
        return []
    own = getattr(holder, "__dict__", {})
    names = [name for name, item in own.items() if id(item) in origin]
    nodes = [origin[id(own[name])] for name in names]
    for name in names:
        del own[name]
    return nodes
