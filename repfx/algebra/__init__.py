"""What one affine map is, and how maps combine: structure as integers, numbers as lazy float64 values; no fx."""

from repfx.algebra import constructors
from repfx.algebra.affine import (
    ZEROS,
    AffineConv,
    Border,
    linear_part,
    over,
    repeated,
    restrict,
    scaled,
    take,
    times,
)
from repfx.algebra.constructors import identity, pointwise, select
from repfx.algebra.form import Form, Kind, contiguous, form_of
from repfx.algebra.incidence import Incidence, Ints
from repfx.algebra.kernels import gathered
from repfx.algebra.parallel import add, concat
from repfx.algebra.serial import compose
from repfx.algebra.values import Probe, Rows, Values, leaf, probing
from repfx.algebra.vanishing import without_vanishing_borders

__all__ = [
    "ZEROS",
    "AffineConv",
    "Border",
    "Form",
    "Incidence",
    "Ints",
    "Kind",
    "Probe",
    "Rows",
    "Values",
    "add",
    "compose",
    "concat",
    "constructors",
    "contiguous",
    "form_of",
    "gathered",
    "identity",
    "leaf",
    "linear_part",
    "over",
    "pointwise",
    "probing",
    "repeated",
    "restrict",
    "scaled",
    "select",
    "take",
    "times",
    "without_vanishing_borders",
]
