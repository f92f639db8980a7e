"""Pictures: one module of a network before and after, as two graphs side by side."""

from repfx.drawing.pictures import check_drawable, draw, operations_of

__all__ = [
    "check_drawable",
    "draw",
    "operations_of",
]
