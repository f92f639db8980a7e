"""Traced values: what stands for a tensor, a size or anything else while the user's code runs.

A traced tensor *is* a `torch.Tensor`, of a subclass that records what is done to it.  So `isinstance`, `match`,
`singledispatch` and C code see the truth without being told anything.  It has no memory and no sizes of its own:
C code that looks for them past `__torch_function__` ends in `__torch_dispatch__`, which refuses.  A traced size is
no tensor, and says through `__class__` that it is an int.

What a value cannot answer truthfully, and could not be recorded, is refused, whoever asks; what can be
answered is decided by `repfx.tracing.answers`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from repfx.introspection import compared_by_identity, frame_of_caller, instruction, unpacked, way_around_raise
from repfx.tracing.mutable import MutableProxy
from repfx.tracing.proxy_queries import ATTRIBUTES
from repfx.tracing.recording import RecordedProxy

_OWN = ("node", "tracer", "root", "attr", "_node")  # what torch.fx keeps on a traced value


class TracedProxy(RecordedProxy, MutableProxy):
    """A traced value, which says what type the value has, and takes the way of a check that does not raise."""

    tracer: Any

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what isinstance() asks
        found: type = self.tracer.answers.type_of(self)
        return found

    def __getattr__(self, name: str) -> Any:
        self.tracer.answers.check_attribute(self.node, name)
        return self._attribute(name)

    def _attribute(self, name: str) -> Any:
        if name in GRADIENTS:
            self.tracer.stop(f"asks for .{name} of a value, which is no function of the inputs")
        if compared_by_identity(frame_of_caller(2)):
            self.tracer.stop(f"asks which object .{name} of a value is, which nothing tells")
        return self.tracer.attribute_of(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            self.tracer.stop(f"assigns .{name} of a value")
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        self.tracer.stop(f"deletes .{name} of a value")

    def __hash__(self) -> int:
        return hash(self.tracer.answers.key_of(self))

    def __len__(self) -> int:
        self._check_sized()
        return int(self.tracer.answers.size_of(self))

    def __iter__(self) -> Any:
        self._check_sized()
        count = unpacked(frame_of_caller())
        return self.tracer.answers.iter(self) if count is None else self.tracer.answers.unpack(self, count)

    def _check_sized(self) -> None:
        """A number has no items."""
        found = self.tracer.answers.kind_of(self.node)
        if found in (int, float, bool):
            raise TypeError(f"{found.__name__!r} object has no items")

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __bool__(self) -> bool:
        way = way_around_raise(frame_of_caller(), self.tracer.outermost)
        return bool(self.tracer.answers.to_bool(self)) if way is None else way

    def __int__(self) -> int:
        return int(self.tracer.answers.number_of(self))

    def __float__(self) -> float:
        return float(self.tracer.answers.number_of(self))

    def __complex__(self) -> complex:
        return complex(self.tracer.answers.number_of(self))

    def __repr__(self) -> str:
        return str(self.tracer.answers.text_of(self, repr))

    def __str__(self) -> str:
        return str(self.tracer.answers.text_of(self, str))

    def __format__(self, how: str) -> str:
        return str(self.tracer.answers.text_of(self, lambda value: format(value, how)))

    def __contains__(self, item: Any) -> bool:
        return bool(self.tracer.answers.holds(self, item))

    def __deepcopy__(self, memo: Any) -> Any:
        self.tracer.stop("copies a value deeply")

    def __copy__(self) -> Any:
        self.tracer.stop("copies a value")

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.tracer.stop("pickles a value")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.tracer.stop("hands a value to NumPy")


class TracedTensor(TracedProxy, Tensor):  # type: ignore[misc]
    """A traced value that is a tensor."""

    _is_param = False  # `isinstance(w, nn.Parameter)` asks
    held: Tensor | None = None  # the parameter or buffer that this is; its sizes are structure

    @staticmethod
    def __new__(cls, node: fx.Node, tracer: Any = None, held: Tensor | None = None) -> Any:
        """A tensor without memory.

        `_make_wrapper_subclass` is how "Extending PyTorch" makes one: sizes and device are asked for through
        `__torch_dispatch__`, so that C code gets a refusal and never a number.
        """
        return Tensor._make_wrapper_subclass(
            cls, (0,), dtype=torch.float32, device=torch.device("meta"),
            dispatch_sizes_strides_policy="sizes", dispatch_device=True, dispatch_layout=True,
        )  # fmt: skip

    def __init__(self, node: fx.Node, tracer: Any = None, held: Tensor | None = None) -> None:
        own = self.__dict__
        own["node"], own["tracer"], own["held"] = node, tracer, held
        own["_is_param"] = isinstance(held, nn.Parameter)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return nn.Parameter if self.__dict__["_is_param"] else Tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """C code wants to compute with this value, or to know its sizes."""
        values: list[Any] = []
        tree_map(lambda a: values.append(a) if isinstance(a, TracedTensor) else None, (args, kwargs))
        values[0].__dict__["tracer"].stop(f"hands a value to code that is not Python, which asks for {func}")

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        name = getattr(orig_method, "__name__", "")
        if name in ("__get__", "__set__", "__delete__"):  # of a property of Tensor's, reached past the instance
            return _of_property(orig_method, name, args or ())
        return super().__torch_function__(orig_method, types, args, kwargs)

    def __eq__(self, other: Any) -> Any:
        return NotImplemented if _incomparable(other) else _compared(operator.eq, self, other)

    def __ne__(self, other: Any) -> Any:
        return NotImplemented if _incomparable(other) else _compared(operator.ne, self, other)

    def __hash__(self) -> int:
        return object.__hash__(self)  # a tensor's is its identity

    def __len__(self) -> int:
        held = self.__dict__["held"]
        return len(held) if held is not None else super().__len__()

    def __reversed__(self) -> Any:
        return self.tracer.create_proxy("call_method", "flip", (self, 0), {})

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        self.tracer.stop("hands a value to another library")

    __dlpack_device__ = __dlpack__

    @property
    def keys(self) -> Any:
        """torch.fx gives every traced value keys; a tensor has none."""
        raise AttributeError("'Tensor' object has no attribute 'keys'")

    def __delitem__(self, index: Any) -> None:
        raise TypeError("Tensor does not support deleting items")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "requires_grad" and value is False and self.__dict__["held"] is None:
            return  # torch refuses that of a value with a history, so this one has none
        super().__setattr__(name, value)

    def _attribute(self, name: str) -> Any:
        held = self.__dict__["held"]
        if name in _OBJECTS and compared_by_identity(frame_of_caller(2)):
            return self.tracer.answers.object_of(super()._attribute(name), name)
        if held is not None and name in _SIZES:
            return getattr(held, name)
        if name in GRADIENTS or name.startswith("_"):
            return self.tracer.answers.gradient_fact(self, name)
        if ATTRIBUTES.get(name) is Tensor:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super()._attribute(name)


_OBJECTS = tuple(n for n, of in ATTRIBUTES.items() if of in (torch.dtype, torch.device, torch.layout, bool))
_SIZES = ("shape", "ndim", "size", "dim", "ndimension", "numel", "nelement")
GRADIENTS = ("requires_grad", "is_leaf", "grad", "grad_fn", "retains_grad", "volatile", "output_nr")


def _incomparable(other: Any) -> bool:
    """What a tensor is never equal to, and not elementwise either."""
    return other is None or isinstance(other, str | bytes | type | dict | set)


def _compared(operation: Callable[..., Any], value: TracedTensor, other: Any) -> Any:
    return value.tracer.create_proxy("call_function", operation, (value, other), {})


def _of_property(descriptor: Any, access: str, args: tuple[Any, ...]) -> Any:
    name = descriptor.__self__.__name__
    if access == "__get__":
        return getattr(args[0], name)
    return args[0].tracer.stop(f"assigns .{name} of a value")


def _named(name: str) -> property:
    """Tensor's own attribute of this name, as a traced tensor has it."""

    def read(self: TracedTensor) -> Any:
        return self._attribute(name)

    def write(self: TracedTensor, value: Any) -> None:
        self.tracer.stop(f"assigns .{name} of a value")

    return property(read, write)


def _overwriting(operation: Any) -> Any:
    def overwrite(self: TracedTensor, other: Any) -> Any:
        return self._in_place(operation, other)

    return overwrite


for _name in ("iand", "ior", "ixor", "ilshift", "irshift"):
    type.__setattr__(TracedTensor, f"__{_name}__", _overwriting(getattr(operator, _name)))
for _name in dir(Tensor):
    if not _name.startswith("__") and _name not in TracedTensor.__dict__ and not hasattr(fx.Proxy, _name):
        type.__setattr__(TracedTensor, _name, _named(_name))


class _TypeAsked(type):
    """What makes `TypeOf` stand in for `type`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            return type(*args, **kwargs)
        found = args[0].__class__ if issubclass(type(args[0]), fx.Proxy) else type(args[0])
        return cls if found is type else found

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, type)

    def __subclasscheck__(cls, of: type) -> bool:
        return issubclass(of, type)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is type

    def __hash__(cls) -> int:
        return hash(type)


class TypeOf(type, metaclass=_TypeAsked):
    """`type` in the namespace of code that runs in a trace: `type(x) is torch.Tensor`.

    `type(x)` looks at an object's C struct and can be told nothing; the name can.
    """


def callable_told(value: Any) -> bool:
    """`callable` in the namespace of code that runs in a trace: torch.fx makes every traced value callable."""
    return callable(value) and not issubclass(type(value), TracedTensor)


def isinstance_told(value: Any, kind: Any) -> bool:
    """`isinstance` in the namespace of code that asks for torch.fx's own values."""
    if not issubclass(type(value), fx.Proxy):
        return isinstance(value, kind)
    kinds = [one for one in (kind if isinstance(kind, tuple) else (kind,)) if one is not fx.Proxy]
    return any(isinstance(value, one) for one in kinds)


class TracedAttribute(fx.proxy.Attribute, TracedProxy):
    """`x.shape`, or the method that `x.view` is."""


class TracedSequence(TracedProxy):
    """A traced tuple or list, which `match` takes for one."""


class TracedMapping(TracedProxy):
    """A traced dictionary, which `match` takes for one."""


class TracedShape(TracedAttribute):
    """`x.shape`, which is a sequence."""


class SizedProxy(TracedProxy):
    """A traced value whose sizes are known for the example."""

    def __index__(self) -> int:
        if not self.tracer.answers.is_whole(self.node):
            raise TypeError("no whole number")  # C code tries what a value is
        value = operator.index(self.tracer.answers.number_of(self))
        self.tracer.answers.asked_by(instruction(frame_of_caller()))
        return value

    def __float__(self) -> float:
        value = float(self.tracer.answers.number_of(self))
        self.tracer.answers.asked_by(instruction(frame_of_caller()))
        return value

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.tracer.answers.is_number(self.node):
            return super().__array__(*args, **kwargs)
        return np.asarray(self.tracer.answers.number_of(self), *args)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.answers.number_of(self), digits)

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        found: list[Any] = []
        tree_map(lambda x: found.append(x) if issubclass(type(x), SizedProxy) else None, (args, kwargs))
        for proxy in found[:1]:
            proxy.tracer.answers.take_back(instruction(frame_of_caller()))
        return super().__torch_function__(orig_method, types, args, kwargs)


class SizedAttribute(fx.proxy.Attribute, SizedProxy):
    """`x.shape`, whose length and items are known for the example."""


class SizedSequence(SizedProxy, TracedSequence):
    """A traced tuple or list of which the sizes are known for the example."""


class SizedMapping(SizedProxy, TracedMapping):
    """A traced dictionary of which the sizes are known for the example."""


class SizedShape(SizedAttribute, TracedShape):
    """`x.shape`, known for the example."""


class SizedTensor(SizedProxy, TracedTensor):  # type: ignore[misc]
    """A traced tensor whose sizes are known for the example."""


@dataclass(frozen=True)
class Values:
    """The classes that stand for values: one for each kind of thing that C code tells apart by its type."""

    other: type[TracedProxy]
    tensor: type[TracedTensor]
    sequence: type[TracedSequence]
    mapping: type[TracedMapping]
    attribute: type[fx.proxy.Attribute]
    shape: type[fx.proxy.Attribute]

    def standing_for(self, kind: type | None) -> type[TracedProxy]:
        """Which of them stands for a value of this type."""
        if kind is None:
            return self.other
        if kind is Tensor:
            return self.tensor
        if issubclass(kind, tuple | list):
            return self.sequence
        return self.mapping if issubclass(kind, dict) else self.other


UNSIZED = Values(TracedProxy, TracedTensor, TracedSequence, TracedMapping, TracedAttribute, TracedShape)
SIZED = Values(SizedProxy, SizedTensor, SizedSequence, SizedMapping, SizedAttribute, SizedShape)

for _kind in (TracedSequence, TracedShape):
    Sequence.register(_kind)  # sets what `case (_, channels, _, _):` looks at, and it looks at the C type
Mapping.register(TracedMapping)
