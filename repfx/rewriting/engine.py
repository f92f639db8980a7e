"""The engine: passes are asked, and what they propose is taken through one gate before the graph changes.

Gate: nothing inside is used outside -> the objective's cost strictly falls -> the region agrees with
its replacement on hostile inputs -> commit (`repfx.rewriting.builder` makes the nodes).

Every pass is asked about every value once.  A refusal is remembered together with the nodes that were
looked at for it, and stands until one of them changes; so the work is proportional to what changes.
Alike blocks are asked about once (`repfx.rewriting.isomorphism`, `repfx.rewriting.replication`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import fx

from repfx.decline import Decline, Reason
from repfx.graph import Constant, Input, LiftedGraph, Op, Resampling, has_effect, used_outside
from repfx.rewriting.builder import Builder
from repfx.rewriting.candidate import candidates
from repfx.rewriting.expressions import values_of
from repfx.rewriting.isomorphism import Layout, alike
from repfx.rewriting.objective import Objective
from repfx.rewriting.probes import verify_proposal
from repfx.rewriting.proposal import Expr, Pass, Proposal, Ref
from repfx.rewriting.replication import Repetition, UnlikeError, effect_on

_Question = tuple[int, fx.Node]  # a pass, by its place among the passes, and a value


@dataclass
class Engine:
    """Runs passes over one lifted graph until nothing improves any more."""

    lifted: LiftedGraph
    objective: Objective
    objection: Callable[[fx.Node], Decline | None]  # why a node must stay as it is, if so
    verify: bool = True
    progress: Callable[[str, float], None] | None = None
    verify_seconds: float = 0.0
    _open: list[set[fx.Node]] = field(default_factory=list)  # values that each pass has yet to be asked about
    _about: list[frozenset[type[Op]]] = field(default_factory=list)  # which operations each pass is asked about
    _settled: dict[_Question, list[Decline]] = field(default_factory=dict)  # what was refused about each
    _rests_on: dict[fx.Node, set[_Question]] = field(default_factory=dict)  # whose answers rest on a node
    _home: dict[fx.Node, int] = field(default_factory=dict)  # the stretch in which alone rewriting goes on
    _anchors: dict[fx.Node, fx.Node] = field(default_factory=dict)  # before which node of its stretch a new one stands

    def run(self, passes: Sequence[Pass], limit: int = 1000) -> None:
        """Sweep the passes until a whole sweep changes nothing.

        Every commitment strictly lowers the cost, so this ends; `limit` only guards against our bugs.
        """
        self._about = [frozenset(one.about) for one in passes]
        layout = alike(self.lifted)
        if layout.families:
            self._home = {n: i for i, f in enumerate(layout.families) for n in layout.stretch(f, f.starts[0])}
            self._settle(passes, [*self._home], limit)
            self._repeat(layout)
            self._home = {}
            self._settled.clear()
        self._settle(passes, self.lifted.graph.nodes, limit)

    def _settle(self, passes: Sequence[Pass], nodes: Iterable[fx.Node], limit: int) -> None:
        """Ask about these nodes, and what becomes of them, until nothing improves."""
        self._open = [set() for _ in passes]
        for node in nodes:
            self._introduce(node, self.lifted.op(node))
        for sweep in range(limit):
            if not self._sweep(passes, sweep):
                self._rests_on.clear()  # large, and nothing will change any more
                return
        raise AssertionError("passes did not settle")

    def _repeat(self, layout: Layout) -> None:
        """Do to all stretches of each family what was done to its first."""
        made: dict[int, list[fx.Node]] = {}
        for node in self._anchors:
            made.setdefault(self._home[node], []).append(node)
        for index, family in enumerate(layout.families):
            effect = effect_on(self.lifted, layout, family, made.get(index, []), self._anchors)
            if effect is None:
                continue
            for start in family.starts[1:]:
                Repetition(effect, start).run(self._checked if self.verify else None)

    def _checked(self, proposal: Proposal) -> float | None:
        """The error of a repetition on the probes; raises `UnlikeError` where it is no rounding error."""
        checked = self._verified(proposal, once=True)
        if isinstance(checked, Decline):
            raise UnlikeError
        return checked

    def _verified(self, proposal: Proposal, *, once: bool = False) -> float | Decline | None:
        started = time.perf_counter()
        checked = verify_proposal(self.lifted, proposal, once=once)
        self.verify_seconds += time.perf_counter() - started
        return checked.at(self.lifted.place(proposal.replacements[-1][0])) if isinstance(checked, Decline) else checked

    def declines(self) -> list[Decline]:
        """What was refused about the values that are left, each refusal once."""
        found = {
            (d.rule, d.subject, d.fact): d
            for (_, node), refused in self._settled.items()
            if self.lifted.alive(node)
            for d in refused
        }
        return list(found.values())

    def _sweep(self, passes: Sequence[Pass], sweep: int) -> bool:
        """Run the passes in order up to the first that changes something: a later pass sees settled regions."""
        for index, one in enumerate(passes):
            if self.progress is not None:
                self.progress(f"sweep {sweep + 1}: {one.name}", index / len(passes))
            if self._run_pass(index, one):
                return True
        return False

    def _run_pass(self, index: int, one: Pass) -> bool:
        changed = False
        todo = [node for node in self._open[index] if self.lifted.alive(node)]
        self._open[index].clear()
        for node in sorted(todo, reverse=one.last_first):
            if self.lifted.alive(node):
                changed |= self._ask(index, one, node)
        return changed

    def _ask(self, index: int, one: Pass, node: fx.Node) -> bool:
        """Take what a pass proposes about a value through the gate; whether anything was committed."""
        refused, changed = [], False
        looked_at = self.lifted.watch()
        for item in one.propose(self.lifted, node):
            refusal = item if isinstance(item, Decline) else self._refusal(item)
            if self._home and self._strays(node, looked_at):
                break
            if isinstance(item, Proposal) and refusal is None:
                error = self._verified(item) if self.verify else None
                if not isinstance(error, Decline):
                    self._commit(item, error)
                    changed = True
                    continue
                refusal = error
            assert refusal is not None
            refused.append(refusal.by(one.name))
        if changed:
            self._open[index].add(node)
            return True
        question = (index, node)
        self._settled[question] = refused
        looked_at.add(node)
        for other in looked_at:
            rests = self._rests_on.get(other)
            if rests is None:
                self._rests_on[other] = {question}
            else:
                rests.add(question)
        return False

    def _reopen(self, changed: Iterable[fx.Node]) -> None:
        """Ask again whatever rests on these nodes."""
        for node in changed:
            for index, asked in self._rests_on.pop(node, ()):
                self._settled.pop((index, asked), None)
                self._open[index].add(asked)

    def _strays(self, node: fx.Node, looked_at: set[fx.Node]) -> bool:
        """Whether an answer about a node of a stretch rests on anything outside it."""
        home = self._home
        return any(home.get(other) != home.get(node) for other in looked_at)

    def _refusal(self, proposal: Proposal) -> Decline | None:
        """Why a proposal must not be committed, if so."""
        lifted = self.lifted
        sinks = [node for node, _ in proposal.replacements]
        place = lifted.place(sinks[-1])
        for node in proposal.interior:
            objection = self.objection(node)
            if objection is not None:
                return objection
        leak = used_outside(lifted, proposal.interior, sinks) if not proposal.across else None
        if leak is not None:
            reader = "the output" if leak[1].op == "output" else lifted.place(leak[1])
            fact = f"is read inside the region and by {reader}"
            return Decline(Reason.OUTSIDE_USE, fact, lifted.place(leak[0]))
        for _, expr in proposal.replacements:
            for value in values_of(expr):
                if value in proposal.interior and value not in sinks:
                    return Decline(Reason.OUTSIDE_USE, "is read again by what replaces it", lifted.place(value))
                if value.meta.get("aliased"):
                    fact = "would read a value that an in-place operation overwrites"
                    return Decline(Reason.NOT_EXACT, fact, place)
                if _moves_past_an_overwriter(value, proposal.interior, expr):
                    fact = f"would read {lifted.place(value)} behind a module that may overwrite it"
                    return Decline(Reason.NOT_EXACT, fact, place)
        refused = self.objective.refuses(*candidates(lifted, proposal))
        return None if refused is None else refused.at(place)

    def _commit(self, proposal: Proposal, error: float | None) -> None:
        lifted = self.lifted
        share = _shares(lifted, proposal)
        changed = _touched(lifted, proposal)
        builder = Builder(lifted, proposal, error, self._welcome)
        for node, expr in proposal.replacements:
            with lifted.graph.inserting_before(node):
                new = builder.build(expr, node, share.get(node, []))
            known = lifted.context.shapes.of(node)
            if new not in lifted.context.shapes._known or lifted.context.shapes.of(new) is None:
                lifted.context.shapes.set(new, known)
            node.replace_all_uses_with(new)
            lifted.rename(node, new)
        changed |= erase_unused(lifted, proposal.interior)
        self._reopen(changed)

    def _welcome(self, node: fx.Node, op: Op, sink: fx.Node) -> None:
        """A new node of the graph, which every pass will be asked about."""
        self._introduce(node, op)
        if sink in self._home:
            self._home[node] = self._home[sink]
            self._anchors[node] = self._anchors.get(sink, sink)

    def _introduce(self, node: fx.Node, op: Op) -> None:
        for values, about in zip(self._open, self._about):
            if type(op) in about:
                values.add(node)


def _moves_past_an_overwriter(value: fx.Node, interior: Sequence[fx.Node], expr: Expr) -> bool:
    """Whether some call between the region's first and last node may write into what the replacement reads."""
    if isinstance(expr, Ref) and any(node.meta.get("overwriters") for node in interior):
        return True  # a copy that protects the value it was made from
    first, last = min(interior), max(interior)
    return any(first < call < last for call in value.meta.get("overwriters", ()))


def _touched(lifted: LiftedGraph, proposal: Proposal) -> set[fx.Node]:
    """Nodes whose operation or readers change when a proposal is committed."""
    changed = {*proposal.interior, *proposal.across}
    for node in proposal.interior:
        changed.update(node.all_input_nodes)
        changed.update(lifted.sources(node))
    for node, expr in proposal.replacements:
        changed.update(values_of(expr))
        changed.update(node.users)
        changed.update(lifted.dependents(node))
    return changed


def erase_unused(lifted: LiftedGraph, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Erase nodes that nothing reads any more, and what only they read.  Returns what has lost a reader."""
    work = sorted((n for n in nodes if lifted.alive(n)), reverse=True)
    touched: set[fx.Node] = set()
    while work:
        node = work.pop(0)
        if not lifted.alive(node) or node.users or node.op in ("placeholder", "output"):
            continue
        # constants stay until the maps that will read them are evaluated
        feeding = [n for n in node.all_input_nodes if not isinstance(lifted.op(n), Constant | Input)]
        touched.update(node.all_input_nodes)
        lifted.graph.erase_node(node)
        lifted.forget(node)
        work.extend(n for n in feeding if not n.users and not has_effect(n))
    return touched


def _shares(lifted: LiftedGraph, proposal: Proposal) -> dict[fx.Node, list[fx.Node]]:
    """Which interior nodes each replacement absorbs: those above it that no other one absorbed."""
    inside, taken = set(proposal.interior), set()
    shares: dict[fx.Node, list[fx.Node]] = {}
    for sink, _ in sorted(proposal.replacements, key=lambda r: r[0]):
        own, work = [], [sink]
        while work:
            node = work.pop()
            if node not in inside or node in taken:
                continue
            taken.add(node)
            own.append(node)
            op = lifted.op(node)
            work.extend((op.source,) if isinstance(op, Resampling) else lifted.sources(node))
        shares[sink] = own
    return shares
