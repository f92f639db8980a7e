"""All module types that a compiled graph holds beside PyTorch's own."""

from __future__ import annotations

from repfx.layers.border import BorderTerm
from repfx.layers.channels import ChannelOrder, ChannelSlice, ScaleShift
from repfx.layers.convolution import Extended
from repfx.layers.custom_function import CustomFunction
from repfx.layers.guards import Guard

EMITTED = (ChannelOrder, ChannelSlice, ScaleShift, BorderTerm, Extended, Guard, CustomFunction)
