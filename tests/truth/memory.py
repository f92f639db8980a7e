"""Memory: values that are written, in place, through `.data`, under contexts, or that come back changed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tests.compiling import Net
from tests.truth.case import STAYS, Case, both, first, second


def data_assigned(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    y.data = y.data.sign()
    return second(s, y)


def data_set_by_name(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    setattr(y, "data", y.data.sign())  # noqa: B010
    return second(s, y)


def data_past_the_instance(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    torch.Tensor.data.__set__(y, y.sign())  # type: ignore[attr-defined]
    return second(s, y)


def data_scaled(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    y.data.mul_(2.0)
    return second(s, y)


def data_item(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    y.data[:, 0] = 1.0
    return second(s, y)


def detached_written(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    z = y.detach()
    z.add_(1.0)
    return second(s, y)


def set_to_another(s: Net, x: Tensor) -> Tensor:
    y = first(s, x).detach()
    y.set_(y.sign())
    return second(s, y)


def weight_masked(s: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        s.a.weight.mul_(s.mask)
    return both(s, x)


def weight_data_masked(s: Net, x: Tensor) -> Tensor:
    s.a.weight.data.mul_(s.mask)
    return both(s, x)


def weight_replaced(s: Net, x: Tensor) -> Tensor:
    s.a.weight.data = s.a.weight.data * s.mask
    return both(s, x)


def outside_written(s: Net, x: Tensor) -> Tensor:
    s.kept[0].add_(1.0)
    return both(s, x) + s.kept[0]


def array_written(s: Net, x: Tensor) -> Tensor:
    s.array += 1.0
    return both(s, x) * float(s.array[0])


def argument_written(s: Net, x: Tensor) -> Tensor:
    x.mul_(2.0)
    return both(s, x)


def attribute_set(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    y.tag = 2.0
    return second(s, y) * y.tag


def attribute_set_by_name(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    setattr(y, "tag", 2.0)  # noqa: B010
    return second(s, y) * getattr(y, "tag", 1.0)


def attribute_on_the_class(s: Net, x: Tensor) -> Tensor:
    y = s.keep(first(s, x))
    y.mask = 3.0
    return second(s, s.keep(y)) * (2.0 if hasattr(y, "mask") else 1.0)


def through_a_view(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    y.view(-1)[0] = 5.0
    return second(s, y)


def into_out(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    torch.mul(torch.relu(y), 2.0, out=y) if not y.requires_grad else y.relu_().mul_(2.0)
    return second(s, y)


def swapped(s: Net, x: Tensor) -> Tensor:
    y, z = first(s, x), first(s, x) * 2.0
    y, z = z, y
    y += z
    return second(s, y) - second(s, z)


def mask() -> Tensor:
    return (torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(3)) > 0.5).double()


CASES = {
    "data assigned": Case(data_assigned, STAYS, because="assigns .data"),
    "data set by name": Case(data_set_by_name, STAYS, because="assigns .data"),
    "data set past the instance": Case(data_past_the_instance, STAYS, because="assigns .data"),
    "data scaled": Case(data_scaled, STAYS),
    "an item of data": Case(data_item, STAYS),
    "a detached value written": Case(detached_written, STAYS),
    "set to another tensor": Case(set_to_another, STAYS, gradients=False),
    "a weight masked": Case(weight_masked, STAYS, parts={"mask": mask}, because="switches gradients"),
    "the data of a weight masked": Case(weight_data_masked, 1, parts={"mask": mask}),
    "the data of a weight replaced": Case(weight_replaced, STAYS, parts={"mask": mask}, because="assigns .data"),
    "a tensor in a list written": Case(outside_written, STAYS, parts={"kept": lambda: [torch.zeros(1).double()]}),
    "an array written": Case(
        array_written,
        STAYS,
        parts={"array": lambda: np.zeros(2)},
        because="reads what an earlier forward wrote",
    ),
    "the argument written": Case(argument_written, 1, gradients=False),
    "an attribute of a value": Case(attribute_set, STAYS, because="assigns .tag"),
    "an attribute set by name": Case(attribute_set_by_name, STAYS, because="assigns .tag"),
    "an attribute through an identity": Case(
        attribute_on_the_class, STAYS, parts={"keep": nn.Identity}, because="assigns .mask"
    ),
    "an item through a view": Case(through_a_view, STAYS),
    "an output argument": Case(into_out, STAYS),
    "names that change places": Case(swapped),
}
