"""One module on its way: traced, lifted, rewritten and written; and what does not trace, part by part."""

from repfx.pipeline.compilation import Outcome, Plan, Progress, compile_module, on_meta, running

__all__ = [
    "Outcome",
    "Plan",
    "Progress",
    "compile_module",
    "on_meta",
    "running",
]
