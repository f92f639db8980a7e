"""Containers as they were: what lies in them, whether it is the same, and the way back.

Nothing here asks a key or an item for its hash or for equality: it may be a traced value.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repfx.state.walking import state_of, walk

CONTAINERS = {dict, OrderedDict, defaultdict, Counter, list, set, deque}  # hooks are kept in ordered ones
SCALARS = {str, int, float, bool, type(None), Tensor, nn.Parameter, torch.Size}
_LARGE = 20_000


def is_array(value: Any) -> bool:
    """Whether a value is memory that code may write to by index."""
    if isinstance(value, bytearray):
        return True
    return isinstance(value, np.ndarray) and value.ndim > 0 and value.flags.writeable


def holders(values: Iterable[Any]) -> list[Any]:
    """The containers among these values, and the attributes of the plain objects."""
    found = []
    for value in values:
        if type(value) in CONTAINERS:
            found.append(value)
        elif type(value) not in SCALARS and (own := state_of(value)) is not None:
            found.append(own)
    return found


def holds(values: Mapping[str, Any], written: set[int]) -> bool:
    """Whether any of these values is a container that was written to, or has one in it."""
    if not written:
        return False
    own = walk(v for name, v in values.items() if type(v) not in SCALARS and name != "_modules")
    return any(id(container) in written for container in holders(own))


def copy_of(container: Any) -> Any:
    """Another container of the same items; of an ordered dictionary a plain one, which asks for no hash."""
    return dict(container) if isinstance(container, dict) else container.copy()


def entries(container: Any) -> list[tuple[Any, Any]]:
    """What a container holds, each under a key that asks no traced value for its hash."""
    if isinstance(container, dict):
        return [(key if type(key) in SCALARS else id(key), value) for key, value in dict.items(container)]
    if isinstance(container, set):
        return [(id(item), item) for item in container]
    return list(enumerate(container))


def remembers(container: Any, before: Any, depends: Callable[[fx.Node], bool]) -> bool:
    """Whether a container lacks something, or holds something new that the next forward may not have made itself.

    A value that does not depend on the input, as `depends` has it, is a result kept to save work.
    """
    now, was = entries(container), entries(before)
    earlier = {key: id(value) for key, value in was}
    lost = not set(earlier) <= {key for key, _ in now}
    fresh = [value for key, value in now if earlier.get(key, 0) != id(value)]
    return lost or any(not issubclass(type(value), fx.Proxy) or depends(value.node) for value in fresh)


def identical(now: Any, before: Any) -> bool:
    """Whether both hold the very same objects, in the same order."""
    if len(now) != len(before):
        return False
    if isinstance(now, dict):  # an ordered one would ask its keys for their hash on the way, and one may be traced
        keys = all(map(operator.is_, dict.__iter__(now), dict.__iter__(before)))
        return keys and all(map(operator.is_, dict.values(now), dict.values(before)))
    return all(map(operator.is_, now, before))


def seem_identical(now: Any, before: Any) -> bool:
    """As `identical`; of a large dictionary or list the ends must do."""
    if len(now) <= _LARGE or not isinstance(now, dict | list):
        return identical(now, before)
    return len(now) == len(before) and all(map(operator.is_, _ends(now), _ends(before)))


def _ends(container: dict[Any, Any] | list[Any]) -> Iterator[Any]:
    values = dict.values(container) if isinstance(container, dict) else container
    yield from itertools.islice(values, 1_000)
    yield from itertools.islice(reversed(values), 1_000)


def same(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> bool:
    """Whether both hold the very same values by the same names, in any order."""
    if identical(now, before):
        return True
    return now.keys() == before.keys() and all(now[key] is value for key, value in before.items())


def put_back(container: Any, content: Any) -> None:
    """Let a container hold what it held."""
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, deque):
        container.clear()
        container.extend(content)
    elif isinstance(container, set) or not identical(container, content):  # a key may be a traced value
        container.clear()
        container.update(content)
