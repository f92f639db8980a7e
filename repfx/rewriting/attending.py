"""One attention written out: the operations that `Attend` becomes, in a graph or on tensors.

The same lines write the nodes of a compiled graph and compute the values that the verification compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from repfx.rewriting.proposal import Attend

Shape = tuple[int, ...]


class Writer(Protocol):
    """What operations are written with: an `fx.Graph`, or `Eager`."""

    def call_function(self, the_function: Any, args: Any, kwargs: Any = None) -> Any: ...

    def call_method(self, method_name: str, args: Any, kwargs: Any = None) -> Any: ...


class Eager:
    """Computes each operation at once."""

    def call_function(self, the_function: Any, args: Any, kwargs: Any = None) -> Any:
        return the_function(*args, **(kwargs or {}))

    def call_method(self, method_name: str, args: Any, kwargs: Any = None) -> Any:
        return getattr(args[0], method_name)(*args[1:], **(kwargs or {}))


def attended(
    writer: Writer, expr: Attend, values: Sequence[Any], bias: Sequence[tuple[Any, Shape, Shape]]
) -> list[Any]:
    """What all operations make of query, key and value, the result last; `bias` are the constants of `expr`, their
    shapes, and the shapes they are read in.

    query (..., N, heads * d), key (..., M, heads * d), value (..., M, heads * e) to (..., N, heads * e);
    without heads (..., N, d), (..., M, d), (..., M, e) to (..., N, e).
    """
    made: list[Any] = []

    def method(name: str, *args: Any) -> Any:
        made.append(writer.call_method(name, args))
        return made[-1]

    def prepared(x: Any, transposed: bool) -> Any:
        if expr.heads:
            return method("transpose", method("unflatten", x, -1, (expr.heads, -1)), -3, -2)
        return method("transpose", x, -2, -1) if transposed else x

    options: dict[str, Any] = {"scale": expr.scale}
    if expr.causal:
        options["is_causal"] = True
    if bias:
        parts = [b if tuple(shape) == own else method("reshape", b, shape) for b, own, shape in bias]
        if len(parts) > 1:
            made.append(writer.call_function(torch.cat, (parts, -3)))
            parts = made[-1:]
        options["attn_mask"] = parts[0]
    transposed = expr.query_transposed, expr.key_transposed, expr.value_transposed
    inputs = tuple(prepared(x, swaps) for x, swaps in zip(values, transposed))
    made.append(writer.call_function(F.scaled_dot_product_attention, inputs, options))
    if expr.heads:
        method("flatten", method("transpose", made[-1], -3, -2), -2)
    return made
