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

_DEEPEST = 3  # a list of arguments in a variable of an inner function


def take_back(made: Iterable[weakref.ref[fx.Proxy]]) -> list[fx.Node]:
    """Remove the traced values that still live from whatever holds them; returns their nodes.

    Which objects hold a value is known to the garbage collector alone.
    """
    alive = _living_for_long(list(made))
    if not alive:
        return []
    origin = {id(value): value.node for value in alive}  # of each value, and of each tuple that has one in it
    level: list[Any] = list(alive)
    skipped = {id(thing) for thing in (alive, origin, *(value.__dict__ for value in alive))}
    found: dict[fx.Node, None] = {}
    while level:
        nodes, level = _take_out_of_holders(level, origin, skipped)
        found |= dict.fromkeys(nodes)
    return list(found)


def _take_out_of_holders(
    level: list[Any], origin: dict[int, fx.Node], skipped: set[int]
) -> tuple[list[fx.Node], list[Any]]:
    """Take what is in `level` out of whatever holds it; returns the nodes, and what holds it and cannot be changed."""
    found: list[fx.Node] = []
    outer: list[Any] = []
    for holder in gc.get_referrers(*level):
        kind = type(holder)  # isinstance() would ask a traced value what it stands for
        if holder is level or holder is outer or id(holder) in skipped or issubclass(kind, FrameType | fx.Proxy):
            continue
        if not issubclass(kind, tuple | frozenset):
            found += _take_out(holder, origin)
        elif _is_new(holder, origin, level):
            origin[id(holder)] = next(origin[id(item)] for item in holder if id(item) in origin)
            outer.append(holder)
    return found, outer


def _is_new(holder: Any, origin: Mapping[int, fx.Node], level: list[Any]) -> bool:
    """Whether a tuple or frozen set holds a value of the trace, and was not seen; the arguments of our own call do."""
    if id(holder) in origin or not any(id(item) in origin for item in holder):
        return False
    is_our_call = len(holder) == len(level) and all(map(operator.is_, holder, level))
    return not is_our_call


def _living_for_long(made: Iterable[weakref.ref[fx.Proxy]]) -> list[fx.Proxy]:
    """The traced values that more than a finished frame holds."""
    alive = _living(made)
    if alive:
        _clear_finished_frames(alive)
        alive = _living(made)
    return alive


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


# --- out of what holds them -------------------------------------------------------------------------


def _take_out(holder: Any, origin: Mapping[int, fx.Node]) -> list[fx.Node]:
    """Remove what is in `origin` from what holds it, if that is a place where code keeps things; returns the nodes."""
    match holder:
        case dict():
            return _out_of_dictionary(holder, origin)
        case list() | deque():
            return _out_of_items(holder, holder.extend, origin)
        case set():
            return _out_of_items(holder, holder.update, origin)
        case CellType():
            node = origin[id(holder.cell_contents)]
            del holder.cell_contents
            return [node]
        case functools._lru_cache_wrapper():
            holder.cache_clear()
            return []
        case _:
            return _out_of_attributes(getattr(holder, "__dict__", {}), origin)


def _out_of_dictionary(holder: dict[Any, Any], origin: Mapping[int, fx.Node]) -> list[fx.Node]:
    lost: list[tuple[Any, Any]] = []
    rest: list[tuple[Any, Any]] = []
    for pair in dict.items(holder):
        is_lost = any(id(part) in origin for part in pair)
        (lost if is_lost else rest).append(pair)
    if all(type(key) is str for key, _ in lost):
        for key, _ in lost:
            del holder[key]
    else:  # a traced value is a key, or in one: nothing may ask for its hash
        holder.clear()
        for key, item in rest:
            with suppress(Exception):
                holder[key] = item
    return [origin[id(key) if id(key) in origin else id(item)] for key, item in lost]


def _out_of_items(holder: Any, fill: Any, origin: Mapping[int, fx.Node]) -> list[fx.Node]:
    """Out of a list, a queue or a set, which `fill` fills again."""
    lost = [item for item in holder if id(item) in origin]
    kept = [item for item in holder if id(item) not in origin]
    if lost:
        holder.clear()
        fill(kept)
    return [origin[id(item)] for item in lost]


def _out_of_attributes(own: Any, origin: Mapping[int, fx.Node]) -> list[fx.Node]:
    names = [name for name, item in own.items() if id(item) in origin]
    nodes = [origin[id(own[name])] for name in names]
    for name in names:
        del own[name]
    return nodes
