"""Recording: what torch.fx's tracer does for every operation, module call and parameter, with less work.

The graph is the one that torch.fx makes: same nodes, names, order and module stacks.  What is left out
is searching.  A parameter is looked up, where torch.fx walks through all of them at every read; arguments
are told apart by their exact type; nodes that one module call records share one module stack.
Whatever is not plain here goes to torch.fx's own code.

Measured against torch.fx's own, parameters looked up in either case: compiling without verification takes 2 to 14 %
less time; without the look-up, mobileone_s0 takes 2.5 times as long.
"""

from __future__ import annotations

from collections import OrderedDict
from types import EllipsisType, NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Scope

from repfx.introspection import frame_of_caller, unpacked

_PLAIN = {
    str, int, float, bool, complex, NoneType, EllipsisType, torch.dtype, torch.device, torch.memory_format,
    torch.layout,
}  # fmt: skip


class RecordingTracer(fx.Tracer):
    """torch.fx's tracer, which finds parameters and tells arguments apart without searching."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scope = _Scope("", None)
        self.module_stack = _Stack()
        self._names: dict[Tensor, str] = {}  # of parameters and buffers
        self._read: dict[str, Any] = {}  # the traced values of those that were read

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """As fx's, which leaves the tracer in a reference cycle: what it has collected is let go here."""
        try:
            return super().trace(root, concrete_args)
        finally:
            self._names, self.tensor_attrs, self.num_calls, self.node_name_to_scope = {}, {}, {}, {}
            self._read.clear()
            self._read = {}

    def create_arg(self, a: Any) -> Any:
        """As fx's, whose order of questions it keeps; an exact type answers most of them at once."""
        kind = type(a)
        if kind in _PLAIN:
            return a
        if issubclass(kind, fx.Proxy):
            return a.node
        if kind is tuple:
            return tuple([self.create_arg(item) for item in a])
        if kind is list:
            return [self.create_arg(item) for item in a]
        if kind is dict and all(type(key) is str for key in a):
            return {key: self.create_arg(value) for key, value in a.items()}
        return super().create_arg(a)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        """As fx's, which flattens all arguments to warn of symbolic numbers; nothing here makes those."""
        if not kind.startswith("call"):
            return super().create_node(kind, target, args, kwargs, name, type_expr)
        node = super().create_node(kind, target, (), {}, name, type_expr)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As fx's: what a module's attribute is in the trace.  A traced value that the code itself put there stays."""
        if isinstance(attr_val, fx.Proxy):
            return attr_val
        if not isinstance(attr_val, Tensor) or not (self.proxy_buffer_attributes or isinstance(attr_val, nn.Parameter)):
            return attr_val
        name = self._name_of(attr_val)
        if name is None:
            return attr_val
        self._read = parameter_proxy_cache
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.attribute_proxy(name, attr_val)
        return parameter_proxy_cache[name]

    def unpack(self, obj: fx.Proxy, count: int) -> Any:
        """The items of a value that is unpacked into so many names."""
        return (obj[i] for i in range(count))  # type: ignore[index]

    def attribute_proxy(self, name: str, value: Tensor) -> fx.Proxy:
        """The traced value of a parameter or buffer."""
        return self.create_proxy("get_attr", name, (), {})

    def _name_of(self, tensor: Tensor) -> str | None:
        """Where a parameter or buffer is registered first, or None."""
        name = self._names.get(tensor)
        if name is None or _registered(self.root, name) is not tensor:  # first asked for, or code has changed modules
            buffers = self.root.named_buffers() if self.proxy_buffer_attributes else ()
            self._names = {value: path for path, value in (*buffers, *self.root.named_parameters())}
            name = self._names.get(tensor)
        return name


class RecordedProxy(fx.Proxy):
    """A traced value that finds its tracer, and the code that unpacks it, without searching."""

    tracer: Any

    def __iter__(self) -> Any:
        count = unpacked(frame_of_caller())
        return self.tracer.iter(self) if count is None else self.tracer.unpack(self, count)

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        tracers: set[fx.proxy.TracerBase] = set()
        plain = _collect((args, kwargs), tracers)
        name = getattr(orig_method, "__name__", "__")
        if not plain or len(tracers) != 1 or name.startswith("__") or isinstance(orig_method, _NO_FUNCTIONS):
            return super().__torch_function__(orig_method, types, args, kwargs)
        kind = "call_method" if torch.overrides.is_tensor_method_or_property(orig_method) else "call_function"
        target = name if kind == "call_method" else orig_method
        return tracers.pop().create_proxy(kind, target, args or (), kwargs or {})


_NO_FUNCTIONS = (torch._C.ScriptMethod, torch._ops.HigherOrderOperator)  # torch.fx treats them in its own way


class _Scope(Scope):
    """The module whose code runs; torch.fx copies it at every module call."""

    def __copy__(self) -> _Scope:
        return _Scope(self.module_path, self.module_type)


class _Stack(OrderedDict[str, tuple[str, Any]]):
    """The module calls that are under way; torch.fx copies them for every node.

    All nodes of one call get one copy, as the copies of a graph share those of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies: list[OrderedDict[str, tuple[str, Any]] | None] = [None]

    def __setitem__(self, key: str, value: tuple[str, Any]) -> None:
        super().__setitem__(key, value)
        self._copies.append(None)

    def popitem(self, last: bool = True) -> tuple[str, tuple[str, Any]]:
        self._copies.pop()
        return super().popitem(last)

    def __copy__(self) -> OrderedDict[str, tuple[str, Any]]:
        copied = self._copies[-1]
        if copied is None or len(copied) != len(self):
            copied = self._copies[-1] = OrderedDict(self)
        return copied


def _collect(value: Any, tracers: set[fx.proxy.TracerBase]) -> bool:
    """Add the tracers of all traced values in there; false where something is no plain container or constant."""
    kind = type(value)
    if issubclass(kind, fx.Proxy):
        tracers.add(value.tracer)
        return True
    if kind is tuple or kind is list:
        return all(_collect(item, tracers) for item in value)
    if kind is dict:
        return all(_collect(item, tracers) for item in value.values())
    return kind in _PLAIN or kind is Tensor or kind is nn.Parameter


def _registered(root: nn.Module, path: str) -> Tensor | None:
    """The parameter or buffer at a path, as long as it stands there."""
    *parents, name = path.split(".")
    owner: nn.Module | None = root
    for parent in parents:
        owner = None if owner is None else owner._modules.get(parent)
    if owner is None:
        return None
    found = owner._parameters.get(name)
    return owner._buffers.get(name) if found is None else found
