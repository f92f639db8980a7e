"""Mutation check: each rewrite is broken in turn, and the tests must notice.

    python -m tests.mutations                 # all mutants, a few seconds each
    python -m tests.mutations --list
    python -m tests.mutations bias-by-1-percent wrong-group

A mutant is one small change of the source (a sign, a flip, a pad by one, a bias by 1 %, a wrong group
index, a guard that always says yes) in a temporary copy of the tree.  The fast part of the suite runs
there until its first failure; it compiles with `verify=False`, so the compiler's own gate does not help.
Exit code 0: every mutant was noticed.  Tests that fail without any mutant are left out, and named.
`tests/test_mutations.py` checks in the ordinary suite that every mutant still applies, and that a bias
that is off by 1 % is noticed once per pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
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
    "tests/test_net.py",
)


@dataclass(frozen=True)
class Mutant:
    """One change: `old`, which occurs exactly once in `file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    def problem(self, root: Path = ROOT) -> str:
        """Why this mutant cannot be made, or ""."""
        count = (root / self.file).read_text().count(self.old)
        return "" if count == 1 else f"{self.file} holds {count} times: {self.old}"

    def apply(self, root: Path) -> None:
        """Change the copy at `root`."""
        path = root / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


MUTANTS = (
    # --- repfx/values.py
    Mutant(
        "kernel-flipped",
        "repfx/kernels.py",
        "outer[trailing(tap)]",
        "outer[trailing(n - 1 - t for t, n in zip(tap, k2))]",
    ),
    Mutant("outer-taps-not-spread", "repfx/kernels.py", "slice(t, t + (k - 1) * s + 1, s)", "slice(t, t + k)"),
    Mutant(
        "scale-not-multiplied",
        "repfx/kernels.py",
        "return _spread(_picked(inner.planes, reads) * scale, out.width)",
        "return _spread(_picked(inner.planes, reads), out.width)",
    ),
    Mutant(
        "dilation-not-written-out",
        "repfx/values.py",
        "slice(None, None, d) for d in dilation",
        "slice(0, k) for k in kernel.shape[lead:]",
    ),
    # --- repfx/serial.py
    Mutant(
        "pad-by-one",
        "repfx/serial.py",
        "before=tuple(b1 + s * b2 for b1, s, b2 in zip(inner.before, stride, outer.before)),",
        "before=tuple(b1 + s * b2 + (b2 > 0) for b1, s, b2 in zip(inner.before, stride, outer.before)),",
    ),
    Mutant(
        "frame-guard-before-dropped",
        "repfx/serial.py",
        "touches_before = outer.before[axis] > 0 and kernel - 1 - before >= stride",
        "touches_before = False",
    ),
    Mutant(
        "frame-guard-after-at-one-size-only",
        "repfx/serial.py",
        "first_outside = inner.extent[axis] - max(_remainders(",
        "first_outside = inner.extent[axis] - min(_remainders(",
    ),
    Mutant(
        "other-padding-modes-compose-freely",
        "repfx/serial.py",
        "        return _extended_otherwise(outer, inner)",
        "        return None",
    ),
    Mutant(
        "inner-bias-seen-through-the-mean",
        "repfx/serial.py",
        "kernel.sum(done, keepdim=True)",
        "kernel.mean(done, keepdim=True)",
    ),
    Mutant(
        "inner-bias-is-a-plain-bias",
        "repfx/serial.py",
        "free = [constant.free[axis] and not padded[axis] for axis in axes]",
        "free = [constant.free[axis] for axis in axes]",
    ),
    Mutant(
        "border-on-the-wrong-grid",
        "repfx/serial.py",
        "before[axis] = border.before[axis] * stride - tap",
        "before[axis] = border.before[axis] - tap",
    ),
    # --- spellings, transposed convolutions
    Mutant(
        "lerp-the-other-way",
        "repfx/lifting/arithmetic.py",
        "return Sum(((a, 1.0 - float(w)), (b, float(w))))",
        "return Sum(((a, float(w)), (b, 1.0 - float(w))))",
    ),
    Mutant(
        "matrix-read-by-rows",
        "repfx/lifting/contractions.py",
        "lambda: read().t(), (shape[1], shape[0]), None, 0, context)",
        "lambda: read().reshape(shape[1], shape[0]), (shape[1], shape[0]), None, 0, context)",
    ),
    Mutant(
        "addmm-forgets-beta",
        "repfx/lifting/contractions.py",
        "shift().reshape(-1) * beta",
        "shift().reshape(-1)",
    ),
    Mutant(
        "addcmul-forgets-its-value",
        "repfx/spelling.py",
        '{"alpha": value}',
        '{"alpha": 1}',
    ),
    Mutant(
        "scale-of-a-value-it-only-looks-through",
        "passes/fold_scales.py",
        "op.axes != map_.axes or op.source is not node:",
        "op.axes != map_.axes:",
    ),
    Mutant(
        "transposed-kernel-not-flipped",
        "repfx/makers.py",
        "reshape(outputs, inputs // groups, *taps).flip(flipped)",
        "reshape(outputs, inputs // groups, *taps)",
    ),
    Mutant(
        "output-padding-lost",
        "repfx/makers.py",
        "2 * b + more - k for b, more, k",
        "2 * b + 0 * more - k for b, more, k",
    ),
    Mutant(
        "shuffled-scale-repeated-in-blocks",
        "repfx/affine.py",
        "Values(v.planes.repeat_interleave(times, 0), v.bias.repeat_interleave(times, 0))",
        "Values(v.planes.repeat_interleave(times, 0), v.bias.repeat(times))",
    ),
    Mutant(
        "transposed-and-wound-around",
        "repfx/parallel.py",
        "if map_.padding_mode != ZEROS:",
        "if False and map_.padding_mode != ZEROS:",
    ),
    Mutant(
        "circular-of-any-size",
        "repfx/serial.py",
        "keeps_size = inner.stride[axis] == 1 and inner.extent[axis] == -1",
        "keeps_size = inner.stride[axis] == 1",
    ),
    Mutant(
        "plane-one-pixel-short",
        "repfx/serial.py",
        "length = min(max(0, least), most)",
        "length = min(max(0, least - 1), most)",
    ),
    Mutant(
        "border-window-on-a-short-plane",
        "repfx/serial.py",
        "first_outside < before + longer",
        "first_outside < before",
    ),
    Mutant(
        "shift-before-a-transposed-convolution",
        "repfx/serial.py",
        "if outer.is_zoomed and (inner.biased or inner.borders):",
        "if outer.is_zoomed and inner.borders:",
    ),
    # --- repfx/parallel.py
    Mutant(
        "planes-of-any-size-unite",
        "repfx/parallel.py",
        "groups.setdefault((border.free, border.longer), [])",
        "groups.setdefault((border.free, (0,) * len(border.free)), [])",
    ),
    Mutant(
        "different-zooms-add",
        "repfx/parallel.py",
        "if part.zoom != first.zoom:",
        "if False and part.zoom != first.zoom:",
    ),
    Mutant(
        "sum-sign",
        "repfx/parallel.py",
        "        into.add_(own)",
        "        into.sub_(own)",
    ),
    Mutant(
        "sum-forgets-biases",
        "repfx/parallel.py",
        "total([v.bias for v in values])",
        "values[0].bias",
    ),
    Mutant(
        "branch-one-tap-off",
        "repfx/parallel.py",
        "tuple(slice(b - p, b - p + k) for b, p, k in zip(before, part.before, part.kernel)) for part in parts",
        "tuple(slice(0, k) for b, p, k in zip(before, part.before, part.kernel)) for part in parts",
    ),
    Mutant("sizes-need-not-agree", "repfx/parallel.py", "if part.extent != first.extent:", "if False:"),
    Mutant("strides-need-not-agree", "repfx/parallel.py", "if part.stride != first.stride:", "if False:"),
    Mutant("padding-modes-mix", "repfx/parallel.py", "    if len(modes) > 1:", "    if False:"),
    Mutant(
        "broadcast-channels-added",
        "repfx/parallel.py",
        "    if len(counts) > 1:",
        "    if False:",
    ),
    # --- repfx/affine.py, repfx/makers.py
    Mutant(
        "slice-from-the-top",
        "repfx/affine.py",
        "taken(v.given, outputs, incidence.width),",
        "v.planes[: len(outputs), : incidence.width],",
    ),
    Mutant(
        "factor-misses-the-bias",
        "repfx/affine.py",
        "Values(planes, v.bias * factor,",
        "Values(planes, v.bias,",
    ),
    Mutant(
        "pool-ignores-its-divisor",
        "repfx/makers.py",
        "value = 1.0 / (divisor or prod(kernel))",
        "value = 1.0 / prod(kernel)",
    ),
    # --- repfx/form.py, repfx/emission.py, repfx/modules.py
    Mutant(
        "bias-by-1-percent",
        "repfx/emission.py",
        '_cast(bias, target, path, "bias")',
        '_cast(bias * 1.01, target, path, "bias")',
    ),
    Mutant(
        "weight-by-1-percent",
        "repfx/emission.py",
        '_cast(weight, target, path, "weight")',
        '_cast(weight * 1.01, target, path, "weight")',
    ),
    Mutant(
        "wrong-group",
        "repfx/emission.py",
        "local = np.where(rows < 0, -1, local % width)",
        "local = np.where(rows < 0, -1, (local + 1) % width)",
    ),
    Mutant(
        "wrong-permutation-direction", "repfx/emission.py", "else np.argsort(form.order)", "else np.asarray(form.order)"
    ),
    Mutant(
        "border-term-dropped",
        "repfx/modules.py",
        "            y = y + border(sizes, y.shape[2:])",
        "            y = y + 0 * border(sizes, y.shape[2:])",
    ),
    Mutant("border-one-pixel-large", "repfx/modules.py", "(places < size)", "(places <= size)"),
    Mutant(
        "border-as-large-as-the-input",
        "repfx/modules.py",
        "self.longer[axis] if self.longer else 0",
        "0 if self.longer else 0",
    ),
    Mutant("border-forgets-the-stride", "repfx/modules.py", "[:, None] * self.stride[axis]", "[:, None]"),
    Mutant(
        "border-map-kept-too-long",
        "repfx/modules.py",
        "if self._last is None or self._last[0] != key or not _holds(self._last[1], weight):",
        "if self._last is None:",
    ),
    # --- repfx/lifting
    Mutant(
        "norm-without-eps",
        "repfx/makers.py",
        "torch.rsqrt(variance().double() + eps)",
        "torch.rsqrt(variance().double())",
    ),
    Mutant(
        "norm-mean-sign",
        "repfx/makers.py",
        "shift = -mean().double() * scale",
        "shift = mean().double() * scale",
    ),
    Mutant(
        "batch-statistics-folded",
        "repfx/lifting/norms.py",
        "    if training is not False or not isinstance(eps, float | int):",
        "    if False:",
    ),
    Mutant(
        "same-padding-on-the-other-side",
        "repfx/lifting/convolutions.py",
        "return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)",
        "return tuple(t - t // 2 for t in total), tuple(t // 2 for t in total)",
    ),
    Mutant("clipped-pool-is-a-conv", "repfx/lifting/convolutions.py", "    if ceil:\n", "    if False:\n"),
    Mutant(
        "uncounted-padding-is-a-conv",
        "repfx/lifting/convolutions.py",
        "    if not count and any(pads):",
        "    if False:",
    ),
    Mutant(
        "minus-is-plus",
        "repfx/lifting/arithmetic.py",
        "_sub: Rule = lambda node, context: _sum(node, context, -1.0)",
        "_sub: Rule = lambda node, context: _sum(node, context, 1.0)",
    ),
    Mutant("mean-is-sum", "repfx/lifting/arithmetic.py", "weight = 1.0 / len(values) if mean else 1.0", "weight = 1.0"),
    Mutant(
        "clipped-padding-sums-to-one",
        "repfx/lifting/convolutions.py",
        "if divisor is not None or (count and any(pads)):",
        "if divisor is not None:",
    ),
    # --- repfx/lifting/resampling.py, repfx/absorbing.py
    Mutant(
        "one-pixel-by-the-example",
        "repfx/lifting/resampling.py",
        "    shape = context.structure.of(source)\n    return shape is not None and len(shape) > 2",
        "    shape = context.shapes.of(source)\n    return shape is not None and len(shape) > 2",
    ),
    Mutant(
        "mean-over-channels-is-a-resampling",
        "repfx/lifting/resampling.py",
        "if 1 not in gone and rank > 2:",
        "if rank > 2:",
    ),
    Mutant(
        "any-batch-is-the-batch",
        "repfx/lifting/resampling.py",
        "return any(value in same for value in batches(read[0], context.root, context.whole))",
        "return True",
    ),
    Mutant(
        "resampled-value-is-the-old-one",
        "repfx/building.py",
        "lambda n: value if n is op.source else n",
        "lambda n: n",
    ),
    Mutant(
        "readers-after-a-resampling-take-nothing",
        "repfx/absorbing.py",
        "merged = applied(outer, over(map_, seen))",
        "merged = outer if seen != axes else applied(outer, over(map_, seen))",
    ),
    Mutant(
        "views-that-name-channels-move",
        "repfx/ops.py",
        "return not self.pinned or map_.in_channels == map_.out_channels",
        "return True",
    ),
    Mutant("norm-keeps-its-scale-too", "repfx/building.py", "function, arguments = op.plain", "return node"),
    # --- repfx/regions.py, repfx/rewriting.py, repfx/constants.py
    Mutant(
        "factors-of-a-sum-ignored",
        "repfx/regions.py",
        "parts = [maps[t] if factor == 1.0 else scaled(maps[t], factor) for t, factor in terms]",
        "parts = [maps[t] for t, factor in terms]",
    ),
    Mutant("used-outside-ignored", "repfx/rewriting.py", "    if leak is not None:", "    if False:"),
    Mutant(
        "islands-looked-into",
        "repfx/lifting/__init__.py",
        "if str(node.target) in context.whole:",
        "if False:",
    ),
    # --- repfx/arguments.py, repfx/tracing.py, repfx/questions.py, repfx/capture.py
    Mutant(
        "arguments-not-checked",
        "repfx/modules.py",
        "if not nothing and not _matches(given[name], wanted):",
        "if False:",
    ),
    Mutant("sizes-not-checked", "repfx/modules.py", "if found != self.wanted:", "if False:"),
    Mutant("caller-may-pass-none", "repfx/arguments.py", "passed is not None and passed.gives(index, name)", "False"),
    # --- what a trace believes
    Mutant("one-world", "repfx/worlds.py", "_once(model, kept, _with_gradients(make), None)", "first"),
    Mutant(
        "no-other-autocast", "repfx/surroundings.py", "for device in _DEVICES if self.gradients", "for device in ()"
    ),
    Mutant("what-is-left-is-not-looked-at", "repfx/worlds.py", "if not changed and not kept", "if True or not kept"),
    Mutant("draws-unseen", "repfx/worlds.py", "kept.drew() or not same_generators(before, generators())", "False"),
    Mutant(
        "seeds-unseen",
        "repfx/surroundings.py",
        "if draws(node) and not same_generators",
        "if False and not same_generators",
    ),
    Mutant(
        "eager-draws-unseen", "repfx/surroundings.py", "if torch.Tag.nondeterministic_seeded in func.tags:", "if False:"
    ),
    Mutant("writes-outside-unseen", "repfx/surroundings.py", "_memory(value) not in self._made:", "False:"),
    Mutant("weights-read-past-the-trace", "repfx/surroundings.py", "_memory(t) in self._held for t", "False for t"),
    Mutant(
        "values-left-in-caches", "repfx/worlds.py", "kept_by_others = take_back(tracer.made)", "kept_by_others = []"
    ),
    Mutant(
        "caches-without-a-size",
        "repfx/state.py",
        "and name in _SIZES:\n            return True",
        "and name in ():\n            return True",
    ),
    Mutant(
        "shared-variables-not-put-back",
        "repfx/reach.py",
        "is not value and value is not _MISSING:",
        "is not value and False:",
    ),
    Mutant(
        "unknown-is-readable",
        "repfx/unread.py",
        "for table, key, _, stand_in in self._hidden:",
        "for table, key, _, stand_in in []:",
    ),
    Mutant("changes-islands-read-unseen", "repfx/unread.py", "return self._read[path].differs()", "return False"),
    Mutant("altered-layers-are-leaves", "repfx/tracing.py", "return not altered and not", "return not"),
    Mutant(
        "lists-given-to-islands", "repfx/unread.py", "    if not written.containers:\n        return\n", "    return\n"
    ),
    Mutant(
        "none-of-islands-unseen",
        "repfx/tracing.py",
        "if unread and may_return_none(m)",
        "if False and may_return_none(m)",
    ),
    Mutant(
        "copies-reach-the-original",
        "repfx/state.py",
        "_rebound(memo.get(id(one), one), memo) for one in held",
        "_rebound(one, memo) for one in held",
    ),
    Mutant(
        "torchs-hooks-by-name",
        "repfx/capture.py",
        "type(hook) in NORMALISING",
        "type(hook).__name__ in ('WeightNorm', 'SpectralNorm')",
    ),
    Mutant("parts-of-itself-handed-on", "repfx/islands.py", "if any(_hands_itself_on(function)", "if any(False"),
    Mutant(
        "dead-calls-of-islands",
        "repfx/dead.py",
        '("aliased", "overwrites", "unread", "guard")',
        '("aliased", "overwrites", "guard")',
    ),
    Mutant("dead-draws", "repfx/dead.py", "or draws(node)\n", "\n"),
    Mutant(
        "masks-joined-in-place",
        "repfx/inplace.py",
        'return first if name in _OVERWRITING or name == "setitem" else None',
        "return first",
    ),
    Mutant(
        "initialisers-write-nothing", "repfx/inplace.py", '_FIRST = ("input", "tensor", "self")', '_FIRST = ("input",)'
    ),
    Mutant(
        "lists-written-unseen",
        "repfx/inplace.py",
        "return [value for value in first if isinstance(value, fx.Node)]",
        "return []",
    ),
    Mutant(
        "later-views-only", "repfx/inplace.py", "if position[m] < position[node]]", "if position[m] > position[node]]"
    ),
    Mutant("indices-of-a-pool", "repfx/questions.py", "if node.target is torch.adaptive_max_pool1d:", "if False:"),
    Mutant(
        "identity-of-a-dtype",
        "repfx/traced.py",
        "if name in _OBJECTS and compared_by_identity",
        "if False and compared_by_identity",
    ),
    Mutant(
        "infinities-skipped",
        "repfx/equivalence.py",
        "unlike = odd & ~same & (usual if ours else True)",
        "unlike = odd & False",
    ),
    Mutant("nothing-is-equal", "repfx/report.py", "return self.tensors > 0 and", "return"),
    Mutant("mismatches-returned", "repfx/whole.py", "        if not equivalence.equal:", "        if False:"),
    Mutant(
        "detach-is-nothing",
        "repfx/lifting/rearranging.py",
        '("contiguous", "clone")',
        '("contiguous", "clone", "detach")',
    ),
    Mutant("sharing-forgotten", "repfx/sharing.py", "                found[node] = same", "                pass"),
    Mutant(
        "stored-twice", "repfx/compilation.py", "if after.parameters <= done.before.parameters or not more:", "if True:"
    ),
    Mutant("caught-errors-are-passed", "repfx/worlds.py", "if tracer.refusal is not None:", "if False:"),
    Mutant(
        "checks-in-a-try-are-passed",
        "repfx/introspection.py",
        "return any(_may_catch(outer) for",
        "return any(False for",
    ),
    Mutant("types-are-guessed", "repfx/questions.py", "Tensor if plain and not several else None", "Tensor"),
    # --- what reading a network means: rearranging, reshaping, padding, memory, state
    Mutant(
        "part-starts-one-early",
        "repfx/lifting/rearranging.py",
        "    start = sum(sizes[:index])\n",
        "    start = max(0, sum(sizes[:index]) - 1)\n",
    ),
    Mutant(
        "shuffle-of-the-other-group-count",
        "repfx/lifting/rearranging.py",
        "np.arange(total).reshape(groups, -1).T.reshape(-1)",
        "np.arange(total).reshape(-1, groups).T.reshape(-1)",
    ),
    Mutant(
        "flip-rolls-by-one",
        "repfx/lifting/rearranging.py",
        "np.arange(total)[::-1].copy()",
        "np.roll(np.arange(total)[::-1], 1)",
    ),
    Mutant(
        "crop-by-one",
        "repfx/lifting/rearranging.py",
        "extents.append((stop or 0) - start - 1)",
        "extents.append((stop or 0) - start)",
    ),
    Mutant(
        "example-sizes-are-facts",
        "repfx/lifting/rearranging.py",
        "    if not given and context.sure is not None and context.sure.size(source, dim) != total:",
        "    if False:",
    ),
    Mutant(
        "stack-not-interleaved",
        "repfx/lifting/reshaping.py",
        "table if dim == 1 else table.T",
        "table if dim == 2 else table.T",
    ),
    Mutant(
        "reshape-to-any-size",
        "repfx/lifting/reshaping.py",
        "    return known_size(sizes[1], context) != -1 and _forced(spatial, first, context)",
        "    return True",
    ),
    Mutant("frame-of-any-sides", "repfx/lifting/assigning.py", "    return found == wanted", "    return bool(found)"),
    Mutant(
        "pad-value-inside-too",
        "repfx/makers.py",
        "(-bias.reshape(channels, *(1,) * axes),)",
        "(0 * bias.reshape(channels, *(1,) * axes),)",
    ),
    Mutant(
        "pad-sides-swapped",
        "repfx/lifting/convolutions.py",
        "    before = tuple(reversed(numbers[0::2]))\n    after = tuple(reversed(numbers[1::2]))",
        "    before = tuple(reversed(numbers[1::2]))\n    after = tuple(reversed(numbers[0::2]))",
    ),
    Mutant(
        "one-pixel-pool-is-nothing",
        "repfx/lifting/convolutions.py",
        "    if one_pixel and divisor in (None, 1):",
        "    if one_pixel:",
    ),
    Mutant("dtypes-mix", "repfx/lifting/__init__.py", "    if foreign is not None:", "    if False:"),
    Mutant(
        "bounds-are-one-number",
        "repfx/lifting/arithmetic.py",
        "    if not isinstance(source, fx.Node) or len(node.all_input_nodes) > 1:",
        "    if not isinstance(source, fx.Node):",
    ),
    Mutant(
        "instance-norm-weights-ignored",
        "repfx/lifting/norms.py",
        "same = module.weight is None and isinstance(source, fx.Node)",
        "same = isinstance(source, fx.Node)",
    ),
    Mutant(
        "lasting-memory-overwritten-freely",
        "repfx/inplace.py",
        'kept = any(m.op in ("placeholder", "get_attr") for m in family)',
        "kept = False",
    ),
    Mutant("views-share-no-memory", "repfx/inplace.py", "    return _name(node) in _VIEWS\n", "    return False\n"),
    Mutant("getattr-views-share-no-memory", "repfx/inplace.py", "return node.args[1] not in _FACTS", "return False"),
    Mutant("written-constants-folded", "repfx/constants.py", 'return not node.meta.get("aliased")', "return True"),
    Mutant("rounded-weights-in-float64", "repfx/constants.py", "jumps = self._jumps(node)", "jumps = False"),
    Mutant(
        "islands-overwrite-nothing",
        "repfx/rewriting.py",
        'return any(first < call < last for call in value.meta.get("overwriters", ()))',
        "return False",
    ),
    Mutant(
        "clones-protect-nothing",
        "repfx/rewriting.py",
        'any(node.meta.get("overwriters") for node in interior)',
        "False",
    ),
    Mutant(
        "noise-is-a-constant",
        "repfx/surroundings.py",
        "        if torch.Tag.nondeterministic_seeded in func.tags:",
        "        if False:",
    ),
    Mutant("attributes-stay-written", "repfx/state.py", "        if not self.touched():\n", "        if True:\n"),
    Mutant(
        "parameters-by-their-old-names",
        "repfx/recording.py",
        "if name is None or _registered(self.root, name) is not tensor:",
        "if name is None:",
    ),
    Mutant("modes-unseen", "repfx/surroundings.py", "        if current_modes() != self._modes:", "        if False:"),
    Mutant("state-unseen", "repfx/worlds.py", "if not changed and not kept.changed_outside():", "if True:"),
    Mutant("keywords-of-numpy-unseen", "repfx/keywords.py", "not _NAMES.keys().isdisjoint(node.kwargs)", "False"),
    # --- repfx/alike.py, repfx/repeating.py
    Mutant("given-facts-unseen", "repfx/alike.py", "same.setdefault(facts, [])", "same.setdefault((), [])"),
    Mutant("escapes-unseen", "repfx/alike.py", "escaping.tobytes())", "b'')"),
    Mutant("index-numbers-unseen", "repfx/alike.py", "or not value.is_floating_point():", "or False:"),
    Mutant("hooks-unseen-in-blocks", "repfx/alike.py", "any(getattr(module, name) for name in _HOOKS)", "False"),
    Mutant("repeats-the-first-weights", "repfx/repeating.py", "self._other(origin.node)\n", "origin.node\n"),
    Mutant("repeats-own-numbers", "repfx/repeating.py", "if top.own:", "if False:"),
    Mutant(
        "blocks-decide-by-others",
        "repfx/rewriting.py",
        "return any(home.get(other) != home.get(node) for other in looked_at)",
        "return False",
    ),
    Mutant("own-calls-unseen", "repfx/tracing.py", "        if has_own_call(m):", "        if False:"),
    Mutant(
        "inner-methods-unseen", "repfx/tracing.py", '("forward", "_conv_forward", "_output_padding")', '("forward",)'
    ),
    Mutant("written-containers-unseen", "repfx/state.py", "or _holds(held[path], written)", "or False"),
    Mutant("rebuilt-parts-unseen", "repfx/worlds.py", "    if rebuilt:\n", "    if False:\n"),
    # --- passes
    Mutant("generated-weights-stay", "passes/fold_weights.py", "not generates_weight(lifted, node)", "True"),
    Mutant("frames-are-free", "repfx/cost.py", "_FRAME = Fraction(9, 10)", "_FRAME = Fraction(1)"),
    Mutant("scales-are-noops", "passes/drop_noops.py", "and map_.is_identity:", "and map_.is_pointwise:"),
    Mutant(
        "parts-in-the-other-order",
        "repfx/regions.py",
        "joined = concat([maps[p] for p in nodes])",
        "joined = concat([maps[p] for p in reversed(nodes)])",
    ),
    Mutant(
        "shift-of-a-sum-negated",
        "repfx/regions.py",
        "lambda: torch.tensor(shift, dtype=torch.float64)",
        "lambda: torch.tensor(-shift, dtype=torch.float64)",
    ),
    Mutant(
        "strided-operands-stay",
        "repfx/layout.py",
        "        return None if dims is None else dims[axis] - len(dims)\n",
        "        return axis\n",
    ),
    Mutant(
        "example-widths-are-facts",
        "repfx/graph.py",
        "            return sure.size(first, axis)\n",
        "            return self.context.shapes.size(first, axis)\n",
    ),
    Mutant(
        "siblings-sliced-from-the-top",
        "passes/merge_siblings.py",
        "        start += map_.out_channels\n",
        "",
    ),
    Mutant(
        "orders-of-any-axis",
        "passes/carry_permutations.py",
        "        return (op.axes != 0) == self.first",
        "        return True",
    ),
    Mutant(
        "heads-of-half-weight",
        "passes/average_heads.py",
        "((node, Apply(region.map, source)),)",
        "((node, Apply(__import__('repfx.affine').affine.scaled(region.map, 0.5), source)),)",
    ),
    Mutant(
        "chains-misread-their-input",
        "passes/collapse_chains.py",
        "Apply(region.map, inner)",
        "Apply(region.map, first)",
    ),
    Mutant(
        "concats-lose-their-constants",
        "passes/collapse_concats.py",
        "Apply(region.map, source)",
        "Apply(__import__('repfx.affine').affine.linear_part(region.map), source)",
    ),
    Mutant(
        "shift-in-every-term",
        "passes/fold_scales.py",
        "else linear_part(scaled(map_, factor))",
        "else scaled(map_, factor)",
    ),
    Mutant("concat-scale-of-the-wrong-part", "passes/fold_scales.py", "                start += size\n", ""),
    Mutant(
        "orders-turned-round",
        "passes/carry_permutations.py",
        "new = take(new, np.argsort(own))",
        "new = take(new, own)",
    ),
    Mutant(
        "factor-of-a-term-ignored",
        "passes/collapse_sums.py",
        "maps.append(region.map if factor == 1.0 else scaled(region.map, factor))",
        "maps.append(region.map)",
    ),
    Mutant(
        "constants-in-every-slice",
        "passes/split_concats.py",
        "slices.append(linear_part(own) if slices else own)",
        "slices.append(own)",
    ),
    Mutant("slices-of-the-first-branch", "passes/split_concats.py", "        start += size\n", ""),
    Mutant(
        "factor-reaches-other-readers",
        "passes/fold_product_scales.py",
        "scaled.isdisjoint(found.views[view].channels.tolist())",
        "True",
    ),
    Mutant(
        "factor-squared",
        "passes/fold_product_scales.py",
        "if product is not None and product.left.node is product.right.node:",
        "if False:",
    ),
    Mutant(
        "strand-of-another-part",
        "repfx/strands.py",
        "start = sum(sizes[: index % len(sizes)])",
        "start = sum(sizes[: (index + 1) % len(sizes)])",
    ),
    Mutant(
        "scale-of-a-head-dropped",
        "passes/fuse_attention.py",
        "maps[i] = own if factor != 1.0 else maps[i]",
        "own = maps[i]",
    ),
    Mutant(
        "bias-of-other-tokens",
        "passes/fuse_attention.py",
        "if len(sources) > 1 or rows not in (1, shape[-1]):",
        "if False:",
    ),
    Mutant(
        "channels-of-heads-interleaved",
        "repfx/attending.py",
        "(expr.heads, -1)), -3, -2)",
        "(-1, expr.heads)), -3, -2)",
    ),
    Mutant("softmax-over-any-axis", "repfx/attention.py", "if dim != -1 and (", "if False and ("),
)


def copied(folder: Path) -> Path:
    """A copy of the source in `folder`."""
    for tree in TREES:
        if (ROOT / tree).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "weights", "data")
            shutil.copytree(ROOT / tree, folder / tree, ignore=skip, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_suite(root: Path, *options: str) -> tuple[int, str]:
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
        code = pytest.main(["-p", "no:cacheprovider", "-q", "--tb=no", *options, *SUITE])
        sys.stdout.flush()
        os._exit(int(code))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output.read_text()


def failures(output: str) -> list[str]:
    """Tests named in pytest's summary."""
    return [line.split(" - ")[0].removeprefix("FAILED ") for line in output.splitlines() if line.startswith("FAILED ")]


def check(mutants: Sequence[Mutant]) -> int:
    """Run each mutant and print what noticed it; the number that went unnoticed."""
    with tempfile.TemporaryDirectory() as name:
        root = copied(Path(name))
        code, output = run_suite(root)
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
            original, started = (root / mutant.file).read_text(), time.perf_counter()
            mutant.apply(root)
            code, output = run_suite(root, "-x", *skip)
            (root / mutant.file).write_text(original)
            seconds, found = time.perf_counter() - started, failures(output)
            if code == 1 and found:
                print(f"noticed   {mutant.name:38} {seconds:5.1f} s  {found[0]}", flush=True)
            else:
                unnoticed += 1
                print(f"UNNOTICED {mutant.name:38} {seconds:5.1f} s  pytest exit code {code}", flush=True)
    print(f"{len(mutants) - unnoticed} of {len(mutants)} mutants noticed")
    return unnoticed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="mutants to run (default: all)")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for mutant in MUTANTS:
            print(f"{mutant.name:38} {mutant.file}")
        return 0
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}; see --list")
    chosen = [m for m in MUTANTS if not arguments.names or m.name in arguments.names]
    return min(check(chosen), 1)


if __name__ == "__main__":
    sys.exit(main())
