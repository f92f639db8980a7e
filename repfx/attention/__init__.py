"""Attention as it is written out: softmax(scale q k^T + bias) v, found in a lifted graph, whatever the layout."""

from repfx.attention.biases import Bias, bias_of_all, tokens_of, usable_bias
from repfx.attention.channel_readers import Readers, is_view_of, readers_of
from repfx.attention.memory_layout import copy_strided_operands
from repfx.attention.products import Operand, Product, product_of
from repfx.attention.projections import Projection, projection_of, scaled_by, scaling_of
from repfx.attention.recognition import Attention, attention_of, is_call, without_shared_turns
from repfx.attention.views import is_split, scalar_factor, transposed_last, viewed, views_of

__all__ = [
    "Attention",
    "Bias",
    "Operand",
    "Product",
    "Projection",
    "Readers",
    "attention_of",
    "bias_of_all",
    "copy_strided_operands",
    "is_call",
    "is_split",
    "is_view_of",
    "product_of",
    "projection_of",
    "readers_of",
    "scalar_factor",
    "scaled_by",
    "scaling_of",
    "tokens_of",
    "transposed_last",
    "usable_bias",
    "viewed",
    "views_of",
    "without_shared_turns",
]
