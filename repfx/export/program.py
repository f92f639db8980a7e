"""What all exporters share: a module and an example input become a program of torch.export.

Owns the batch (free from 1 upwards, or the example's), the constants that depend on sizes alone, and
the measurement of a written file against the module it came from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from repfx.errors import UserError, first_line
from repfx.export.targets import Job, Option
from repfx.layers import BorderTerm

MEASURED_BATCHES = (1, 3)  # neither is the batch that a free-batch program was traced with
TRACED_BATCH = 2  # torch.export takes sizes 0 and 1 for constants
AGREEMENT = 2**12  # roundings; runtimes reorder sums of some thousand terms through some dozen layers


FIXED_BATCH = Option("fixed_batch", False, "a batch of one instead of any batch")
FOR_RUNTIMES = "recommended for this runtime, where enlarged kernels cost more time than they save"


class ExportError(UserError):
    """An exporter cannot express the module: not a mistake in the file names, and not in the weights."""


class FixedBorder(nn.Module):
    """A border term at one input size: its map, stored."""

    map: Tensor  # (O, H or 1, W or 1)

    def __init__(self, map_: Tensor) -> None:
        super().__init__()
        self.register_buffer("map", map_)

    def forward(self, inputs: object, outputs: object) -> Tensor:
        """The stored map, whatever the sizes."""
        return self.map


def export_program(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    dynamic_batch: bool = True,
    largest_batch: int | None = None,
) -> ExportedProgram:
    """Export `module` at the example's spatial sizes, its batch free (from 1) or the example's.

    Raises `ExportError` where torch.export cannot follow the module's code.
    """
    module = fix_borders(module.eval(), example_inputs)
    inputs = example_inputs
    shapes = None
    if dynamic_batch:
        inputs = tuple(with_batch(value, TRACED_BATCH) for value in example_inputs)
        shapes = tuple({0: Dim("batch", min=1, max=largest_batch)} for _ in inputs)
    try:
        with torch.no_grad():
            return torch.export.export(module, inputs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises whatever the module's own code meets
        remedy = " or export a fixed batch (--fixed-batch, dynamic_batch=False)" if dynamic_batch else ""
        raise ExportError(
            f"{type(module).__name__}: torch.export cannot follow its code: {first_line(error)}; "
            f"change the code it names{remedy}."
        ) from error


def fix_borders(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy in which each border term met at one size only is the stored map of that size."""
    if not any(isinstance(part, BorderTerm) for part in module.modules()):
        return module
    module = copy.deepcopy(module)
    for name, seen in _maps_of_borders(module, example_inputs).items():
        if seen and all(_same(value, seen[0]) for value in seen):
            module.set_submodule(name, FixedBorder(seen[0].detach().clone()))
    return module


def _maps_of_borders(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    """What each border term gives in one forward, each time that it is called."""
    borders = {name: part for name, part in module.named_modules() if isinstance(part, BorderTerm)}
    maps: dict[str, list[Tensor]] = {name: [] for name in borders}
    hooks = [part.register_forward_hook(_keep(maps[name])) for name, part in borders.items()]
    with torch.no_grad():
        module(*example_inputs)
    for hook in hooks:
        hook.remove()
    return maps


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def with_batch(value: Tensor, batch: int) -> Tensor:
    """`value` (B, ...) repeated or cut along its first axis to (batch, ...)."""
    repeats = -(-batch // value.shape[0])
    return value.repeat(repeats, *(1,) * (value.dim() - 1))[:batch].clone()


def measured_error(
    module: nn.Module,
    run: Callable[[tuple[Tensor, ...]], list[Tensor]],
    example_inputs: tuple[Tensor, ...],
    *,
    dynamic_batch: bool,
) -> float:
    """max |run(x) - module(x)| / max |module(x)| on normal noise, at every batch in `MEASURED_BATCHES`.

    Raises `ExportError` where that exceeds `AGREEMENT` roundings, or is not finite.
    """
    generator = torch.Generator().manual_seed(0)
    batches = MEASURED_BATCHES if dynamic_batch else (example_inputs[0].shape[0],)
    worst = 0.0
    for batch in batches:
        inputs = tuple(_noise_like(with_batch(value, batch), generator) for value in example_inputs)
        with torch.no_grad():
            relative = _relative_error(flat_outputs(module(*inputs)), run(inputs))
        worst = max(worst, relative) if math.isfinite(relative) else math.inf
    dtype = example_inputs[0].dtype
    bound = AGREEMENT * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    if worst > bound:
        raise ExportError(
            f"{type(module).__name__}: what was written differs from the module by {worst:.1e} relative "
            f"(bound {bound:.1e}), so it was discarded; please report the model."
        )
    return worst


def _noise_like(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(value.shape, generator=generator).to(value.dtype)


def _relative_error(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest of max |got - wanted| / max |wanted| over the outputs."""
    errors = []
    for expected, found in zip(wanted, got, strict=True):
        scale = float(expected.abs().max()) or 1.0
        errors.append(float((found.double() - expected.double()).abs().max()) / scale)
    return max(errors)


def sentence_of(job: Job, convolutions: int, checked: str, *, dynamic_batch: bool) -> str:
    """What was written, in one line: how many convolutions, for which inputs, and how that was `checked`."""
    batch, *size = job.inputs[0].shape
    taken = "any batch of" if dynamic_batch else f"batch {batch} of"
    return f"{convolutions} convolutions, {taken} {'x'.join(map(str, size))}; {checked}"


def port_names(stem: str, count: int) -> list[str]:
    """Names of inputs or outputs: `stem` alone, or `stem_0, stem_1, ...`."""
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def flat_outputs(value: object) -> list[Tensor]:
    """The tensors in a module's output, depth first, as every exporter orders them."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _keep(seen: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    return hook
