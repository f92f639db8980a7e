"""What went into a rewritten value: the record that the report, the names and the weights' origins are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import fx

from repfx.algebra import AffineConv
from repfx.graph import Call, Concat, LiftedGraph, Normalised, Opaque, Record, Resampling, common_path
from repfx.rewriting.proposal import Proposal


def record_of(
    lifted: LiftedGraph, map_: AffineConv, proposal: Proposal, absorbed: Sequence[fx.Node], error: float | None
) -> Record:
    """The history of a map that these nodes went into."""
    record = Record(map_, note=proposal.note, error=error)
    for node in sorted(absorbed):
        if node.meta.get("made_by"):
            continue  # no operation of the user's: an earlier rewrite put it there
        if isinstance(lifted.op(node), Resampling):
            continue  # it stays, on another value
        old = lifted.records.get(node)
        if old is None:
            _take_in(record, lifted, node)
        else:
            _inherit(record, old)
    if proposal.rule not in record.rules:
        record.rules.append(proposal.rule)
    return record


def _take_in(record: Record, lifted: LiftedGraph, node: fx.Node) -> None:
    """An operation of the user's goes into a map."""
    record.kinds[lifted.kind(node)] += 1
    if not isinstance(lifted.op(node), Normalised):  # what normalises keeps its place
        record.sources.append(lifted.place(node))


def _inherit(record: Record, old: Record) -> None:
    """What had gone into one map has gone into the other now."""
    record.kinds.update(old.kinds)
    record.sources += old.sources
    record.rules += [rule for rule in old.rules if rule not in record.rules]
    record.note = record.note or old.note
    record.error = larger(record.error, old.error)


def larger(error: float | None, other: float | None) -> float | None:
    """The larger of two errors, as far as they are known."""
    known = [e for e in (error, other) if e is not None]
    return max(known, default=None)


def call_of(lifted: LiftedGraph, proposal: Proposal, heads: int, error: float | None) -> Call:
    """The history of an attention that is one call now."""
    alive = filter(lifted.alive, proposal.interior)
    inside = sorted(node for node in alive if isinstance(lifted.op(node), Opaque | Concat))
    kinds = Counter(lifted.kind(node) for node in inside)
    text = f"scaled_dot_product_attention of {heads} heads" if heads else "scaled_dot_product_attention"
    sources = [lifted.place(node) for node in inside]
    return Call(text, proposal.rule, common_path(sources), kinds, tuple(sources), proposal.note, error)
