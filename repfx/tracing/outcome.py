"""What one attempt to trace a model gives: a graph, or the refusal of one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from repfx.tracing.tracer import Tracer


@dataclass(frozen=True)
class Traced:
    """A shell of the model that holds what the trace added, the graph, and the tracer that made it."""

    shell: nn.Module
    graph: fx.Graph
    tracer: Tracer


@dataclass(frozen=True)
class Refused:
    """The modules whose forward is no graph, and why."""

    paths: list[str]
    cause: str
    stopped: bool = False  # whether the trace stopped, so that knowing more might help
