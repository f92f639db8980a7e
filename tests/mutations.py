"""Mutation check: each rewrite is broken in turn, and the tests must notice.

    python -m tests.mutations                 # all mutants, a few seconds each
    python -m tests.mutations --list
    python -m tests.mutations bias-by-1-percent wrong-group
    python -m tests.mutations --share 1/2     # every second one: start 1/2 and 2/2 side by side

A mutant is one small change of the source (a sign, a flip, a pad by one, a bias by 1 %, a wrong group
index, a guard that always says yes) in a temporary copy of the tree.  The fast part of the suite runs
there until its first failure; it compiles with `verify=False`, so the compiler's own gate does not help.
Exit code 0: every mutant was noticed.  Tests that fail without any mutant are left out, and named.
`tests/test_mutations.py` checks in the ordinary suite that every mutant still applies, and that a bias
that is off by 1 % is noticed once per pass.
"""

from __future__ import annotations

import argparse
import ast
import functools
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis  # noqa: F401  (imported before the forks, once)
import pytest
import timm.layers  # noqa: F401
import torch  # noqa: F401
import torchvision.ops  # noqa: F401

ROOT = Path(__file__).parent.parent
TREES = ("repfx", "passes", "tests", "repnext")
SUITE = (
    "tests/test_border.py",
    "tests/test_form.py",
    "tests/test_parallel.py",
    "tests/test_lifting.py",
    "tests/passes",
    "tests/test_traps.py",
    "tests/test_arguments.py",
    "tests/test_sizes.py",
    "tests/test_serial.py",
    "tests/test_transposed.py",
    "tests/test_spellings.py",
    "tests/test_layout.py",
    "tests/test_algebra_laws.py",
    "tests/test_unlisted_traps.py",
    "tests/test_fuzz_finds.py",
    "tests/test_alike.py",
    "tests/test_recording.py",
    "tests/test_truth.py",
    "tests/test_sharing.py",
    "tests/test_comparison.py",
    "tests/test_inplace.py",
    "tests/test_questions.py",
    "tests/test_vanishing.py",
    "tests/test_operations.py",
    "tests/test_net.py",
)


@dataclass(frozen=True)
class Mutant:
    """One change: in `symbol`, the words `old`, which occur in it exactly once, become `new`.

    A symbol is a function, method, class or table with the name of its file before it: "border.BorderTerm._map".
    It may move to another folder, and lines may be broken in another way: words are compared, not text.
    """

    name: str
    symbol: str
    old: str
    new: str

    def problem(self, root: Path = ROOT) -> str:
        """Why this mutant cannot be made, or ""."""
        places = places_of(self.symbol, str(root))
        if len(places) != 1:
            return f"{len(places)} symbols are called {self.symbol}"
        count = len(self._found(places[0]))
        if count != 1:
            return f"{self.symbol} holds {count} times: {self.old}"
        try:
            ast.parse(self._changed(places[0]))
        except SyntaxError as error:
            return f"is no Python: {error}"
        return ""

    def _changed(self, place: Place) -> str:
        """The text of the file with the change made."""
        ((start, end),) = self._found(place)
        text = place.path.read_text()
        return text[:start] + self.new.strip() + text[end:]

    def _found(self, place: Place) -> list[tuple[int, int]]:
        """From where to where in its file the old words stand."""
        wanted = [word for word, *_ in words_of(self.old)]
        there = words_of(place.path.read_text(), place.first, place.last)
        starts = range(len(there) - len(wanted) + 1)
        return [
            (there[i][1], there[i + len(wanted) - 1][2])
            for i in starts
            if [word for word, *_ in there[i : i + len(wanted)]] == wanted
        ]

    def file(self, root: Path = ROOT) -> Path:
        """Where the symbol is."""
        return places_of(self.symbol, str(root))[0].path

    def apply(self, root: Path) -> None:
        """Change the copy at `root`."""
        (place,) = places_of(self.symbol, str(root))
        place.path.write_text(self._changed(place))


@dataclass(frozen=True)
class Place:
    """A symbol's lines in its file, the first and the last, from one."""

    path: Path
    first: int
    last: int


@functools.cache
def places_of(symbol: str, root: str) -> tuple[Place, ...]:
    """All symbols of this name in the compiler and its passes."""
    return tuple(_symbols(root).get(symbol, ()))


@functools.cache
def _symbols(root: str) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for path in sorted((*Path(root).glob("repfx/**/*.py"), *Path(root).glob("passes/*.py"))):
        for name, node in _named_in(ast.parse(path.read_text())):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            assert node.end_lineno is not None
            found.setdefault(f"{path.stem}.{name}", []).append(Place(path, first, node.end_lineno))
    return found


def _named_in(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                yield name, node
                yield from ((f"{name}.{inner}", part) for inner, part in _named_in(node))
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.Assign(targets=targets):
                yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))


WORD = re.compile(
    r"""#[^\n]*|[rbfu]*"{3}.*?"{3}|[rbfu]*"(?:\\.|[^"\\\n])*"|[rbfu]*'(?:\\.|[^'\\\n])*'|\w+|[^\w\s]""", re.DOTALL
)


def words_of(text: str, first: int = 1, last: int | None = None) -> list[tuple[str, int, int]]:
    """(word, start, end) of what Python reads in these lines, comments and commas before a bracket left out."""
    lines = text.splitlines(keepends=True)
    start = sum(map(len, lines[: first - 1]))
    end = sum(map(len, lines[:last]))
    found = [(m[0], m.start(), m.end()) for m in WORD.finditer(text, start, end) if not m[0].startswith("#")]
    closes = [word for word, *_ in found[1:]]
    return [item for item, after in zip(found, [*closes, ""]) if not (item[0] == "," and after in {")", "]", "}"})]


MUTANTS = (
    # --- repfx/algebra/values.py
    Mutant(
        "kernel-flipped",
        "kernels.mixed",
        "outer[trailing(tap)]",
        "outer[trailing(n - 1 - t for t, n in zip(tap, k2))]",
    ),
    Mutant("outer-taps-not-spread", "kernels.mixed", "slice(t, t + (k - 1) * s + 1, s)", "slice(t, t + k)"),
    Mutant(
        "scale-not-multiplied",
        "kernels._scaled_copies",
        "return _spread(_picked(inner.planes, reads) * scale, width)",
        "return _spread(_picked(inner.planes, reads), width)",
    ),
    Mutant(
        "dilation-not-written-out",
        "values.dilated",
        "slice(None, None, d) for d in dilation",
        "slice(0, k) for k in kernel.shape[lead:]",
    ),
    # --- repfx/algebra/serial.py
    Mutant(
        "pad-by-one",
        "serial._composed",
        "before=tuple(b1 + s * b2 for b1, s, b2 in zip(inner.before, stride, outer.before)),",
        "before=tuple(b1 + s * b2 + (b2 > 0) for b1, s, b2 in zip(inner.before, stride, outer.before)),",
    ),
    Mutant(
        "frame-guard-before-dropped",
        "serial._sees_the_image",
        "touches_before = outer.before[axis] > 0 and kernel - 1 - before >= stride",
        "touches_before = False",
    ),
    Mutant(
        "frame-guard-after-at-one-size-only",
        "serial._sees_the_image",
        "first_outside = inner.extent[axis] - max(remainders(",
        "first_outside = inner.extent[axis] - min(remainders(",
    ),
    Mutant(
        "other-padding-modes-compose-freely",
        "serial._refusal",
        "        return _extended_otherwise(outer, inner)",
        "        return None",
    ),
    Mutant(
        "inner-bias-seen-through-the-mean",
        "border_terms._summed",
        "kernel.sum(done, keepdim=True)",
        "kernel.mean(done, keepdim=True)",
    ),
    Mutant(
        "inner-bias-is-a-plain-bias",
        "border_terms._seen_through",
        "if stretch.free and not padded:",
        "if stretch.free:",
    ),
    Mutant(
        "border-on-the-wrong-grid",
        "border_terms._on_input_grid",
        "stretch.before * stride - tap",
        "stretch.before - tap",
    ),
    # --- spellings, transposed convolutions
    Mutant(
        "lerp-the-other-way",
        "arithmetic._interpolated",
        "return Sum(((a, 1.0 - float(w)), (b, float(w))))",
        "return Sum(((a, float(w)), (b, 1.0 - float(w))))",
    ),
    Mutant(
        "matrix-read-by-rows",
        "contractions._product",
        "lambda: read().t(), (shape[1], shape[0]), None, axes=0)",
        "lambda: read().reshape(shape[1], shape[0]), (shape[1], shape[0]), None, axes=0)",
    ),
    Mutant(
        "addmm-forgets-beta",
        "contractions._added",
        "bias().reshape(-1) * beta",
        "bias().reshape(-1)",
    ),
    Mutant(
        "addcmul-forgets-its-value",
        "spelling._product",
        '{"alpha": value}',
        '{"alpha": 1}',
    ),
    Mutant(
        "scale-of-a-value-it-only-looks-through",
        "fold_scales._map_of_reader",
        "op.axes != axes or op.source is not node:",
        "op.axes != axes:",
    ),
    Mutant(
        "transposed-kernel-not-flipped",
        "constructors.from_transposed",
        "reshape(outputs, inputs // groups, *taps).flip(flipped)",
        "reshape(outputs, inputs // groups, *taps)",
    ),
    Mutant(
        "output-padding-lost",
        "constructors.from_transposed",
        "2 * b + more - k for b, more, k",
        "2 * b + 0 * more - k for b, more, k",
    ),
    Mutant(
        "shuffled-scale-repeated-in-blocks",
        "affine.repeated",
        "Values(v.planes.repeat_interleave(times, 0), v.bias.repeat_interleave(times, 0))",
        "Values(v.planes.repeat_interleave(times, 0), v.bias.repeat(times))",
    ),
    Mutant(
        "transposed-and-wound-around",
        "parallel.executable",
        "if map_.padding_mode != ZEROS:",
        "if False and map_.padding_mode != ZEROS:",
    ),
    Mutant(
        "circular-of-any-size",
        "serial._extended_along",
        "keeps_size = inner.stride[axis] == 1 and inner.extent[axis] == -1",
        "keeps_size = inner.stride[axis] == 1",
    ),
    Mutant(
        "plane-one-pixel-short",
        "border_terms._plane",
        "length = min(max(0, least), most)",
        "length = min(max(0, least - 1), most)",
    ),
    Mutant(
        "border-window-on-a-short-plane",
        "serial._sees_the_image",
        "first_outside < before + longer",
        "first_outside < before",
    ),
    Mutant(
        "shift-before-a-transposed-convolution",
        "serial._zoomed_otherwise",
        "if outer.is_zoomed and (inner.biased or inner.borders):",
        "if outer.is_zoomed and inner.borders:",
    ),
    # --- repfx/algebra/parallel.py
    Mutant(
        "planes-of-any-size-unite",
        "border_terms.united",
        "groups.setdefault((border.free, border.longer), [])",
        "groups.setdefault((border.free, (0,) * len(border.free)), [])",
    ),
    Mutant(
        "different-zooms-add",
        "parallel._difference",
        "if part.zoom != first.zoom:",
        "if False and part.zoom != first.zoom:",
    ),
    Mutant(
        "sum-sign",
        "parallel._accumulate",
        "        into.add_(own)",
        "        into.sub_(own)",
    ),
    Mutant(
        "sum-forgets-biases",
        "parallel.add",
        "total([v.bias for v in values])",
        "values[0].bias",
    ),
    Mutant(
        "branch-one-tap-off",
        "parallel._common",
        "tuple(slice(b - p, b - p + k) for b, p, k in zip(before, part.before, part.kernel)) for part in parts",
        "tuple(slice(0, k) for b, p, k in zip(before, part.before, part.kernel)) for part in parts",
    ),
    Mutant("sizes-need-not-agree", "parallel._difference", "if part.extent != first.extent:", "if False:"),
    Mutant("strides-need-not-agree", "parallel._difference", "if part.stride != first.stride:", "if False:"),
    Mutant("padding-modes-mix", "parallel._clash", "    if len(modes) > 1:", "    if False:"),
    Mutant(
        "broadcast-channels-added",
        "parallel.add",
        "    if len(counts) > 1:",
        "    if False:",
    ),
    # --- repfx/algebra/affine.py, repfx/algebra/constructors.py
    Mutant(
        "slice-from-the-top",
        "affine.take",
        "taken(v.given, outputs, incidence.width),",
        "v.planes[: len(outputs), : incidence.width],",
    ),
    Mutant(
        "factor-misses-the-bias",
        "affine.scaled",
        "Values(planes, v.bias * factor,",
        "Values(planes, v.bias,",
    ),
    Mutant(
        "pool-ignores-its-divisor",
        "constructors.pool_average",
        "value = 1.0 / (divisor or prod(kernel))",
        "value = 1.0 / prod(kernel)",
    ),
    # --- repfx/algebra/form.py, repfx/emission/modules.py, repfx/layers/
    Mutant(
        "bias-by-1-percent",
        "modules._filled",
        '_cast(bias, target, path, "bias")',
        '_cast(bias * 1.01, target, path, "bias")',
    ),
    Mutant(
        "weight-by-1-percent",
        "modules._filled",
        '_cast(weight, target, path, "weight")',
        '_cast(weight * 1.01, target, path, "weight")',
    ),
    Mutant(
        "wrong-group",
        "modules._grouped_weight",
        "local = np.where(rows < 0, -1, local % width)",
        "local = np.where(rows < 0, -1, (local + 1) % width)",
    ),
    Mutant(
        "wrong-permutation-direction",
        "modules._convolution",
        "else np.argsort(form.order)",
        "else np.asarray(form.order)",
    ),
    Mutant(
        "border-term-dropped",
        "convolution.Extended.forward",
        "            y = y + border(sizes, y.shape[2:])",
        "            y = y + 0 * border(sizes, y.shape[2:])",
    ),
    Mutant("border-one-pixel-large", "border.BorderTerm._map", "(places < size)", "(places <= size)"),
    Mutant(
        "border-as-large-as-the-input",
        "border.BorderTerm._map",
        "self.longer[axis] if self.longer else 0",
        "0 if self.longer else 0",
    ),
    Mutant("border-forgets-the-stride", "border.BorderTerm._map", "[:, None] * self.stride[axis]", "[:, None]"),
    Mutant(
        "border-map-kept-too-long",
        "border.BorderTerm.forward",
        "if self._last is None or self._last[0] != key or not _holds(self._last[1], weight):",
        "if self._last is None:",
    ),
    # --- repfx/lifting
    Mutant(
        "norm-without-eps",
        "constructors.normalising",
        "torch.rsqrt(variance().double() + eps)",
        "torch.rsqrt(variance().double())",
    ),
    Mutant(
        "norm-mean-sign",
        "constructors.normalising",
        "shift = -mean().double() * scale",
        "shift = mean().double() * scale",
    ),
    Mutant(
        "batch-statistics-folded",
        "norms._batch_norm_function",
        "    if training is not False or not isinstance(eps, float | int):",
        "    if False:",
    ),
    Mutant(
        "same-padding-on-the-other-side",
        "convolutions._same_padding",
        "return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)",
        "return tuple(t - t // 2 for t in total), tuple(t // 2 for t in total)",
    ),
    Mutant("clipped-pool-is-a-conv", "windows._Pooling.unlike_a_convolution", "if self.clips:", "if False:"),
    Mutant(
        "uncounted-padding-is-a-conv",
        "windows._Pooling.unlike_a_convolution",
        "if any(self.padding) and not self.counts:",
        "if False:",
    ),
    Mutant(
        "minus-is-plus",
        "arithmetic._sub",
        "_sub: Rule = lambda node, context: _sum(node, context, -1.0)",
        "_sub: Rule = lambda node, context: _sum(node, context, 1.0)",
    ),
    Mutant("mean-is-sum", "arithmetic._Stack.reduced", "1.0 / len(self.values) if mean else 1.0", "1.0"),
    Mutant(
        "clipped-padding-sums-to-one",
        "windows._Pooling.rows_sum_to_one",
        "return self.divisor is None and not (self.counts and any(self.padding))",
        "return self.divisor is None",
    ),
    # --- repfx/lifting/resampling.py, repfx/rewriting/propagation.py
    Mutant(
        "one-pixel-by-the-example",
        "resampling._one_pixel",
        "    shape = context.structure.of(source)\n    return shape is not None and len(shape) > 2",
        "    shape = context.shapes.of(source)\n    return shape is not None and len(shape) > 2",
    ),
    Mutant(
        "mean-over-channels-is-a-resampling",
        "resampling._reduced",
        "if 1 not in gone and rank > 2:",
        "if rank > 2:",
    ),
    Mutant(
        "any-batch-is-the-batch",
        "resampling._keeps",
        "return any(value in same for value in batches(read[0], context.root, context.whole))",
        "return True",
    ),
    Mutant(
        "resampled-value-is-the-old-one",
        "builder.Builder._resampled",
        "lambda n: value if n is op.source else n",
        "lambda n: n",
    ),
    Mutant(
        "readers-after-a-resampling-take-nothing",
        "propagation.absorbed",
        "merged = applied(outer, over(map_, way.axes))",
        "merged = outer if way.axes != axes else applied(outer, over(map_, way.axes))",
    ),
    Mutant(
        "views-that-name-channels-move",
        "ops.Resampling.passes",
        "return not self.pinned or map_.in_channels == map_.out_channels",
        "return True",
    ),
    Mutant("norm-keeps-its-scale-too", "builder.Builder._normalised", "function, arguments = op.plain", "return node"),
    # --- repfx/graph/regions.py, repfx/rewriting/gate.py, repfx/graph/constants.py
    Mutant(
        "factors-of-a-sum-ignored",
        "regions._summed",
        "maps[term] if factor == 1.0 else scaled(maps[term], factor)",
        "maps[term]",
    ),
    Mutant("used-outside-ignored", "gate._is_used_outside", "    if leak is None:", "    if True:"),
    Mutant(
        "islands-looked-into",
        "table._of_module",
        "if str(node.target) in context.whole:",
        "if False:",
    ),
    # --- repfx/tracing/signature.py, repfx/tracing/tracer.py, repfx/tracing/proxy_queries.py, repfx/capture/trace.py
    Mutant(
        "arguments-not-checked",
        "guards.ArgumentGuard.forward",
        "if not nothing and not _matches(given[name], wanted):",
        "if False:",
    ),
    Mutant("sizes-not-checked", "guards.SizeGuard.forward", "if found != self.wanted:", "if False:"),
    Mutant(
        "caller-may-pass-none",
        "signature._compiled_default",
        "passed is not None and passed.gives(index, name)",
        "False",
    ),
    # --- what a trace believes
    Mutant("one-world", "worlds.attempt", "_trace_once(model, kept, make, OTHER, None)", "first"),
    Mutant(
        "no-other-autocast",
        "surroundings.entered",
        "for device in DEVICES if world.gradients",
        "for device in () if world.gradients",
    ),
    Mutant(
        "what-is-left-is-not-looked-at",
        "left_behind.refuse_left_behind",
        "if not changed and not kept",
        "if True or not kept",
    ),
    Mutant("draws-unseen", "worlds._drew", "kept.drew() or not same_generators(before, generators())", "False"),
    Mutant(
        "seeds-unseen",
        "surroundings.Surroundings.check_draw",
        "if draws(node) and not same_generators",
        "if False and not same_generators",
    ),
    Mutant(
        "eager-draws-unseen",
        "watch.Watch.__torch_dispatch__",
        "if torch.Tag.nondeterministic_seeded in func.tags:",
        "if False:",
    ),
    Mutant("writes-outside-unseen", "watch.Watch._check_written", "memory_of(value) not in self._made:", "False:"),
    Mutant(
        "weights-read-past-the-trace",
        "watch.Watch._check_read",
        "if not self._held.isdisjoint(",
        "if not set().isdisjoint(",
    ),
    Mutant(
        "values-left-in-caches",
        "worlds._trace_once",
        "kept_by_others = take_back(tracer.made)",
        "kept_by_others = []",
    ),
    Mutant(
        "caches-without-a-size",
        "dependence.depends_on_values",
        "_fact(step) in _SIZES",
        "_fact(step) in ()",
    ),
    Mutant(
        "shared-variables-not-put-back",
        "reach.Reach.restore",
        "is not value and value is not _MISSING:",
        "is not value and False:",
    ),
    Mutant(
        "unknown-is-readable",
        "unread.Unread.hide",
        "for table, key, _, stand_in in self._hidden:",
        "for table, key, _, stand_in in []:",
    ),
    Mutant(
        "changes-islands-read-unseen",
        "unread.Unread.sees_a_change",
        "return self._read[path].differs()",
        "return False",
    ),
    Mutant("altered-layers-are-leaves", "tracer.Tracer.is_leaf_module", "return not altered and not", "return not"),
    Mutant(
        "lists-given-to-islands",
        "unread.spoil",
        "    if not written.containers:\n        return\n",
        "    return\n",
    ),
    Mutant(
        "none-of-islands-unseen",
        "tracer.Tracer._check_shared",
        "if path in self.whole and may_return_none(m)",
        "if False and may_return_none(m)",
    ),
    Mutant(
        "copies-reach-the-original",
        "copying._rebound",
        "_rebound(memo.get(id(one), one), memo) for one in held",
        "_rebound(one, memo) for one in held",
    ),
    Mutant(
        "torchs-hooks-by-name",
        "trace._has_hooks",
        "type(hook) in NORMALISING",
        "type(hook).__name__ in ('WeightNorm', 'SpectralNorm')",
    ),
    Mutant("parts-of-itself-handed-on", "children._uses", "if any(_hands_itself_on(function)", "if any(False"),
    Mutant(
        "dead-calls-of-islands",
        "dead_code.has_effect",
        '("aliased", "overwrites", "unread", "guard")',
        '("aliased", "overwrites", "guard")',
    ),
    Mutant("dead-draws", "dead_code.has_effect", "or draws(node)\n", "\n"),
    Mutant(
        "masks-joined-in-place",
        "in_place._function_overwrites",
        'return name in _OVERWRITING or name == "setitem"',
        "return True",
    ),
    Mutant(
        "initialisers-write-nothing",
        "in_place._FIRST",
        '_FIRST = ("input", "tensor", "self")',
        '_FIRST = ("input",)',
    ),
    Mutant(
        "lists-written-unseen",
        "in_place._listed",
        "return [value for value in first if isinstance(value, fx.Node)]",
        "return []",
    ),
    Mutant(
        "later-views-only",
        "in_place._rewrite",
        "if position[m] < position[node]]",
        "if position[m] > position[node]]",
    ),
    Mutant(
        "indices-of-a-pool",
        "proxy_queries._of_function",
        "if node.target is torch.adaptive_max_pool1d:",
        "if False:",
    ),
    Mutant(
        "identity-of-a-dtype",
        "traced_values.TracedTensor._attribute",
        "if name in _OBJECTS and compared_by_identity",
        "if False and compared_by_identity",
    ),
    Mutant(
        "infinities-skipped",
        "difference.Difference._compare_numbers",
        "unlike = odd & ~same & (usual if ours else True)",
        "unlike = odd & False",
    ),
    Mutant("nothing-is-equal", "record.Equivalence.equal", "return self.tensors > 0 and", "return"),
    Mutant("mismatches-returned", "whole._judged", "        if not equivalence.equal:", "        if False:"),
    Mutant(
        "detach-is-nothing",
        "rearranging._IDENTITY_METHODS",
        '("contiguous", "clone")',
        '("contiguous", "clone", "detach")',
    ),
    Mutant("sharing-forgotten", "sharing._shared_among", "                found[node] = same", "                pass"),
    Mutant(
        "stored-twice",
        "compilation._stored_once_more",
        "if after.parameters <= done.lifted.before.parameters:",
        "if True:",
    ),
    Mutant("caught-errors-are-passed", "worlds._run", "if tracer.refusal is not None:", "if False:"),
    Mutant(
        "checks-in-a-try-are-passed",
        "introspection.may_be_caught",
        "return any(_may_catch(outer) for",
        "return any(False for",
    ),
    Mutant("types-are-guessed", "proxy_queries._of_module", "Tensor if plain and not several else None", "Tensor"),
    # --- what reading a network means: rearranging, reshaping, padding, memory, state
    Mutant(
        "part-starts-one-early",
        "slicing._part_of_split",
        "    start = sum(sizes[:index])\n",
        "    start = max(0, sum(sizes[:index]) - 1)\n",
    ),
    Mutant(
        "shuffle-of-the-other-group-count",
        "rearranging._shuffled",
        "np.arange(total).reshape(groups, -1).T.reshape(-1)",
        "np.arange(total).reshape(-1, groups).T.reshape(-1)",
    ),
    Mutant(
        "flip-rolls-by-one",
        "rearranging._flip",
        "np.arange(total)[::-1].copy()",
        "np.roll(np.arange(total)[::-1], 1)",
    ),
    Mutant(
        "crop-by-one",
        "slicing._cropped",
        "extents.append(stop - start - 1)",
        "extents.append(stop - start)",
    ),
    Mutant(
        "example-sizes-are-facts",
        "rearranging.selected",
        "    if not given and context.sure is not None and context.sure.size(source, dim) != total:",
        "    if False:",
    ),
    Mutant(
        "stack-not-interleaved",
        "reshaping._stack_table",
        "table if dim == 1 else table.T",
        "table if dim == 2 else table.T",
    ),
    Mutant(
        "reshape-to-any-size",
        "reshaping._merges",
        "    return channels != -1 and force_equality(spatial, first, context)",
        "    return True",
    ),
    Mutant(
        "frame-of-any-sides",
        "slice_assignment._is_frame",
        "    return found == frame.sides()",
        "    return bool(found)",
    ),
    Mutant(
        "pad-value-inside-too",
        "constructors.pad_values",
        "(-bias.reshape(channels, *(1,) * axes),)",
        "(0 * bias.reshape(channels, *(1,) * axes),)",
    ),
    Mutant(
        "pad-sides-swapped",
        "windows._padded",
        "    before = tuple(reversed(numbers[0::2]))\n    after = tuple(reversed(numbers[1::2]))",
        "    before = tuple(reversed(numbers[1::2]))\n    after = tuple(reversed(numbers[0::2]))",
    ),
    Mutant(
        "one-pixel-pool-is-nothing",
        "windows._Pooling.copies",
        "not any(self.padding) and self.divisor in (None, 1)",
        "not any(self.padding)",
    ),
    Mutant("dtypes-mix", "table.lift", "    if foreign is not None:", "    if False:"),
    Mutant(
        "bounds-are-one-number",
        "arithmetic.channelwise",
        "or not isinstance(source, fx.Node) or len(node.all_input_nodes) > 1:",
        "or not isinstance(source, fx.Node):",
    ),
    Mutant(
        "pooled-channels",
        "arithmetic.channelwise",
        "and info.axes is not None and rank == info.axes + 2",
        "",
    ),
    Mutant("slopes-are-one-number", "arithmetic._prelu", "module.num_parameters == 1 and ", ""),
    Mutant(
        "own-forwards-are-torchs",
        "operations.Operations.of_module",
        "if any(getattr(type(module), name, None) is not getattr(base, name, None) for name in _COMPUTING):",
        "if False:",
    ),
    Mutant("padded-channels-are-known", "shapes_of_layers.padded", "max(0, len(given) - axes)", "2"),
    Mutant("what-is-broadcast-keeps-its-shape", "kept_sizes.keeps", "len(node.all_input_nodes) > 1", "False"),
    Mutant(
        "instance-norm-weights-ignored",
        "norms._instance_norm",
        "same = module.weight is None",
        "same = True",
    ),
    Mutant(
        "lasting-memory-overwritten-freely",
        "in_place._rewrite",
        'kept = any(m.op in ("placeholder", "get_attr") for m in family)',
        "kept = False",
    ),
    Mutant(
        "views-share-no-memory",
        "in_place._shares",
        "return Shares.NOTHING if info is None else info.shares",
        "return Shares.NOTHING",
    ),
    Mutant(
        "getattr-views-share-no-memory",
        "in_place._shares",
        "return Shares.NOTHING if node.args[1] in _FACTS else Shares.FIRST",
        "return Shares.NOTHING",
    ),
    Mutant(
        "written-constants-folded", "constants.Constants._decide", 'return not node.meta.get("aliased")', "return True"
    ),
    Mutant("rounded-weights-in-float64", "constants.Constants.value", "jumps = self._jumps(node)", "jumps = False"),
    Mutant(
        "islands-overwrite-nothing",
        "gate._moves_past_an_overwriter",
        'return any(first < call < last for call in value.meta.get("overwriters", ()))',
        "return False",
    ),
    Mutant(
        "clones-protect-nothing",
        "gate._moves_past_an_overwriter",
        'any(node.meta.get("overwriters") for node in interior)',
        "False",
    ),
    Mutant(
        "noise-is-a-constant",
        "watch.Watch.__torch_dispatch__",
        "        if torch.Tag.nondeterministic_seeded in func.tags:",
        "        if False:",
    ),
    Mutant(
        "attributes-stay-written",
        "kept.Kept.restore",
        "        if not self.touched():\n",
        "        if True:\n",
    ),
    Mutant(
        "parameters-by-their-old-names",
        "recording.RecordingTracer._name_of",
        "if name is None or _registered(self.root, name) is not tensor:",
        "if name is None:",
    ),
    Mutant(
        "modes-unseen",
        "surroundings.Surroundings.check_modes",
        "        if now == self.modes:",
        "        if True:",
    ),
    Mutant(
        "state-unseen", "left_behind.refuse_left_behind", "if not changed and not kept.changed_outside():", "if True:"
    ),
    Mutant("keywords-of-numpy-unseen", "keywords.own_keywords", "not _NAMES.keys().isdisjoint(node.kwargs)", "False"),
    # --- repfx/rewriting/isomorphism.py, repfx/rewriting/replication.py
    Mutant("given-facts-unseen", "isomorphism.alike", "same.setdefault(facts, [])", "same.setdefault((), [])"),
    Mutant("escapes-unseen", "isomorphism._contents", "escaping.tobytes())", "b'')"),
    Mutant("index-numbers-unseen", "isomorphism._Describer._read", "or not value.is_floating_point():", "or False:"),
    Mutant(
        "hooks-unseen-in-blocks",
        "isomorphism._module",
        "any(getattr(module, name) for name in _HOOKS)",
        "False",
    ),
    Mutant("repeats-the-first-weights", "replication.Repetition._built", "self._other(origin.node)\n", "origin.node\n"),
    Mutant("repeats-own-numbers", "replication.Repetition._missing", "if map_.is_given:", "if False:"),
    Mutant(
        "blocks-decide-by-others",
        "rehearsal.Rehearsal.strays",
        "return any(home.get(other) != own for other in looked_at)",
        "return False",
    ),
    Mutant("own-calls-unseen", "tracer.Tracer._check_call", "        if has_own_call(m):", "        if False:"),
    Mutant(
        "inner-methods-unseen",
        "leaves.COMPUTING",
        '("forward", "_conv_forward", "_output_padding")',
        '("forward",)',
    ),
    Mutant("written-containers-unseen", "kept.Kept.changed", "or holds(held[path], written)", "or False"),
    Mutant("rebuilt-parts-unseen", "left_behind.refuse_left_behind", "    if rebuilt:\n", "    if False:\n"),
    # --- passes
    Mutant("generated-weights-stay", "fold_weights.FoldWeights.propose", "not generates_weight(lifted, node)", "True"),
    Mutant("frames-are-free", "cost._FRAME", "_FRAME = Fraction(9, 10)", "_FRAME = Fraction(1)"),
    Mutant("scales-are-noops", "drop_noops.DropNoops.propose", "and map_.is_identity:", "and map_.is_pointwise:"),
    Mutant(
        "parts-in-the-other-order",
        "regions._concatenated",
        "joined = concat([maps[part] for part in op.parts])",
        "joined = concat([maps[part] for part in reversed(op.parts)])",
    ),
    Mutant(
        "shift-of-a-sum-negated",
        "regions.shifted_by",
        "lambda: torch.tensor(shift, dtype=torch.float64)",
        "lambda: torch.tensor(-shift, dtype=torch.float64)",
    ),
    Mutant(
        "strided-operands-stay",
        "memory_layout._above_permute",
        "    return None if dims is None else dims[axis] - len(dims)\n",
        "    return axis\n",
    ),
    Mutant(
        "example-widths-are-facts",
        "lifted.LiftedGraph.channels",
        "            return sure.size(first, axis)\n",
        "            return self.context.shapes.size(first, axis)\n",
    ),
    Mutant(
        "siblings-sliced-from-the-top",
        "merge_siblings._stacked",
        "        start += map_.out_channels\n",
        "",
    ),
    Mutant(
        "orders-of-any-axis",
        "carry_permutations._Spread._acts_on_order",
        "        return (op.axes != 0) == self.first",
        "        return True",
    ),
    Mutant(
        "heads-of-half-weight",
        "average_heads.AverageHeads.propose",
        "as_one_map(self.name, region)",
        "as_one_map(self.name, __import__('dataclasses').replace(region, map=__import__('repfx.algebra')"
        ".algebra.scaled(region.map, 0.5)))",
    ),
    Mutant(
        "chains-misread-their-input",
        "collapse_chains.CollapseChains.propose",
        "as_one_map(self.name, region)",
        "as_one_map(self.name, __import__('dataclasses').replace(region, source=first))",
    ),
    Mutant(
        "regions-lose-their-constants",
        "proposal.as_one_map",
        "Apply(region.map, region.source)",
        "Apply(__import__('repfx.algebra').algebra.linear_part(region.map), region.source)",
    ),
    Mutant("written-numbers-never-cancel", "vanishing._may_cancel", " or (part.biased and not probe.read)", ""),
    Mutant("weights-never-meet-themselves", "vanishing._may_cancel", "not read.isdisjoint(probe.read) or ", ""),
    Mutant("every-border-is-composed", "vanishing.without_vanishing_borders", " or not _may_cancel(map_)", ""),
    Mutant("borders-vanish-lightly", "vanishing.without_vanishing_borders", "_ROUNDING * scale", "1e9 * scale"),
    Mutant("wider-regions-start-too-late", "regions.around", "(before, behind)", "(source, behind)"),
    Mutant("wider-regions-of-other-readers", "regions._only_reader", "len(readers) != 1", "not readers"),
    Mutant("identities-hide-their-neighbours", "builder.Builder._mapped", "if map_.is_identity", "if False"),
    Mutant("further-refusals-hide-wrong-ones", "engine._goes_without_saying", "item.further and", "True and"),
    Mutant(
        "shift-in-every-term",
        "fold_scales._of_term",
        "own if first else linear_part(own)",
        "own",
    ),
    Mutant("concat-scale-of-the-wrong-part", "fold_scales._of_channels", "        start += size\n", ""),
    Mutant(
        "orders-turned-round",
        "carry_permutations._Spread._reordered",
        "new = take(new, np.argsort(own))",
        "new = take(new, own)",
    ),
    Mutant(
        "factor-of-a-term-ignored",
        "collapse_sums._together",
        "maps.append(region.map if factor == 1.0 else scaled(region.map, factor))",
        "maps.append(region.map)",
    ),
    Mutant(
        "constants-in-every-slice",
        "split_concats._slices",
        "slices.append(linear_part(own) if slices else own)",
        "slices.append(own)",
    ),
    Mutant("slices-of-the-first-branch", "split_concats._slices", "        start += size\n", ""),
    Mutant(
        "factor-reaches-other-readers",
        "fold_product_scales._other_reader",
        "scaled.isdisjoint(strand.readers.views[view].channels.tolist())",
        "True",
    ),
    Mutant(
        "factor-squared",
        "fold_product_scales._is_squared",
        "product is not None and product.left.node is product.right.node",
        "False",
    ),
    Mutant(
        "strand-of-another-part",
        "channel_readers._part",
        "start = sum(sizes[: index % len(sizes)])",
        "start = sum(sizes[: (index + 1) % len(sizes)])",
    ),
    Mutant(
        "scale-of-a-head-dropped",
        "stack_heads._times",
        "map_ if factor == 1.0 else scaled(map_, factor)",
        "map_",
    ),
    Mutant(
        "bias-of-other-tokens",
        "biases.usable_bias",
        "if len(sources) > 1 or rows not in (1, shape[-1]):",
        "if False:",
    ),
    Mutant(
        "channels-of-heads-interleaved",
        "attending.attended",
        "(expr.heads, -1)), -3, -2)",
        "(-1, expr.heads)), -3, -2)",
    ),
    Mutant("softmax-over-any-axis", "recognition._unlike", "if dim != -1 and (", "if False and ("),
)


def copied(folder: Path) -> Path:
    """A copy of the source in `folder`."""
    for tree in TREES:
        if (ROOT / tree).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "weights", "data")
            shutil.copytree(ROOT / tree, folder / tree, ignore=skip, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


# What is likeliest to notice a mutant comes first: the tests stop at the first failure.
NEAREST = {
    "algebra": (
        "tests/test_serial.py",
        "tests/test_parallel.py",
        "tests/test_algebra_laws.py",
        "tests/test_form.py",
        "tests/test_vanishing.py",
    ),
    "layers": ("tests/test_border.py", "tests/test_form.py", "tests/test_arguments.py"),
    "graph": ("tests/test_sizes.py", "tests/test_lifting.py", "tests/test_unlisted_traps.py"),
    "state": ("tests/test_truth.py", "tests/test_unlisted_traps.py"),
    "tracing": ("tests/test_truth.py", "tests/test_net.py", "tests/test_questions.py", "tests/test_arguments.py"),
    "capture": ("tests/test_inplace.py", "tests/test_unlisted_traps.py", "tests/test_truth.py"),
    "lifting": ("tests/test_lifting.py", "tests/test_spellings.py", "tests/test_traps.py"),
    "emission": ("tests/test_sharing.py", "tests/test_form.py"),
    "attention": ("tests/passes", "tests/test_layout.py"),
    "passes": ("tests/passes",),
    "rewriting": ("tests/passes", "tests/test_alike.py", "tests/test_traps.py"),
    "verification": ("tests/test_comparison.py",),
    "pipeline": ("tests/test_comparison.py", "tests/test_truth.py"),
}


def suite_for(mutant: Mutant) -> tuple[str, ...]:
    """The tests, those first that are nearest to the mutant's room."""
    first = NEAREST.get(mutant.file().parent.name, ())
    return (*first, *(path for path in SUITE if path not in first))


_QUIETLY = (
    "-p", "no:cacheprovider", "-q", "--tb=no",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # plugins are imported by the parent already
)  # fmt: skip


def run_suite(root: Path, suite: Sequence[str], *options: str) -> tuple[int, str]:
    """Exit code and output of the fast part of the suite, in the tree at `root`.

    Runs in a fork: torch and the other libraries are imported once, our own packages anew each time.
    """
    sys.stdout.flush()
    output = root / "output.txt"
    child = os.fork()
    if child == 0:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(root)
        for name in [n for n in sys.modules if n.partition(".")[0] in TREES]:
            del sys.modules[name]
        sys.path[:] = [str(root), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        sys.dont_write_bytecode = True
        code = 4
        try:
            code = int(pytest.main([*_QUIETLY, *options, *suite]))
        except BaseException:  # it must not get out: the parent's `with` would be left in the child too
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output.read_text()


def failures(output: str) -> list[str]:
    """Tests named in pytest's summary."""
    return [line.split(" - ")[0].removeprefix("FAILED ") for line in output.splitlines() if line.startswith("FAILED ")]


def check(mutants: Sequence[Mutant]) -> int:
    """Run each mutant and print what noticed it; the number that went unnoticed."""
    with tempfile.TemporaryDirectory() as name:
        root = copied(Path(name))
        code, output = run_suite(root, SUITE)
        known = failures(output)
        if code not in (0, 1):
            raise SystemExit(f"the suite does not run without a mutant:\n{output}")
        for test in known:
            print(f"fails without a mutant, left out: {test}", flush=True)
        skip = [option for test in known for option in ("--deselect", test)]
        unnoticed = 0
        for mutant in mutants:
            problem = mutant.problem(root)
            if problem:
                print(f"STALE     {mutant.name}: {problem}", flush=True)
                unnoticed += 1
                continue
            file, started = mutant.file(root), time.perf_counter()
            original = file.read_text()
            mutant.apply(root)
            code, output = run_suite(root, suite_for(mutant), "-x", *skip)
            file.write_text(original)
            seconds, found = time.perf_counter() - started, failures(output)
            if code == 1 and found:
                print(f"noticed   {mutant.name:38} {seconds:5.1f} s  {found[0]}", flush=True)
            else:
                unnoticed += 1
                print(f"UNNOTICED {mutant.name:38} {seconds:5.1f} s  pytest exit code {code}", flush=True)
                print(output[-2000:] if code else "", flush=True)
    print(f"{len(mutants) - unnoticed} of {len(mutants)} mutants noticed")
    return unnoticed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="mutants to run (default: all)")
    parser.add_argument("--share", default="1/1", help="which part of the mutants, of how many: 1/2")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for mutant in MUTANTS:
            print(f"{mutant.name:38} {mutant.symbol}")
        return 0
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}; see --list")
    chosen = [m for m in MUTANTS if not arguments.names or m.name in arguments.names]
    part, parts = map(int, arguments.share.split("/"))
    return min(check(chosen[part - 1 :: parts]), 1)


if __name__ == "__main__":
    sys.exit(main())
