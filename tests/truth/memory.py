"""Memory: values that are written, in place, through `.data`, under contexts, or that come back changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

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
    torch.Tensor.data.__set__(y, y.sign())
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


def itself(view: Callable[[Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    """A value is asked for in the form that it has, is the same memory, and is written."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = first(s, x)
        view(y).mul_(2.0)
        return second(s, y)

    return run


def counts(view: Callable[[Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    """The same for whole numbers."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = first(s, x)
        count = view((y > 0).sum((2, 3), keepdim=True) * 0 + 3)
        same = view(count)
        same -= 1
        return second(s, y * count)

    return run


def masked(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    keep = y > 0
    keep.bool().logical_not_()
    return second(s, y * keep)


def filled_by_init(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    nn.init.constant_(y[:, :1], 2.0)
    return second(s, y)


def in_a_list(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    torch._foreach_mul_([y], 2.0)
    return second(s, y)


def masks(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    inside = (y > 0) & (y < 1) | (y < -1) ^ (y < -2)
    inside |= y > 2
    inside &= y < 3
    inside ^= y > 2.5
    return second(s, y * ~inside)


def viewed_after(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    out = torch.zeros_like(y)
    out[:, :2] = y[:, :2]
    out[:, 2:] = y[:, 2:] * 2.0
    return second(s, out.view(y.shape))


def viewed_before(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    rows = y.view(y.shape)
    y[:, :2] = y[:, :2] * 2.0
    return second(s, rows)


def made_like(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    out = torch.zeros(y.shape).type_as(y)
    out[:, :2] = 1.0
    return second(s, y.relu() + out)


def copied_weights(s: Net, x: Tensor) -> Tensor:
    s.a.weight.detach().mul_(0.5)
    other = copy.deepcopy(s.a)
    return second(s, s.n(other(x)))


def mask() -> Tensor:
    return (torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(3)) > 0.5).double()


SAME = {
    "double": lambda y: y.double(),
    "to its dtype": lambda y: y.to(torch.float64),
    "to its device": lambda y: y.to("cpu"),
    "type_as": lambda y: y.type_as(y),
    "type": lambda y: y.type(torch.float64),
    "contiguous": lambda y: y.contiguous(),
    "real": lambda y: y.real,
    "conj": lambda y: y.conj(),
    "conj_physical": lambda y: y.conj_physical(),
    "positive": lambda y: +y,
    "summed to its size": lambda y: y.sum_to_size(y.shape),
    "dense": lambda y: y.to_dense(),
    "alias": lambda y: torch.ops.aten.alias(y),
    "like itself": lambda y: y.view_as(y),
    "expanded": lambda y: y.expand_as(y),
    "reshaped": lambda y: y.reshape(y.shape),
    "one dimension more": lambda y: torch.atleast_3d(y),
    "broadcast": lambda y: torch.broadcast_tensors(y, y)[0],
    "a diagonal": lambda y: torch.diagonal(y, 0, 2, 3),
}
WHOLE = {
    "long": lambda n: n.long(),
    "int": lambda n: n.int(),
    "short": lambda n: n.short(),
    "char": lambda n: n.char(),
    "byte": lambda n: n.byte(),
}
CASES = {
    **{f"itself: {name}": Case(itself(view), STAYS, gradients=False) for name, view in SAME.items()},
    **{f"itself: {name}": Case(counts(view)) for name, view in WHOLE.items()},
    "itself: bool": Case(masked),
    "filled by an initialiser": Case(filled_by_init, STAYS),
    "written in a list": Case(in_a_list, STAYS, gradients=False),
    "a copy of a part": Case(copied_weights, STAYS, because="reads the numbers of a weight"),
    "masks joined": Case(masks),
    "viewed after it was written": Case(viewed_after),
    "viewed before it was written": Case(viewed_before, STAYS),
    "made like another": Case(made_like),
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
