"""Module paths of what is emitted: readable, unique, the common ancestor of what was merged."""

from __future__ import annotations

import itertools

from torch import fx

from repfx.graph import PENDING, LiftedGraph, Record, common_path, has_effect


def live(lifted: LiftedGraph) -> set[fx.Node]:
    """Nodes that the output needs; constants that only folded weights read are not among them."""
    work = [n for n in lifted.graph.nodes if n.op == "output" or has_effect(n)]
    seen = set(work)
    while work:
        for source in work.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                work.append(source)
    return seen


class Names:
    """Readable, unique module paths for what is emitted."""

    def __init__(self, lifted: LiftedGraph) -> None:
        self._taken: set[str] = set()
        self._above: set[str] = set()  # the parents of all taken paths
        for node in live(lifted):
            if node.op in ("call_module", "get_attr") and str(node.target) != PENDING:
                self._take(str(node.target))

    def choose(self, record: Record, node: fx.Node) -> str:
        """The path of the merged modules' common ancestor, or of the largest part where that is in use."""
        places = [source.split(":")[0] for source in record.sources]
        paths = list(filter(None, places)) or [node.name]
        convs = [path for path in paths if not _is_norm(path)] or paths
        wanted = [common_path(paths), common_path(convs), *convs, *paths]
        base = (common_path(convs) or convs[0]).replace(".", "_")
        numbered = (f"{base}_fused{i}" for i in itertools.count(1))
        return self._take(next(filter(self._free, itertools.chain(filter(None, wanted), numbered))))

    def _take(self, path: str) -> str:
        self._taken.add(path)
        self._above.update(_parents(path))
        return path

    def _free(self, path: str) -> bool:
        """Whether nothing stands at this path, below it or above it."""
        return path not in self._taken and path not in self._above and self._taken.isdisjoint(_parents(path))


def _is_norm(path: str) -> bool:
    return path.rpartition(".")[2] in ("norm", "bn")


def _parents(path: str) -> list[str]:
    """ "a.b" and "a" of "a.b.c"."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
