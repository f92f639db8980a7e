"""Ways out of Python: autograd functions, compiled and scripted code, NumPy, functional transforms."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.compiling import Net
from tests.truth.case import STAYS, Case, both, first, second


class Swish(torch.autograd.Function):
    """Memory-efficient: keeps its input, not its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * s * (1 + x * (1 - s))


kept_apply = Swish.apply


class Sign(torch.autograd.Function):
    """Binarisation whose gradient is its argument's: the straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Quantise(torch.autograd.Function):
    """With arguments that are no tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, scale: float | None = None) -> Tensor:
        step = 2.0**-bits if scale is None else scale
        return torch.round(x / step) * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None


class Reversal(torch.autograd.Function):
    """Gradient reversal: the forward is a view."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -ctx.factor * grad, None


class Norm(torch.autograd.Function):
    """LayerNorm2d as NAFNet has it, with weights among its arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / (var + eps).sqrt()
        ctx.save_for_backward(y, var, weight)
        return weight.view(1, -1, 1, 1) * y + bias.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, var, weight = ctx.saved_tensors
        return (
            grad * weight.view(1, -1, 1, 1) / (var + 1e-6).sqrt(),
            (grad * y).sum((0, 2, 3)),
            grad.sum((0, 2, 3)),
            None,
        )


class Both(torch.autograd.Function):
    """Two outputs, and a context that is set up apart."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x.abs()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return a * (x > 0) + b * x.sign()


class Halved(torch.autograd.Function):
    """Writes into its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(0.5)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 0.5


class ThroughNumPy(torch.autograd.Function):
    """Computed by another library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Chosen(torch.autograd.Function):
    """Asks what its gradients are needed for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2 if ctx.needs_input_grad[0] else x + x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def halved(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    z = Halved.apply(y)
    return second(s, z) + second(s, y)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * 2.0 + 1.0 if x.size(0) > 0 else x


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def mapped(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.vmap(lambda row: row * 2.0)(first(s, x)))


def differentiated(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.func.grad(lambda y: (y**2).sum())(first(s, x)))


def to_numpy(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y) * float(np.asarray(y.detach()).max())


def through_numpy(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.from_numpy(np.maximum(first(s, x).detach().numpy(), 0.0)))


def ufunc(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.as_tensor(np.sqrt(first(s, x).detach().abs())))


def copied_as_tensor(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.tensor(first(s, x).detach().tolist(), dtype=torch.float64))


def as_tensor(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.as_tensor(first(s, x)))


def as_a_parameter(s: Net, x: Tensor) -> Tensor:
    return second(s, nn.Parameter(first(s, x)))


def deep_copy(s: Net, x: Tensor) -> Tensor:
    return second(s, copy.deepcopy(first(s, x).detach()))


def pickled(s: Net, x: Tensor) -> Tensor:
    return second(s, pickle.loads(pickle.dumps(first(s, x).detach())))


def through_dlpack(s: Net, x: Tensor) -> Tensor:
    return second(s, torch.from_dlpack(first(s, x).detach()))


def in_a_weight(s: Net, x: Tensor) -> Tensor:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    weight.data = first(s, x).mean((0, 2, 3)).detach()
    return second(s, first(s, x) * weight.view(1, -1, 1, 1))


def by_data(s: Net, x: Tensor) -> Tensor:
    y = first(s, x)
    return second(s, y) if float(y.detach().sum()) > 0 else second(s, y.relu())


CASES = {
    "a function with its own backward": Case(lambda s, x: second(s, Swish.apply(first(s, x)))),
    "its apply, kept": Case(lambda s, x: second(s, kept_apply(first(s, x)))),
    "straight through": Case(lambda s, x: second(s, Sign.apply(first(s, x)))),
    "arguments that are no tensors": Case(lambda s, x: second(s, Quantise.apply(first(s, x), 4, None))),
    "gradient reversal": Case(lambda s, x: second(s, Reversal.apply(first(s, x), 0.5))),
    "weights among the arguments": Case(lambda s, x: second(s, Norm.apply(first(s, x), s.n.weight, s.n.bias, 1e-6)), 0),
    "two outputs": Case(lambda s, x: second(s, sum(Both.apply(first(s, x))))),
    "two outputs, unpacked": Case(lambda s, x: [second(s, y) for y in Both.apply(first(s, x))]),
    "it writes into its argument": Case(halved, STAYS),
    "it leaves torch": Case(lambda s, x: second(s, ThroughNumPy.apply(first(s, x))), STAYS),
    "it asks for its gradients": Case(lambda s, x: second(s, Chosen.apply(first(s, x)))),
    "checkpointed": Case(lambda s, x: checkpoint(lambda y: both(s, y), x, use_reentrant=False)),
    "checkpointed by a function": Case(lambda s, x: checkpoint(lambda y: both(s, y), x, use_reentrant=True)),
    "a scripted function": Case(lambda s, x: second(s, scripted(first(s, x))), STAYS),
    "a scripted part": Case(lambda s, x: second(s, s.p(first(s, x))), parts={"p": Scripted}),
    "an operator by its name": Case(lambda s, x: second(s, torch.ops.aten.relu(first(s, x)))),
    "a map over the batch": Case(mapped, STAYS),
    "a gradient of a function": Case(differentiated, STAYS),
    "to NumPy": Case(to_numpy, STAYS),
    "to NumPy and back": Case(through_numpy, STAYS),
    "a ufunc": Case(ufunc, STAYS),
    "a list and back": Case(copied_as_tensor, STAYS),
    "as a tensor": Case(as_tensor, STAYS),
    "as a parameter": Case(as_a_parameter, STAYS, gradients=False),
    "copied deeply": Case(deep_copy, STAYS),
    "pickled": Case(pickled, STAYS),
    "through another library": Case(through_dlpack, STAYS),
    "the data of a new weight": Case(in_a_weight, STAYS),
    "what data decide": Case(by_data, STAYS),
}
