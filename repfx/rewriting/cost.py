"""What an operation costs, from structure alone.

`heavy` are convolutions, linears and products of two values, `light` are passes over memory (adds, copies,
concatenations; a lone scale and shift is two).  `macs` are per position of the sink's output, so that
values of different resolution compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, prod

from torch import fx
from torch.nn.utils import parametrize

from repfx.algebra import AffineConv, Form, Kind, form_of
from repfx.attention import is_call, product_of, transposed_last
from repfx.decline import Decline
from repfx.graph import (
    Affine,
    Alias,
    Concat,
    Constant,
    Input,
    LiftedGraph,
    Normalised,
    Opaque,
    OpKind,
    Resampling,
    Sum,
    operation_of,
)


@dataclass(frozen=True)
class Cost:
    """Cost of executing something once."""

    heavy: int = 0
    light: int = 0
    macs: int = 0
    parameters: int = 0
    dense: bool = False  # whether a convolution in it mixes channels

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.heavy + other.heavy,
            self.light + other.light,
            self.macs + other.macs,
            self.parameters + other.parameters,
            self.dense or other.dense,
        )

    def at(self, density: Fraction | int) -> Cost:
        """The same at a resolution `density` times higher than the sink's (below one: lower)."""
        return self if density == 1 else replace(self, macs=ceil(self.macs * density))


def cost_of_form(form: Form) -> Cost:
    """Cost of an emitted form."""
    match form.kind:
        case Kind.IDENTITY:
            return Cost()
        case Kind.COPY:
            return Cost(light=1 if form.gathers else 0)
        case Kind.SCALE:
            return Cost(light=2, parameters=form.parameters)
        case Kind.CONV | Kind.LINEAR | Kind.TRANSPOSED:
            extras = [form.gathers, form.order is not None, form.padded_apart and form.kind is Kind.CONV]
            light = form.borders + sum(extras)
            return Cost(1, light, form.macs, form.parameters, dense=form.in_channels > form.groups)


def cost_of_map(map_: AffineConv) -> Cost:
    """Cost of a map in its executed form."""
    return cost_of_form(form_of(map_))


def cost_as_written(map_: AffineConv) -> Cost:
    """Cost of the operation that the user wrote: a crop is a copy."""
    if map_.is_identity:
        return Cost(light=1)  # an operation nevertheless, if only a view
    if map_.is_zoomed:
        return cost_of_map(map_)
    if map_.incidence.is_depthwise and all(k == 1 for k in map_.kernel) and not map_.borders and not map_.is_pointwise:
        return Cost(light=1)
    return cost_of_map(map_)


def generates_weight(lifted: LiftedGraph, node: fx.Node) -> bool:
    """Whether a node's weight is computed from parameters in every forward."""
    if node in lifted.records:
        return False
    if node.op == "call_module":
        module = lifted.context.module(node)
        hooks = module._forward_pre_hooks.values()
        return parametrize.is_parametrized(module) or any(hasattr(hook, "compute_weight") for hook in hooks)
    constants = [n for n in node.all_input_nodes if lifted.context.constants.is_constant(n)]
    return any(n.op != "get_attr" for n in constants)


def cost_of_node(lifted: LiftedGraph, node: fx.Node, axes: int) -> Cost:
    """What executing a node of the graph costs, per position of its output."""
    match lifted.op(node):
        case Affine(axes=own):
            map_ = lifted.map_of(node, axes if own is None else own)
            if isinstance(map_, Decline):
                return Cost(light=1)
            if node in lifted.records:
                return cost_of_map(map_)
            info = operation_of(node, lifted.root)
            if info is not None and info.kind is OpKind.PADDING:
                return Cost(light=2 if map_.borders else 1)  # a value other than zero is filled in, then copied over
            if info is not None and info.kind is OpKind.POOLING:
                return Cost(heavy=1)  # it multiplies nothing
            return cost_as_written(map_) + Cost(light=1 if generates_weight(lifted, node) else 0)
        case Sum(terms=terms, shift=shift):
            scales = sum(factor not in (1.0, -1.0) for _, factor in terms)
            return Cost(light=max(1, len(terms) - 1 + scales) + (1 if shift and len(terms) > 1 else 0))
        case Concat() | Alias() | Resampling():
            return Cost(light=1)
        case Normalised(parameters=parameters):
            return Cost(light=1, parameters=parameters)  # the scale and shift; what it normalises is not counted
        case Opaque():
            return _cost_of_opaque(lifted, node)
        case Constant() | Input():
            return Cost()


def _cost_of_opaque(lifted: LiftedGraph, node: fx.Node) -> Cost:
    """A product of two values is heavy, a transposition is a view, anything else a pass over memory."""
    if is_call(node):
        return COST_OF_ATTENTION
    if product_of(lifted, node) is not None:
        return Cost(heavy=1)
    return Cost(light=0 if transposed_last(lifted, node) is not None else 1)


_FRAME = Fraction(9, 10)  # positions inside a frame for one of the framed image, in order of magnitude


def _widens(map_: AffineConv) -> bool:
    """Whether the output is larger than the input by a frame: what is merged into it will be computed there too."""
    return not map_.is_zoomed and all(s == 1 for s in map_.stride) and any(e > -1 for e in map_.extent)


# Two products, and the scores between them are never written to memory.
COST_OF_ATTENTION = Cost(heavy=2)


def cost_of_nodes(lifted: LiftedGraph, nodes: Sequence[fx.Node], sinks: Sequence[fx.Node], axes: int) -> Cost:
    """What executing these nodes costs, per position of the sink's output."""
    costs = (cost_of_node(lifted, node, axes).at(own) for node, own in densities(lifted, nodes, sinks, axes))
    return sum(costs, Cost())


def densities(
    lifted: LiftedGraph, nodes: Sequence[fx.Node], sinks: Sequence[fx.Node], axes: int
) -> Iterator[tuple[fx.Node, Fraction | int]]:
    """The nodes, last first, each with the positions of its output for one position of the sink's.

    Where several nodes are replaced, each is held against its own replacement at its own resolution.
    """
    if len(sinks) > 1:
        yield from ((node, 1) for node in nodes)
        return
    density: dict[fx.Node, Fraction | int] = dict.fromkeys(sinks, 1)
    for node in sorted(nodes, reverse=True):
        own = density.get(node, 1)
        yield node, own
        op = lifted.op(node)
        sources = (op.source,) if isinstance(op, Resampling) else lifted.sources(node)
        factor = own * _reads_per_position(lifted, node, axes)
        for source in sources:
            density[source] = max(density.get(source, factor), factor)


def map_at(lifted: LiftedGraph, node: fx.Node, axes: int) -> AffineConv | Decline | None:
    """The map of an affine node, over that many spatial axes where it means the same over any number of them."""
    op = lifted.op(node)
    if not isinstance(op, Affine):
        return None
    return lifted.map_of(node, axes if op.axes is None else op.axes)


def _reads_per_position(lifted: LiftedGraph, node: fx.Node, axes: int) -> Fraction | int:
    """Positions of what a node reads for one position of its output."""
    op = lifted.op(node)
    if isinstance(op, Resampling):
        return op.resolution.density
    map_ = map_at(lifted, node, axes)
    if not isinstance(map_, AffineConv):
        return 1
    read = Fraction(prod(map_.stride), prod(map_.zoom)) if map_.is_zoomed else prod(map_.stride)
    return read * _FRAME if _widens(map_) else read
