"""The vocabulary of the operation table: of what kind an operation is, and what each of its facts can be.

`OpKind` is the one taxonomy: counting, reports, costs and pictures give its members their words.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto


class OpKind(Enum):
    """What an operation is."""

    CONVOLUTION = auto()
    TRANSPOSED = auto()  # a transposed convolution
    LINEAR = auto()
    PRODUCT = auto()  # of two values: a matrix product in any spelling
    BATCH_NORM = auto()
    NORM = auto()  # with statistics of the input
    ADD = auto()  # and subtract
    MULTIPLY = auto()  # and divide
    ACTIVATION = auto()
    CONCAT = auto()
    SPLIT = auto()
    PERMUTATION = auto()  # a gathering of channels
    BORDER_TERM = auto()
    SCALE_SHIFT = auto()  # the compiler's own
    PADDING = auto()  # what only extends an image, by whatever value
    POOLING = auto()
    RESIZING = auto()
    REDUCTION = auto()
    ITEM = auto()  # `x[...]`: a part of a split, a slice
    VIEW = auto()  # the same numbers under other axes
    COPY = auto()  # the same numbers again: contiguous, a cast, eval-mode dropout, Identity
    OTHER = auto()


class Keeps(IntEnum):
    """How much of the shape of its first argument an operation keeps."""

    NOTHING = 0
    BATCH = 1  # the number of axes, and the size of axis 0 if the argument is a batch
    CHANNELS = 2  # besides, the size of axis 1 if the argument is a batch
    SHAPE = 3  # every size


class Shares(Enum):
    """Whose memory a result may be."""

    NOTHING = auto()
    FIRST = auto()  # that of the first argument
    ALL = auto()  # that of any argument


class Draws(Enum):
    """When an operation moves a random generator."""

    NEVER = auto()
    TRAINING = auto()  # where it is told that it trains
    ALWAYS = auto()
