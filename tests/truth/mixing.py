"""Tensors of a forward's own beside the model's values, before them and after them, in every way of calling."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiling import Net
from tests.truth.case import Case, first, second


def own(*shape: int) -> Tensor:
    """Numbers that are the same every time."""
    return torch.linspace(-1.0, 1.0, torch.Size(shape).numel(), dtype=torch.float64).view(shape)


def einsum_before(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.einsum("oc,bchw->bohw", own(4, 4), first(s, x)))


def einsum_after(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.einsum("bchw,oc->bohw", first(s, x), own(4, 4)))


def einsum_between(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.einsum("oc,bchw,oc->bohw", own(4, 4), first(s, x), own(4, 4)))


def tensordot(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.tensordot(own(4, 4), first(s, x), ([1], [1])).transpose(0, 1))


def product(s: Net, x: Tensor) -> Tensor:
    return second(s, (own(4, 4) @ first(s, x).flatten(2)).view_as(first(s, x)))


def distance(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y) * torch.cdist(own(2, 5, 4), y.flatten(2).transpose(1, 2)).mean()


def loss(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y) * F.mse_loss(own(1, 4, 1, 1).expand_as(y), y)


def similarity(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y * F.cosine_similarity(own(1, 4, 1, 1), y, dim=1).unsqueeze(1))


def sampled(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    where = y[:, :2].permute(0, 2, 3, 1).tanh()
    return second(s, y + F.grid_sample(own(1, 4, 6, 6).repeat(2, 1, 1, 1), where, align_corners=False))


def embedded(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    ids = (y > 0).long().sum(1)
    return second(s, y + F.embedding(ids, own(5, 4)).permute(0, 3, 1, 2))


def broadcast(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    scale, z = torch.broadcast_tensors(own(1, 4, 1, 1), y)
    return second(s, scale * z)


def stacked(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, torch.stack([torch.zeros_like(y), y, own(1, 4, 1, 1).expand_as(y)]).sum(0))


def chosen(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, torch.where(own(1, 4, 1, 1) > 0, y, own(1)))


def blended(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.lerp(own(1, 4, 1, 1), first(s, x), 0.25))


def larger(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.maximum(own(1, 4, 1, 1), first(s, x)))


def reflected(s: Net, x: Tensor) -> Tensor:
    return second(s, own(1, 4, 1, 1) - 2.0 / (3.0 + first(s, x).abs()) ** own(1, 4, 1, 1).abs())


def cast_along(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y * own(1, 4, 1, 1).float().type_as(y) + own(1, 4, 1, 1).half().to(y))


def a_method_of_its_own(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, own(1, 4, 1, 1).add(y).mul(y).addcmul(y, own(1, 4, 1, 1), value=0.5))


def filled(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    target = torch.zeros_like(y)
    target.copy_(y)
    target[:, 1] += own(1)
    return second(s, target)


def written_to(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    target = y.new_zeros(2, 4, 6, 6)
    target[:, :, :2, :2] = y[:, :, :2, :2]
    return second(s, y) + second(s, target).mean()


def given_out(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    target = torch.empty_like(y)
    torch.mul(y.detach(), own(1, 4, 1, 1), out=target)
    return second(s, target + y)


def attended(s: Net, x: Tensor) -> Tensor:
    tokens = first(s, x).flatten(2).transpose(1, 2)
    query = own(1, 3, 4).expand(2, 3, 4)
    return second(s, first(s, x) + F.scaled_dot_product_attention(query, tokens, tokens).mean())


def imported(s: Net, x: Tensor) -> Tensor:
    """A module imported here keeps the frame that imported it, and with it this call."""
    module: Any = importlib.import_module("tests.truth.keeping")
    return second(s, first(s, x) * module.FACTOR)


NUMBERS: dict[str, Any] = {
    "a power": lambda y: torch.pow(y, 2),
    "a power of a number": lambda y: torch.pow(2.0, y.tanh()),
    "chosen, or a number": lambda y: torch.where(y > 0, y, 0.0),
    "a number, or chosen": lambda y: torch.where(y > 0, 0.0, y),
    "a remainder": lambda y: torch.remainder(y, 2),
    "a power in float64": lambda y: torch.float_power(y, 2),
    "a product with a logarithm": lambda y: torch.xlogy(y.abs(), 2),
    "bits": lambda y: y * torch.bitwise_and(y.abs().long(), 3),
    "found among": lambda y: y * torch.isin(y.round(), 1),
    "a function of two": lambda y: torch.special.zeta(y.abs() + 2, 2),
    "a number of NumPy's": lambda y: y * np.float32(2) + np.float64(0.5),
    "a tensor of a size": lambda y: y * torch.tensor(y.shape[-1]),
}


def numbered(s: Net, x: Tensor, how: str) -> Tensor:
    return second(s, NUMBERS[how](first(s, x)))


def forget() -> None:
    sys.modules.pop("tests.truth.keeping", None)


CASES = {
    **{how: Case(functools.partial(numbered, how=how)) for how in NUMBERS},
    "a contraction, before": Case(einsum_before),
    "a contraction, after": Case(einsum_after),
    "a contraction, between": Case(einsum_between),
    "over named axes": Case(tensordot),
    "a matrix product": Case(product),
    "distances": Case(distance),
    "a loss": Case(loss),
    "a similarity": Case(similarity),
    "sampled at": Case(sampled),
    "looked up": Case(embedded),
    "broadcast": Case(broadcast),
    "stacked": Case(stacked),
    "chosen": Case(chosen),
    "blended": Case(blended),
    "the larger": Case(larger),
    "reflected operators": Case(reflected),
    "cast along": Case(cast_along),
    "a method of its own": Case(a_method_of_its_own),
    "filled": Case(filled),
    "written to": Case(written_to),
    "given as out": Case(given_out),
    "attended": Case(attended),
    "imported in the forward": Case(imported, reset=forget),
}
