"""A trace in the one form that every later layer reads.  The order of the steps is owned here:

functionalize        values, not memory: first, since everything after it moves or replaces values
own_keywords         one name for each keyword: what is lifted is written with it
spell_out            one operation for each call, where the parts then fold
remove_guards        no assertions: they would count as readers of a value
read_sizes_early     sizes of the earliest value, which needs to know who still reads what
"""

from __future__ import annotations

from torch import fx, nn

from repfx.capture.early_sizes import read_sizes_early
from repfx.capture.in_place import functionalize
from repfx.capture.keywords import own_keywords
from repfx.capture.spelling import spell_out
from repfx.graph import index_modules, remove_dead
from repfx.tracing import is_assertion


def canonicalize(graph: fx.Graph, root: nn.Module, whole: set[str]) -> None:
    """Give a fresh trace the form that is lifted, in place; the calls named in `whole` are not looked into."""
    index_modules(root)
    functionalize(graph, root, whole)
    own_keywords(graph)
    spell_out(graph, root)
    remove_guards(graph)
    read_sizes_early(graph, root, whole)


def remove_guards(graph: fx.Graph) -> None:
    """Drop assertions on shapes and whatever only they read; a guard is no reader of a value."""
    for node in list(graph.nodes):
        if is_assertion(node):
            graph.erase_node(node)
    remove_dead(graph)
