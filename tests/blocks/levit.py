"""LeViT: attention and feed-forward on tokens, each linear behind a 1d batch norm."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.entry import Entry, Need


class LinearBN(nn.Module):
    """Bias-free linear, then batch norm over tokens flattened into the batch."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.c = nn.Linear(in_features, out_features, bias=False)
        self.bn = nn.BatchNorm1d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


def offsets(resolution: int) -> tuple[int, list[int]]:
    """How many distinct |dx|, |dy| there are, and which one each pair of tokens has."""
    points = list(itertools.product(range(resolution), range(resolution)))
    known: dict[tuple[int, int], int] = {}
    pairs = []
    for p, q in itertools.product(points, points):
        pairs.append(known.setdefault((abs(p[0] - q[0]), abs(p[1] - q[1])), len(known)))
    return len(known), pairs


class Attention(nn.Module):
    """proj(hardswish(softmax(q k^T scale + bias) v))."""

    def __init__(self, width: int, key: int, heads: int, resolution: int) -> None:
        super().__init__()
        self.heads, self.key, self.value = heads, key, 2 * key
        self.scale = key**-0.5
        self.qkv = LinearBN(width, heads * (2 * key + self.value))
        self.proj = LinearBN(heads * self.value, width)
        count, pairs = offsets(resolution)
        self.attention_biases = nn.Parameter(torch.zeros(heads, count))
        tokens = resolution**2
        self.register_buffer("pairs", torch.tensor(pairs).view(tokens, tokens), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).view(B, N, self.heads, -1)
        q, k, v = qkv.split([self.key, self.key, self.value], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        attention = (q @ k * self.scale + self.attention_biases[:, self.pairs]).softmax(dim=-1)
        x = (attention @ v).transpose(1, 2).reshape(B, N, self.heads * self.value)
        return self.proj(F.hardswish(x))


class LeViTBlock(nn.Module):
    """Tokens of an image through residual attention and a residual feed-forward."""

    def __init__(self, width: int = 8, resolution: int = 4) -> None:
        super().__init__()
        self.attention = Attention(width, 4, 2, resolution)
        self.up = LinearBN(width, 2 * width)
        self.down = LinearBN(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention(x)
        return x + self.down(F.hardswish(self.up(x)))


ENTRIES = (
    Entry(
        "levit",
        "2104.01136",
        LeViTBlock,
        8,
        {
            "linears": Need(4, "qkv and proj around the softmax, up and down around a hardswish"),
            "splits": Need(1, "queries, keys and values"),
        },
        sizes=((4, 4),),
        # two residuals and the attention bias; torch computes a linear on permuted tokens with one more
        open_kinds=frozenset({"permutations", "adds"}),
    ),
)
