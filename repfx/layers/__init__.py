"""The few module types that a compiled graph holds beside PyTorch's own: plain `nn.Module`s with weights.

They can be trained, exported, copied and pickled.
"""

from repfx.layers.border import BorderTerm
from repfx.layers.channels import ChannelOrder, ChannelSlice, ScaleShift
from repfx.layers.convolution import EXTENDED, PLAIN, TRANSPOSED, Extended
from repfx.layers.custom_function import CustomFunction
from repfx.layers.emitted import EMITTED
from repfx.layers.functional import assign
from repfx.layers.guards import OPEN, ArgumentGuard, Guard, SizeGuard

__all__ = [
    "EMITTED",
    "EXTENDED",
    "OPEN",
    "PLAIN",
    "TRANSPOSED",
    "ArgumentGuard",
    "BorderTerm",
    "ChannelOrder",
    "ChannelSlice",
    "CustomFunction",
    "Extended",
    "Guard",
    "ScaleShift",
    "SizeGuard",
    "assign",
]
