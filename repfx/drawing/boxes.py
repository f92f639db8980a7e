"""The boxes of a picture: what each says, of which kind it is, in which colour, and how large it has to be."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {  # kind of operation -> fill; chosen to differ in lightness too
    "depthwise convolution": "#9ecae9",
    "convolution": "#4c92c3",
    "linear": "#4c92c3",
    "norm": "#f7c97f",
    "border term": "#f28e6b",
    "add": "#d9d9d9",
    "split, concatenate": "#b6dfb3",
    "activation": "#cdb5e3",
    "other": "#efefef",
    "value": "#ffffff",
}
DARK = ("convolution", "linear")  # fills that carry white text
LETTER, LINE = 0.082, 0.155  # inches that one character and one line of a label take


@dataclass(frozen=True)
class Box:
    """One operation of a picture."""

    label: str
    kind: str  # a key of COLOURS

    @property
    def width(self) -> float:
        """Inches, wide enough for the longest line."""
        return max(0.42, 0.14 + LETTER * max(len(line) for line in self.label.split("\n")))

    @property
    def height(self) -> float:
        """Inches, high enough for all lines."""
        return 0.13 + LINE * len(self.label.split("\n"))
