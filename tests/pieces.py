"""The single operations of random networks as modules: scales, channel orders, gates, generated weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.specs import Tokens, divisor

ACTS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "relu.inplace": type("InplaceReLU", (nn.ReLU,), {"__init__": lambda self: nn.ReLU.__init__(self, True)}),
}


class Doubled(nn.Module):
    """Parametrization: tanh of twice the stored weight."""

    def forward(self, w: Tensor) -> Tensor:
        return torch.tanh(2 * w)


class SumWeightConv(nn.Module):
    """Weight = a outer product, plus a padded 1x1."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(c, c))
        self.right = nn.Parameter(torch.randn(c, 3, 3))
        self.point = nn.Parameter(torch.randn(c, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.einsum("oi,ohw->oihw", self.left, self.right) + F.pad(self.point, (1, 1, 1, 1))
        return F.conv2d(x, weight, padding=1)


class FunctionalNorm(nn.Module):
    """F.batch_norm with buffers for statistics."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))
        self.bias = nn.Parameter(torch.zeros(c))
        self.register_buffer("running_mean", torch.zeros(c))
        self.register_buffer("running_var", torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 1e-3)


class ScaleModule(nn.Module):
    """One pointwise affine operation."""

    def __init__(self, spelling: str, c: int) -> None:
        super().__init__()
        self.spelling = spelling
        self.scale = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        s = self.scale.view(-1, 1, 1)
        match self.spelling:
            case "mul.left":
                return self.scale[None, :, None, None] * x
            case "add":
                return x + s
            case "sub":
                return x - s
            case "rsub":
                return s - x
            case "div":
                return x / (1 + s * s)
            case "exp":
                return x * torch.exp(s)
            case "sigmoid":
                return torch.sigmoid(s).unsqueeze(0).mul(x)
            case "number":
                return 1.5 * x - 0.75
            case "inplace.mul":
                x *= s
                return x
            case "inplace.add":
                return x.add_(s)
            case "neg":
                return -x
            case "affine":
                return torch.addcmul(s, x, s)
            case _:
                return x * s


class PermuteModule(nn.Module):
    """A fixed channel order."""

    def __init__(self, spelling: str, c: int) -> None:
        super().__init__()
        self.spelling = spelling
        self.groups = divisor(2 if c % 2 == 0 else 3, c)
        self.register_buffer("order", torch.arange(c).roll(1))

    def forward(self, x: Tensor) -> Tensor:
        match self.spelling:
            case "flip":
                return x.flip(1)
            case "index":
                return x[:, self.order]
            case "select":
                return torch.index_select(x, 1, self.order)
            case "roll":
                return torch.roll(x, 1, 1)
            case _:
                B, C, H, W = x.shape
                return x.view(B, self.groups, C // self.groups, H, W).transpose(1, 2).reshape(B, C, H, W)


class StridedSlice(nn.Module):
    """Every second row and column."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class NothingModule(nn.Module):
    """No operation, spelled out."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        match self.spelling:
            case "contiguous":
                return x.contiguous()
            case "to":
                return x.to(torch.float64)
            case "clone":
                return x.clone()
            case "view":
                return x.view(x.shape)
            case "detach":
                return x.detach()
            case "slice":
                return x[:, :, :, :]
            case "index":
                return x[...]
            case "flatten":
                return x.flatten(2).reshape(x.shape)
            case "functional":
                return F.dropout(x, 0.5, self.training)
            case _:
                return self.dropout(x)


class AssignedBorder(nn.Module):
    """Zero-pad by one, then write a value per channel into the border, side by side."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        value = self.value.view(1, -1, 1, 1)
        x = F.pad(x, (1, 1, 1, 1))
        x[:, :, 0:1, :] = value
        x[:, :, -1:, :] = value
        x[:, :, :, 0:1] = value
        x[:, :, :, -1:] = value
        return x


class SqueezeExcite(nn.Module):
    """x * sigmoid(up(relu(down(mean(x)))))."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(c, max(1, c // 2), 1)
        self.up = nn.Conv2d(max(1, c // 2), c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class DynamicConv(nn.Module):
    """1x1 convolution whose weight depends on the input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * torch.tanh(x.mean()))


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of each pixel, through channels-last."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenLinear(nn.Module):
    """Pixels as tokens through a linear with batch norms, and back."""

    def __init__(self, node: Tokens, c: int) -> None:
        super().__init__()
        out = node.out or c
        self.first = nn.BatchNorm1d(c) if node.norm_first else None
        self.linear = nn.Linear(c, out, bias=node.bias)
        self.last = nn.BatchNorm1d(out) if node.norm_last else None

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        x = x.flatten(2)
        if self.first is not None:
            x = self.first(x)
        x = self.linear(x.transpose(1, 2))
        if self.last is not None:
            x = self.last(x.flatten(0, 1)).reshape_as(x)
        return x.transpose(1, 2).reshape(B, -1, H, W)
