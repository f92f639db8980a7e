"""Attention as it is written out: softmax(scale q k^T + bias) v, found in a lifted graph, whatever the layout."""

from repfx.attention.memory_layout import copy_strided_operands
from repfx.attention.recognition import (
    Attention,
    Operand,
    attention_of,
    is_call,
    name_of,
    product_of,
    scalar_factor,
    transposed_last,
)
from repfx.attention.strands import readers_of, selection, viewed

__all__ = [
    "Attention",
    "Operand",
    "attention_of",
    "copy_strided_operands",
    "is_call",
    "name_of",
    "product_of",
    "readers_of",
    "scalar_factor",
    "selection",
    "transposed_last",
    "viewed",
]
