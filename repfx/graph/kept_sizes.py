"""Which earlier values have the same sizes as a value."""

from __future__ import annotations

from torch import fx, nn

from repfx.graph.kinds import Keeps, OpKind
from repfx.graph.operation_table import operation_of
from repfx.graph.operations import OpInfo

_NORMS = (OpKind.BATCH_NORM, OpKind.NORM)


def keeps(node: fx.Node, info: OpInfo) -> Keeps:
    """How much of the shape of its first argument a call keeps: what is broadcast over it may be larger."""
    return Keeps.NOTHING if info.elementwise and len(node.all_input_nodes) > 1 else info.keeps


def batches(node: fx.Node, root: nn.Module, whole: set[str]) -> list[fx.Node]:
    """This value and those before it that certainly have the same batch size, the nearest first.

    Axis 0 of a convolution or Linear is the batch if there is one.  A batch norm among them says so.
    """
    out = [node]
    unsure: int | None = None  # from here on, only if axis 0 is the batch
    proved = False
    while (earlier := of_one_rank_before(out[-1], root, whole)) is not None:
        info = operation_of(out[-1], root)
        assert info is not None
        proved |= info.kind is OpKind.BATCH_NORM and out[-1].op == "call_module"
        if unsure is None and info.keeps is Keeps.BATCH:
            unsure = len(out)
        out.append(earlier)
    return out if proved else out[:unsure]


def of_one_rank_before(node: fx.Node, root: nn.Module, whole: set[str]) -> fx.Node | None:
    """What a node reads, if its value has as many axes and, where that is one, the same batch."""
    info = _known(node, root, whole)
    return _first(node) if info is not None and keeps(node, info) >= Keeps.BATCH else None


def of_one_shape_before(node: fx.Node, root: nn.Module, whole: set[str]) -> fx.Node | None:
    """What a node reads, if its value has every size of it."""
    info = _known(node, root, whole)
    return _first(node) if info is not None and keeps(node, info) is Keeps.SHAPE else None


def normalised_by(node: fx.Node, root: nn.Module, whole: set[str]) -> fx.Node | None:
    """What a normalisation reads, which has all the sizes of its value."""
    info = _known(node, root, whole)
    return _first(node) if info is not None and info.kind in _NORMS and info.keeps is Keeps.SHAPE else None


def _known(node: fx.Node, root: nn.Module, whole: set[str]) -> OpInfo | None:
    """The operation of a node; of a module that is not looked into, none."""
    unread = node.op == "call_module" and str(node.target) in whole
    return None if unread else operation_of(node, root)


def _first(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) else None
