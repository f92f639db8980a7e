"""A module that keeps the frames of whoever imports it first, as packages do that look around when imported."""

import sys

FRAMES = [sys._getframe()]
while FRAMES[-1].f_back is not None:
    FRAMES.append(FRAMES[-1].f_back)
FACTOR = 3.0
