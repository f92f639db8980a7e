"""Multi-head self-attention as it is told: every head with projections of its own, then concatenated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.blocks.entry import Entry, Need


class Head(nn.Module):
    """softmax(q k^T / sqrt(d) + bias) v over the tokens of an image."""

    def __init__(self, width: int, size: int, tokens: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, size)
        self.key = nn.Linear(width, size, bias=False)
        self.value = nn.Linear(width, size)
        self.bias = nn.Parameter(torch.zeros(tokens, tokens))
        self.drop = nn.Dropout(0.1)
        self.scale = size**-0.5

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * self.scale + self.bias
        return self.drop(scores.softmax(dim=-1)) @ self.value(x)


class MultiHead(nn.Module):
    """Concat(head_1, ..., head_h) W: section 3.2.2, with a learned bias per pair of tokens."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, width // heads, tokens) for _ in range(heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class TransformerBlock(nn.Module):
    """Tokens of an image through residual attention."""

    def __init__(self, width: int = 8, heads: int = 4, resolution: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = MultiHead(width, heads, resolution**2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        return x + self.attention(self.norm(x))


ENTRIES = (
    Entry(
        "perhead",
        "1706.03762",
        TransformerBlock,
        8,
        {
            "linears": Need(2, "queries, keys and values of all heads in one, and the projection behind the softmax"),
            "adds": Need(1, "the residual"),
            "concats": Need(1, "the heads' biases, parameters of their own, are put together in every forward"),
        },
        sizes=((4, 4),),
        # torch computes a linear on permuted tokens with one add of its bias
        open_kinds=frozenset({"permutations"}),
    ),
)
