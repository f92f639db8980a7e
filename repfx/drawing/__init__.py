"""Pictures: one module of a network before and after, as two graphs side by side."""

from repfx.drawing.pictures import draw, operations_of

__all__ = [
    "draw",
    "operations_of",
]
