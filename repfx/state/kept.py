"""What a forward leaves behind in its modules and beside them, and the way back.

A module that reads an attribute which an earlier forward wrote is no graph (tracing would keep the value of that
moment) and becomes an island.  Running a user's module never changes it: `Kept.restore` puts its attributes back,
and `repfx.state.tensors.held` its tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any

from torch import nn

from repfx.graph import tensors_of
from repfx.state.containers import (
    CONTAINERS,
    SCALARS,
    copy_of,
    entries,
    holders,
    holds,
    identical,
    is_array,
    put_back,
    remembers,
    same,
    seem_identical,
)
from repfx.state.dependence import depends_on_input, depends_on_values
from repfx.state.random_state import generator_state, is_generator, same_state, set_generator_state
from repfx.state.reach import reach_of
from repfx.state.shells import is_met
from repfx.state.walking import walk

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (int, float, str, bool)


class Kept:
    """What a model holds in its attributes, and its code elsewhere, at one moment; and the way back to it."""

    def __init__(self, model: nn.Module, modules: Sequence[tuple[str, nn.Module]], within: Kept | None = None) -> None:
        """`modules`: all of them, by path.  `within` is of a model that holds this one, at the same moment."""
        self.model = model
        self.modules = modules
        self.before = [module.__dict__.copy() for _, module in modules]
        self._reach = reach_of([module for _, module in modules])
        self.namespaces = self._reach.namespaces
        bare, inside = _found_in(self.before)
        known = {*map(id, inside), *map(id, bare)}
        outside = [value for value in walk(self._reach.contents()) if id(value) not in known]
        own, others = holders(inside), holders(outside)
        self._outside = set(map(id, others))
        self._empty = [*bare, *itertools.filterfalse(None, (*own, *others))]
        earlier: dict[int, Any] = {} if within is None else within.copies
        self._filled = _with_copies(filter(None, (*own, *others)), earlier, copy_of)
        everything = (*inside, *outside)
        self._arrays = _with_copies(filter(is_array, everything), earlier, methodcaller("copy"))
        self._generators = [(one, generator_state(one)) for one in filter(is_generator, everything)]
        self.copies: dict[int, Any] = {id(one): content for one, content in (*self._filled, *self._arrays)}
        self.parts: dict[str, Kept] = {}  # of modules whose code is not traced, by path, once they are asked for
        self._own: dict[int, dict[str, Any]] = {}  # by module, once it is asked for
        self._content: dict[int, Any] = {}  # by container
        self._flags = [(t, t.requires_grad) for t in tensors_of(modules) if t.is_leaf]
        # A part is asked at each of its calls whether it is touched, and looks less closely.
        self._holds_the_same = identical if within is None else seem_identical

    # --- is anything another now? ---

    def touched(self) -> bool:
        """Whether anything may be different now.  Looks at identities only, so it is quick and asks no value."""
        return (
            any(self._empty)
            or not all(self._holds_the_same(container, content) for container, content in self._filled)
            or not all(identical(m.__dict__, before) for (_, m), before in zip(self.modules, self.before))
        )

    def differs(self) -> bool:
        """Whether anything is another than it was, beside the modules too."""
        return self.touched() or self._reach.changed() or self._wrote_arrays() or self.drew()

    def drew(self) -> bool:
        """Whether a random generator of the model's own has moved."""
        return any(not same_state(generator_state(one), state) for one, state in self._generators)

    def changed_outside(self) -> bool:
        """Whether the code has left something beside its modules which it may read the next time.

        A value that does not depend on the values of the input is a result kept to save work.
        """
        if self._reach.changed() or self._wrote_arrays():
            return True
        return any(remembers(one, was, depends_on_values) for one, was in self._contents() if id(one) in self._outside)

    def numbers(self, shell: nn.Module) -> dict[tuple[int, Any], Any]:
        """Every plain value that the code may count with, and the length of every container, by place.

        `shell` is traced in the place of the model.
        """
        tables = [shell.__dict__, *(module.__dict__ for path, module in self.modules if path)]
        containers = [*self._empty, *(one for one, _ in self._filled)]
        found: dict[tuple[int, Any], Any] = {(id(one), len): len(one) for one in containers}
        for one in (*tables, *containers):
            key = 0 if one is shell.__dict__ else id(one)
            found |= {(key, name): value for name, value in entries(one) if type(value) in _PLAIN}
        return found | self._reach.numbers()

    def is_altered(self, module: nn.Module) -> bool:
        """Whether a module, or a part of it, has other attributes, parameters or buffers than it had."""
        if not self._own:
            self._own = {id(one): before for (_, one), before in zip(self.modules, self.before)}
            self._content = self._content_by_container()
        parts = module.modules() if module._modules else (module,)
        return any(self._has_other_attributes(part) for part in parts)

    def _has_other_attributes(self, part: nn.Module) -> bool:
        before = self._own.get(id(part))
        if before is None:
            return False  # made on the way
        if not identical(part.__dict__, before):
            return True
        tables = (part._parameters, part._buffers)
        return not all(identical(table, self._content.get(id(table), {})) for table in tables)

    def _wrote_arrays(self) -> bool:
        return any(not same_state(one, was) for one, was in self._arrays)

    def _contents(self) -> Iterator[tuple[Any, Any]]:
        """Every container with what it held, but those that were empty and are: these are most of all."""
        yield from ((empty, type(empty)()) for empty in self._empty if empty)
        yield from self._filled

    # --- in which module? ---

    def changed(self, shell: nn.Module, before: Mapping[str, Any]) -> list[str]:
        """Paths of the modules that do not hold what they held.

        `shell` is a copy of the model to which guards may have been added; `before` is what it held itself.
        """
        if self._has_its_children(shell) and not self.touched() and not _differs(shell, before):
            return []
        held = dict(zip((path for path, _ in self.modules), self.before)) | {"": before}
        known = [(path, module) for path, module in shell.named_modules() if path in held]  # the rest are guards
        written = self._written()
        return [path for path, module in known if _differs(module, held[path]) or holds(held[path], written)]

    def _has_its_children(self, shell: nn.Module) -> bool:
        return all(shell._modules.get(name) is child for name, child in self.model._modules.items())

    def _written(self) -> set[int]:
        """The containers that hold what the next forward may read; in a table of tensors that is any other one."""
        tables: set[int] = set()
        for values in self.before:
            tables |= {id(values["_parameters"]), id(values["_buffers"])}
        written = set()
        for one, was in self._contents():
            is_table = id(one) in tables
            if not identical(one, was) if is_table else remembers(one, was, depends_on_input):
                written.add(id(one))
        return written

    def rebuilt(self, shell: nn.Module, added: Collection[str]) -> list[str]:
        """Paths of the modules that hold other modules or hooks than before, but for what the trace `added` to `shell`.

        `shell` as for `changed`.
        """
        own = {name: child for name, child in shell._modules.items() if name not in added}
        found = [] if same(own, self.model._modules) else [""]
        if not self.touched():
            return found
        if self._has_other_hooks():
            return [""]  # whoever registered it is around here
        content = self._content_by_container()
        return found + [path for path, module in self.modules if path and _is_other(module._modules, content)]

    def _has_other_hooks(self) -> bool:
        content = self._content_by_container()
        tables = (values[name] for values in self.before for name in _HOOKS)
        return any(_is_other(table, content) for table in tables)

    def _content_by_container(self) -> dict[int, Any]:
        return {id(container): content for container, content in self._filled}

    # --- the way back ---

    def restore(self) -> list[nn.Module]:
        """Put everything back.  Returns the modules whose numbers were other ones."""
        for tensor, flag in self._flags:
            if tensor.requires_grad is not flag:
                tensor.requires_grad_(flag)
        self.restore_outside()
        if not self.touched():
            return []
        for container, content in self._contents():
            put_back(container, content)
        counting = []
        for (_, module), before in zip(self.modules, self.before):
            if not same(module.__dict__, before):
                counting += [module] if counts(module, before) else []
                module.__dict__.clear()
                module.__dict__.update(before)
        return counting

    def restore_outside(self) -> None:
        """Put back what lies beside the modules."""
        for generator, state in self._generators:
            if not same_state(generator_state(generator), state):
                set_generator_state(generator, state)
        self._reach.restore()
        for array, content in self._arrays:
            if not same_state(array, content):
                array[:] = content
        for container, content in self._contents():
            if id(container) in self._outside:
                put_back(container, content)


def _found_in(tables: Iterable[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The empty containers in these attributes, and all else that lies in them: every module has ten empty tables."""
    bare: list[Any] = []
    others: list[Any] = []
    for values in tables:
        for value in values.values():
            if type(value) in CONTAINERS and not value:
                bare.append(value)
            elif type(value) not in SCALARS:
                others.append(value)
    return bare, list(walk(others))


def _with_copies(
    values: Iterable[Any], earlier: Mapping[int, Any], copy: Callable[[Any], Any]
) -> list[tuple[Any, Any]]:
    """Each value with a copy of it: the earlier one where there is one, of the same moment."""
    return [(value, earlier[id(value)] if id(value) in earlier else copy(value)) for value in values]


def _is_other(table: Mapping[str, Any], content: Mapping[int, Any]) -> bool:
    """Whether a table of a module's holds other things than it did, by what filled containers held."""
    return not same(table, content.get(id(table), {}))


def _differs(module: nn.Module, before: Mapping[str, Any]) -> bool:
    now = module.__dict__
    if identical(now, before):
        return False
    ours, theirs = ({name: v for name, v in held.items() if not is_met(name)} for held in (now, before))
    return not same(ours, theirs)


def counts(module: nn.Module, before: Mapping[str, object]) -> bool:
    """Whether a number that the module kept is another one now."""
    return any(_is_another_number(value, before[name]) for name, value in module.__dict__.items() if name in before)


def _is_another_number(now: Any, before: Any) -> bool:
    return issubclass(type(now), int | float) and type(before) in (int, float, bool) and now != before
