"""The lifted graph, and the facts that are read from it: what each node computes, shapes, constants, regions."""

from repfx.graph.constants import Constants
from repfx.graph.context import Context, context_of, is_image
from repfx.graph.dead_code import draws, has_effect, remove_dead
from repfx.graph.kept_sizes import batches, normalised_by, of_one_rank_before, of_one_shape_before
from repfx.graph.kinds import Draws, Keeps, OpKind, Shares
from repfx.graph.lifted import Call, LiftedGraph, Record, common_path
from repfx.graph.module_traversal import (
    INDEX,
    NORMALISING,
    attribute,
    index_modules,
    module_at,
    modules_of,
    note_module,
    tensors_of,
)
from repfx.graph.nodes import PENDING, argument, name_of, place_of, tuple_of
from repfx.graph.operation_table import OPERATIONS, operation_named, operation_of
from repfx.graph.operations import OpInfo, functions_of
from repfx.graph.ops import (
    ANY,
    Affine,
    Alias,
    Concat,
    Constant,
    Input,
    Normalised,
    Op,
    Opaque,
    Resampling,
    Resolution,
    Sum,
    affine_sources,
)
from repfx.graph.regions import Dominators, Region, applied, around, between, dominators, shifted_by, used_outside
from repfx.graph.shapes import Shapes
from repfx.graph.sizes import arithmetic, is_shape, is_size, size_read
from repfx.graph.splits import SPLITS, part_sizes, split_dim

__all__ = [
    "ANY",
    "INDEX",
    "NORMALISING",
    "OPERATIONS",
    "PENDING",
    "SPLITS",
    "Affine",
    "Alias",
    "Call",
    "Concat",
    "Constant",
    "Constants",
    "Context",
    "Dominators",
    "Draws",
    "Input",
    "Keeps",
    "LiftedGraph",
    "Normalised",
    "Op",
    "OpInfo",
    "OpKind",
    "Opaque",
    "Record",
    "Region",
    "Resampling",
    "Resolution",
    "Shapes",
    "Shares",
    "Sum",
    "affine_sources",
    "applied",
    "argument",
    "arithmetic",
    "around",
    "attribute",
    "batches",
    "between",
    "common_path",
    "context_of",
    "dominators",
    "draws",
    "functions_of",
    "has_effect",
    "index_modules",
    "is_image",
    "is_shape",
    "is_size",
    "module_at",
    "modules_of",
    "name_of",
    "normalised_by",
    "note_module",
    "of_one_rank_before",
    "of_one_shape_before",
    "operation_named",
    "operation_of",
    "part_sizes",
    "place_of",
    "remove_dead",
    "shifted_by",
    "size_read",
    "split_dim",
    "tensors_of",
    "tuple_of",
    "used_outside",
]
