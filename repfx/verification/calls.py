"""One forward of a model: its arguments, hostile variants of them, and what it returns for them.

The model is run on a copy of it, or put back afterwards: neither it nor the arguments are changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from repfx.errors import InputError, first_line
from repfx.graph import modules_of
from repfx.rewriting import FastDepthwise
from repfx.state import Kept, copied, held
from repfx.tracing import Example, generators, modes_kept, restored, set_generators
from repfx.verification.precision import InDouble

Leaf = tuple[str, Any]  # where something stands in what a forward returns, and what it is


@dataclass(frozen=True)
class Call:
    """One forward: its arguments, and whether gradients are recorded."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    gradients: bool = False
    ours: bool = False  # whether its numbers are not the user's: then the original may be undefined there

    def changed(self, name: str, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with other floating-point tensors."""

        def leaf(x: Any) -> Any:
            return change(x) if isinstance(x, Tensor) and x.is_floating_point() else x

        args, kwargs = tree_map(leaf, (self.args, dict(self.kwargs)))
        return replace(self, name=name, args=args, kwargs=kwargs, ours=True)

    def fresh(self, dtype: torch.dtype | None) -> Call:
        """The same call with tensors of its own, in this dtype: a forward may overwrite its arguments."""

        args, kwargs = Example(self.args, self.kwargs).fresh(dtype)
        return replace(self, args=args, kwargs=kwargs)

    @property
    def sizes(self) -> str:
        """The shapes of its tensors, in words."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return ", ".join("x".join(map(str, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))


class NotRunError(Exception):
    """The original does not run so, for a reason of its own."""


class RefusedError(Exception):
    """The compiled model says that it was not compiled for such an input."""


# --- hostile variants ---------------------------------------------------------------------------------


def probes(given: Call) -> list[Call]:
    """The call as given, and with hostile numbers of the same shapes."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)

    return [
        given,
        given.changed("random input", noise),
        given.changed("constant one", torch.ones_like),
        given.changed("border impulses", _impulses),
    ]


def _impulses(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    if x.dim() >= 3 and x.numel():
        out[..., 0, 0] = 1.0
        out[..., -1, -1] = -1.0
        out[..., 0, -1] = 2.0
    elif x.numel():
        out[..., 0] = 1.0
    return out


# --- running ------------------------------------------------------------------------------------------


@contextmanager
def trying(model: nn.Module) -> Iterator[Callable[[Call], str]]:
    """A function that runs calls on a copy of the model and says what an unsuccessful one raised, or ""."""
    kept, states = Kept(model, modules_of(model)), generators()
    with private(model, None) as own, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def raised(call: Call) -> str:
            try:
                outputs_of(own, call, None, NotRunError)
            except (NotRunError, RefusedError) as error:
                return str(error)
            finally:
                set_generators(states)
                kept.restore_outside()
            return ""

        yield raised


@contextmanager
def private(model: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    """A copy in this dtype; the model itself, put back afterwards, where it cannot be copied."""
    try:
        own = copied(model)
        own = own if dtype is None else own.to(dtype)
    except Exception as error:  # a user's class copies as it likes
        if dtype is not None:
            raise NotRunError(f"it cannot be copied ({first_line(error)})") from error
        with held(model), restored(Kept(model, modules_of(model))):
            yield model
    else:
        yield own


def outputs_of(
    model: nn.Module, call: Call, dtype: torch.dtype | None, failure: type[Exception], double: InDouble | None = None
) -> list[Leaf]:
    """The leaves of what a forward returns, with their places.  Raises `failure`, or `RefusedError`."""
    with modes_kept(), torch.set_grad_enabled(call.gradients), ExitStack() as stack:
        if dtype == torch.float64:
            stack.enter_context(FastDepthwise())  # the inner of the two: what it computes is in float64 already
            stack.enter_context(double or InDouble(dtype))
        try:
            given = call.fresh(dtype)
            return list(leaves(model(*given.args, **dict(given.kwargs))))
        except InputError as error:
            raise RefusedError(str(error)) from error
        except Exception as error:
            raise failure(f"it raises {first_line(error)}") from error


def leaves(value: Any, place: str = "", above: tuple[int, ...] = ()) -> Iterator[Leaf]:
    """Everything that a forward returns, in containers, objects and generators, with the way there."""
    if isinstance(value, Tensor | str | bytes | int | float | complex | type(None)):
        yield place, value
    elif id(value) in above:
        return
    elif isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key], f"{place}[{key!r}]", (*above, id(value)))
    elif isinstance(value, list | tuple | Iterator):
        for index, item in enumerate(value):
            yield from leaves(item, f"{place}[{index}]", (*above, id(value)))
    elif hasattr(value, "__dict__") and not callable(value):
        for name, item in vars(value).items():
            yield from leaves(item, f"{place}.{name}", (*above, id(value)))
