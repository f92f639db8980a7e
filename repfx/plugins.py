"""Values by name that other packages may add to: ours, those registered in this process, and entry points.

A package names what it adds in its metadata, under one group for each kind; nothing of it is imported before somebody
asks for that name.  What a package promises and does not keep is a `UserError` that names the package, and concerns
only those who ask for it: ours are found without a look at anybody's metadata, and no package can replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Generic, TypeVar

from repfx.errors import UserError, first_line

T = TypeVar("T")


@dataclass(eq=False)
class Registry(Generic[T]):
    """All known values of one type by name."""

    noun: str  # what one is called in a sentence, e.g. "export target"
    group: str  # of the entry points, e.g. "repfx.export_targets"
    type_: type[T]
    name_of: Callable[[T], str]
    own: dict[str, T] = field(default_factory=dict)  # ours, and those added in this process

    def add(self, value: T) -> None:
        """Add a value, or replace the one of its name, for the rest of this process."""
        self.own[self.name_of(value)] = value

    def find(self, name: str) -> T | None:
        """The value of that name, loaded if need be.  Raises `UserError` where its package is broken."""
        if name in self.own:
            return self.own[name]
        offers = [offer for offer in offered(self.group) if offer.entry.name == name]
        if not offers:
            return None
        if len(offers) > 1:
            packages = " and ".join(offer.package for offer in offers)
            raise UserError(f"{self.noun} {name!r} is offered by {packages}; uninstall one of them.")
        return self._loaded(offers[0])

    def names(self) -> tuple[str, ...]:
        """All names, ours first; nothing is loaded.  Raises `UserError` where some package's metadata is broken."""
        others = {offer.entry.name for offer in offered(self.group)} - set(self.own)
        return (*self.own, *sorted(others))

    def _loaded(self, offer: Offer) -> T:
        package, name = offer.package, offer.entry.name
        said, remedy = f"{package}: its {self.noun} {name!r}", f"repair or uninstall {package}"
        try:
            value = offer.entry.load()
        except (Exception, SystemExit) as error:  # importing a package runs its code, which raises whatever it likes
            raise UserError(f"{said} cannot be loaded: {first_line(error)}; {remedy}.") from error
        if not isinstance(value, self.type_):
            raise UserError(f"{said} is of type {type(value).__name__}, not {self.type_.__name__}; {remedy}.")
        if self.name_of(value) != name:
            raise UserError(f"{said} calls itself {self.name_of(value)!r}; {remedy}.")
        return value


@dataclass(frozen=True)
class Offer:
    """What a package says that it adds."""

    package: str
    entry: EntryPoint


def offered(group: str) -> Iterator[Offer]:
    """The entry points of a group.  Raises `UserError` where some package's metadata is broken."""
    seen: set[str] = set()
    for distribution in distributions():
        package = distribution.name
        if package in seen:  # installed twice: the first on the path is the one that is imported
            continue
        seen.add(package)
        yield from (Offer(package, entry) for entry in _entries(distribution, package) if entry.group == group)


def _entries(distribution: Distribution, package: str) -> tuple[EntryPoint, ...]:
    try:
        return tuple(distribution.entry_points)
    except Exception as error:  # whatever a line that is none meets in the parser
        raise UserError(
            f"{package}: its entry points cannot be read: {first_line(error)}; reinstall {package}."
        ) from error
