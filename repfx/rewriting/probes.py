"""Probes: does a replacement agree with what it replaces, on inputs chosen to break it?

Every region is run as the original modules and as the emitted ones, in float64, at odd, non-square and
smaller-than-kernel sizes, on random values, zeros, ones and border impulses.  The bound is derived,

    relative error <= SLACK * eps(float64) * sqrt(fan in) * amplification,

and a disagreement is our bug: the rewrite is not applied and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx, nn

from repfx.algebra import AffineConv
from repfx.decline import Decline, Reason
from repfx.emission import Target, emit
from repfx.graph import Affine, LiftedGraph, Normalised, Resampling, is_size, module_at
from repfx.rewriting.attending import Eager, attended
from repfx.rewriting.depthwise import FastDepthwise
from repfx.rewriting.proposal import Add, Apply, Attend, Cat, Expr, Plain, Proposal, Ref, Shared, Then, Through
from repfx.state import copied

FLOAT64_BOUND = 1e-10  # relative, after folds whose condition is at most 1e5
_SIZES = ((1, 8, 16, 4), (1, 9, 7, 5), (2, 3, 2, 3), (2, 1, 1, 1))  # batch, then spatial sizes; the last if need be
_SMALL_SIZES = ((1, 5, 3, 2), (1, 2, 4, 3), (2, 3, 2, 3), (2, 1, 1, 1))  # of the smallest of many resolutions
_RESOLUTIONS = 8  # how much larger an input is than the output for the sizes to be small
_DOUBLE = Target(torch.float64, requires_grad=False)


def verify_proposal(lifted: LiftedGraph, proposal: Proposal, *, once: bool = False) -> float | Decline | None:
    """Worst relative float64 error over the probes; None where no probe could be made.

    `once`: at one size.  It is enough where the same rewrite of the same structure has passed at all of them, and
    only the weights are others.
    """
    replaced = dict(proposal.replacements)
    region = sorted({*proposal.interior, *proposal.across})
    inside = set(region)
    inputs = sorted({n for node in region for n in _read(lifted, node) if n not in inside})
    inputs = sorted({*inputs, *(n for e in replaced.values() for n in _leaves(lifted, e) if n not in inside)})
    outputs = list(proposal.outputs or replaced)
    leak = _leak(proposal, inside, set(inputs))
    if leak is not None:
        return _bug(f"changes {leak.name}, which the region reads as if it were given")
    runner = _Runner(lifted)
    worst: float | None = None
    attend = next((e for e in replaced.values() if isinstance(e, Attend)), None)
    probes: Iterable[dict[fx.Node, Tensor]]
    if attend is None:
        order = (1, 0, 2, 3) if once else (0, 1, 2, 3)
        probes = _probes(lifted, region, inputs, _asked(replaced.values()), order)
    else:
        probes = _token_probes(lifted, region, inputs, attend)
    for index, probe in enumerate(probes):
        if worst is not None and (once or index == len(_SIZES) - 1):
            break  # one pixel is for what accepts nothing else
        try:
            old = runner.run(region, probe, {})
        except (RuntimeError, ValueError, IndexError):
            continue  # this size is one the original does not accept either
        if not all(old[node].numel() for node in outputs):
            continue  # nor is a size of which a crop leaves nothing
        new = runner.run(region, probe, replaced)
        for node in outputs:
            a, b = old[node], new[node]
            if a.shape != b.shape:
                return _bug(f"gives shape {tuple(b.shape)} instead of {tuple(a.shape)}")
            if not bool(torch.isfinite(a).all()):
                continue
            error = float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) if a.numel() else 0.0
            if error > FLOAT64_BOUND:
                return _bug(
                    f"differs by {error:.1e} (relative) at input size {tuple(next(iter(probe.values())).shape)}"
                )
            worst = error if worst is None else max(worst, error)
    return worst


def _token_probes(
    lifted: LiftedGraph, region: Sequence[fx.Node], inputs: Sequence[fx.Node], expr: Attend
) -> list[dict[fx.Node, Tensor]]:
    """Hostile inputs of an attention: tokens for projections, or query, key and value as they stand."""
    fixed = next((shape for _, shape in expr.bias), None)
    counts = ((5, 3), (1, 1), (4, 7)) if fixed is None else ((fixed[-1], fixed[-1]),)
    rank = lifted.context.shapes.rank(region[-1])
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2

    asked = {value.value: value.map for value in expr.values if isinstance(value, Apply | Shared)}
    probes = []
    for queries, keys in counts:
        probe: dict[fx.Node, Tensor] = {}
        roles = ((queries, expr.query_transposed), (keys, expr.key_transposed), (keys, expr.value_transposed))
        for value, (tokens, transposed) in zip(expr.values, roles):
            if isinstance(value, Ref) and not expr.heads:
                heads = (fixed[-3] if fixed is not None and len(fixed) > 2 else 3,) if rank != 3 else ()
                x = drawn(2, *heads, tokens, 4)
                probe[value.node] = x.mT if transposed else x
        for node in inputs:
            fact = None if node in asked else _facts(lifted, region, node, None)
            channels = asked[node].in_channels if node in asked else lifted.context.shapes.size(node, -1)
            channels = channels if fact is None else fact[1]
            if node not in probe and channels is not None:
                probe[node] = drawn(2, queries if node in _leaves(lifted, expr.query) else keys, channels)
        if set(inputs) <= set(probe):
            probes.append(probe)
    return probes


def _leak(proposal: Proposal, inside: set[fx.Node], inputs: set[fx.Node]) -> fx.Node | None:
    """An input of the region that depends on a value the proposal changes.

    Found by the plain edges of the graph, not by the lifting that made the proposal.
    """
    if not proposal.across:
        return None
    changed = [n for n in inside if n not in proposal.outputs and not is_size(n)]
    seen, work = set(changed), list(changed)
    last = max(inside)
    while work:
        for user in work.pop().users:
            if user in inputs:
                return user
            if user not in seen and user not in inside and user < last:
                seen.add(user)
                work.append(user)
    return None


def _bug(fact: str) -> Decline:
    return Decline(Reason.VERIFICATION, f"the replacement {fact}", remedy="this is a bug in repfx; nothing was changed")


def _read(lifted: LiftedGraph, node: fx.Node) -> tuple[fx.Node, ...]:
    """Values that evaluating this node in a region needs."""
    sources = lifted.sources(node)
    if sources:
        return sources
    read: dict[fx.Node, None] = {}
    work = [n for n in node.all_input_nodes if not lifted.context.constants.is_constant(n)]
    while work:
        value = work.pop()
        if is_size(value):  # a size is computed from the value whose size it is
            work.extend(value.all_input_nodes)
        else:
            read[value] = None
    return tuple(read)


def _leaves(lifted: LiftedGraph, expr: Expr) -> Sequence[fx.Node]:
    match expr:
        case Ref(node=node) | Apply(value=node) | Shared(value=node):
            return [node]
        case Add(values=values) | Cat(values=values) | Attend(values=values):
            return [leaf for value in values for leaf in _leaves(lifted, value)]
        case Through(value=value) | Then(value=value):
            return _leaves(lifted, value)
        case Plain(node=node):
            return _read(lifted, node)


def _asked(exprs: Iterable[Expr]) -> dict[fx.Node, AffineConv]:
    """What the replacements apply to which value: it tells the value's rank and channels."""
    asked = {}
    work = list(exprs)
    while work:
        match work.pop():
            case Apply(map=map_, value=node):
                asked[node] = map_
            case Through(value=value) | Then(value=value):
                work.append(value)
            case _:
                continue
    return asked


class _Runner:
    """Evaluates nodes in float64: the user's own modules and functions, or emitted modules."""

    def __init__(self, lifted: LiftedGraph) -> None:
        self.lifted = lifted
        self._modules: dict[str, nn.Module] = {}
        self._emitted: dict[int, tuple[AffineConv, list[nn.Module]]] = {}
        self._constants: dict[fx.Node, Any] = {}

    def run(
        self, region: Sequence[fx.Node], probe: Mapping[fx.Node, Tensor], replaced: Mapping[fx.Node, Expr]
    ) -> dict[fx.Node, Tensor]:
        """Values of all region nodes, some of them computed by their replacements."""
        env: dict[fx.Node, Any] = dict(probe)
        interior_needed = set(replaced) if replaced else set(region)
        with torch.no_grad():
            for node in region:
                if node in replaced:
                    env[node] = self._expression(replaced[node], env)
                elif not replaced or all(n in env for n in _read(self.lifted, node)):
                    env[node] = self._node(node, env)
        assert interior_needed <= set(env)
        return env

    def _expression(self, expr: Expr, env: Mapping[fx.Node, Any]) -> Tensor:
        match expr:
            case Ref(node=node):
                return env[node]
            case Apply(map=map_, value=value):
                return self._modules_of(map_, env[value])
            case Shared(map=map_, value=value, part=part):
                return self._modules_of(part, self._modules_of(map_, env[value]))
            case Add(values=values):
                total = self._expression(values[0], env)
                for term in values[1:]:
                    total = total + self._expression(term, env)
                return total
            case Cat(values=values, dim=dim):
                return torch.cat([self._expression(v, env) for v in values], dim)
            case Through(node=node, value=value):
                op = self.lifted.op(node)
                assert isinstance(op, Resampling)
                result = self._original(node, {**env, op.source: self._expression(value, env)})
                assert isinstance(result, Tensor)
                return result
            case Then(map=map_, value=value):
                return self._modules_of(map_, self._expression(value, env))
            case Plain(node=node):
                op = self.lifted.op(node)
                assert isinstance(op, Normalised)
                function, arguments = op.plain
                return function(env[op.source], *arguments)
            case Attend(values=values, bias=bias):
                constants = [(self.lifted.context.constants.value(b), shape) for b, shape in bias]
                masks = [(b, tuple(b.shape), shape) for b, shape in constants]
                return attended(Eager(), expr, [self._expression(v, env) for v in values], masks)[-1]

    def _modules_of(self, map_: AffineConv, x: Tensor) -> Tensor:
        if id(map_) not in self._emitted:
            self._emitted[id(map_)] = (map_, [module for _, module in emit(map_, _DOUBLE)])
        with FastDepthwise():
            for module in self._emitted[id(map_)][1]:
                x = module(x)
        return x

    def _node(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        op = self.lifted.op(node)
        if node in self.lifted.records and isinstance(op, Affine):
            return self._expression(Apply(self.lifted.records[node].map, op.source), env)
        return self._original(node, env)

    def _original(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """The user's own operation; what it reads is computed first where it is a split, stack or constant."""

        def value(n: fx.Node) -> Any:
            if n in env:
                return env[n]
            if self.lifted.context.constants.is_constant(n):
                if n not in self._constants:
                    self._constants[n] = self.lifted.context.constants.value(n)
                return self._constants[n]
            return self._original(n, env)

        args = fx.node.map_arg(node.args, value)
        kwargs = fx.node.map_arg(node.kwargs, value)
        match node.op:
            case "call_module":
                path = str(node.target)
                if path not in self._modules:
                    self._modules[path] = copied(module_at(self.lifted.root, path)).double()
                with FastDepthwise():
                    return self._modules[path](*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "call_function":
                assert callable(node.target)
                return node.target(*args, **kwargs)
            case _:
                raise RuntimeError(f"{node.name} is outside the region")


def _probes(
    lifted: LiftedGraph,
    region: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    asked: Mapping[fx.Node, AffineConv],
    order: Sequence[int],
) -> Iterator[dict[fx.Node, Tensor]]:
    """Hostile inputs of a region, several sizes in this order; none where a channel count or rank is not known."""
    facts = {node: _facts(lifted, region, node, asked.get(node)) for node in inputs}
    if any(f is None for f in facts.values()):
        return
    strides = _strides(lifted, region, inputs)
    generator = torch.Generator().manual_seed(0)
    given_sizes = _SMALL_SIZES if len(inputs) > 1 and max(strides.values(), default=1) >= _RESOLUTIONS else _SIZES
    for index in order:
        batch, *sizes = given_sizes[index]
        probe = {}
        for node, fact in facts.items():
            assert fact is not None
            rank, channels, first = fact
            spatial = [s * strides.get(node, 1) if len(inputs) > 1 else s for s in sizes[: max(rank - 2, 0)]]
            if rank < 2:
                shape = [channels]
            elif first:
                shape = [batch, channels, *spatial]
            else:
                shape = [batch, *spatial, channels]
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
            if index == 1:
                x = x.round() + 1.0  # mostly constant, impulses here and there, borders included
            probe[node] = x
        yield probe


def _facts(
    lifted: LiftedGraph, region: Sequence[fx.Node], node: fx.Node, asked: AffineConv | None
) -> tuple[int, int, bool] | None:
    """(rank, channels, whether channels come first) of a region's input; `asked`: a map that is applied to it."""
    shape = lifted.context.shapes.of(node)
    for reader in region:
        op = lifted.op(reader)
        if isinstance(op, Affine) and op.source is node and op.axes is not None:
            map_ = lifted.map_of(reader, op.axes)
            if not isinstance(map_, Decline):
                rank = len(shape) if shape is not None else op.axes + 2
                return rank, map_.in_channels, op.axes > 0 or rank == 2
    for reader in region:
        op = lifted.op(reader)
        if isinstance(op, Normalised) and op.source is node:
            return len(shape) if shape is not None else 4 if op.first else 3, op.channels, op.first
    maps = [op for op in map(lifted.op, region) if isinstance(op, Affine) and op.axes is not None]
    if shape is not None and len(shape) > 2 and maps and all(op.axes == 0 for op in maps):
        return None if shape[-1] is None else (len(shape), shape[-1], False)  # tokens
    if asked is not None:
        rank = len(shape) if shape is not None else asked.axes + 2
        return rank, asked.in_channels, asked.axes > 0 or rank == 2
    if shape is not None and len(shape) > 1 and shape[1] is not None:
        return len(shape), shape[1], True
    measured = asked is None and not any(user in region for user in node.users)
    return (4, 1, True) if measured else None  # nothing but a size of it is read


def _strides(lifted: LiftedGraph, region: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """How much larger each input is than the region's output, by the strides in between."""
    scale: dict[fx.Node, Fraction] = {}
    for node in sorted(region, reverse=True):
        own = scale.get(node, Fraction(1))
        op = lifted.op(node)
        if isinstance(op, Affine) and op.axes:
            map_ = lifted.map_of(node, op.axes)
            own *= 1 if isinstance(map_, Decline) else Fraction(max((1, *map_.stride)), max((1, *map_.zoom)))
        for source in _read(lifted, node):
            scale[source] = max(scale.get(source, own), own)
    given = [scale[node] for node in inputs if node in scale]
    smallest = min(given, default=Fraction(1))
    return {node: ceil(scale[node] / smallest) for node in inputs if node in scale}
