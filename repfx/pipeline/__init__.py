"""One module on its way: traced, lifted, rewritten and written; and what does not trace, part by part."""

from repfx.pipeline.compilation import compile_module, on_meta
from repfx.pipeline.example_shapes import running
from repfx.pipeline.plan import Outcome, Plan, Progress

__all__ = [
    "Outcome",
    "Plan",
    "Progress",
    "compile_module",
    "on_meta",
    "running",
]
