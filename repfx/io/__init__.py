"""Names, files and weights: reading what nobody vouches for, and writing whole files or none."""

from repfx.io.atomic import check_writable, whole_output
from repfx.io.checkpoint import load_checkpoint
from repfx.io.fused import FusedRecord, load_fused, read_fused_record, save_fused
from repfx.io.model_names import build_model, is_registry_name

__all__ = [
    "FusedRecord",
    "build_model",
    "check_writable",
    "is_registry_name",
    "load_checkpoint",
    "load_fused",
    "read_fused_record",
    "save_fused",
    "whole_output",
]
