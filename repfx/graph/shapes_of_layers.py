"""Shapes of what convolutions, linears, poolings, paddings and resizings make."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from repfx.graph.module_traversal import module_at
from repfx.graph.shape_rules import KnownShapes, Shape, ShapeRule, same, shape_of, told


def _module(node: fx.Node, shapes: KnownShapes) -> Any:
    """The module that a node calls, or None."""
    return module_at(shapes.root, str(node.target)) if node.op == "call_module" else None


def convolution(axes: int) -> ShapeRule:
    """(B, O, ...): the number of output channels is the kernel's."""

    def rule(node: fx.Node, shapes: KnownShapes) -> Shape:
        module = _module(node, shapes)
        if module is not None:
            return (None, module.out_channels, *_convolved(same(node, shapes), module))
        weight = shape_of(told(node, shapes, 1, "weight"), shapes)
        return (None, weight[0] if weight else None, *(None,) * axes)

    return rule


def _convolved(given: Shape, module: Any) -> tuple[int | None, ...]:
    """Spatial sizes of a convolution's output, where those of its input are known."""
    axes = len(module.kernel_size)
    plain = type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    if given is None or len(given) != axes + 2 or isinstance(module.padding, str) or not plain:
        return (None,) * axes
    out: list[int | None] = []
    for size, k, s, p, d in zip(given[2:], module.kernel_size, module.stride, module.padding, module.dilation):
        out.append(None if size is None else (size + 2 * p - d * (k - 1) - 1) // s + 1)
    return tuple(out)


def transposed(axes: int) -> ShapeRule:
    """(B, O, ...), where a function's kernel is (C, O / groups, ...)."""

    def rule(node: fx.Node, shapes: KnownShapes) -> Shape:
        module = _module(node, shapes)
        if module is not None:
            return (None, module.out_channels, *(None,) * axes)
        weight, groups = shape_of(told(node, shapes, 1, "weight"), shapes), told(node, shapes, 6, "groups", 1)
        width = weight[1] if weight is not None and isinstance(groups, int) else None
        return (None, None if width is None else width * groups, *(None,) * axes)

    return rule


def linear(node: fx.Node, shapes: KnownShapes) -> Shape:
    """(..., O)."""
    given, module = same(node, shapes), _module(node, shapes)
    if given is None:
        return None
    if module is not None:
        return (*given[:-1], module.out_features)
    weight = shape_of(told(node, shapes, 1, "weight"), shapes)
    return None if weight is None else (*given[:-1], weight[0])


def batch_norm(node: fx.Node, shapes: KnownShapes) -> Shape:
    """As its argument; BatchNorm2d and BatchNorm3d tell how many axes that has, and its channels."""
    given, module = same(node, shapes), _module(node, shapes)
    axes = batch_norm_axes(module)
    if given or axes is None:
        return given
    return (None, module.num_features, *(None,) * axes)


def batch_norm_axes(module: object) -> int | None:
    """How many spatial axes a batch norm asks for; None where it takes several numbers of them."""
    return {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(module))  # type: ignore[arg-type]


def pooled(axes: int) -> ShapeRule:
    """The last axes get other sizes."""

    def rule(node: fx.Node, shapes: KnownShapes) -> Shape:
        given = same(node, shapes)
        return None if given is None else (*given[:-axes], *(None,) * axes)

    return rule


def adaptively_pooled(axes: int) -> ShapeRule:
    """The last axes get the sizes that are asked for."""

    def rule(node: fx.Node, shapes: KnownShapes) -> Shape:
        given, wish = same(node, shapes), told(node, shapes, 1, "output_size")
        if given is None:
            return None
        sizes = tuple(wish) if isinstance(wish, tuple | list) else (wish,)
        if len(sizes) == 1:
            sizes *= axes
        return (*given[:-axes], *(size if isinstance(size, int) else None for size in sizes))

    return rule


def resized(node: fx.Node, shapes: KnownShapes) -> Shape:
    """All axes but batch and channels get other sizes."""
    given = same(node, shapes)
    return None if given is None else (*given[:2], *(None,) * (len(given) - 2))


def padded_axes(node: fx.Node, shapes: KnownShapes) -> int | None:
    """How many of the last axes a padding may extend."""
    pads = told(node, shapes, 1, "padding" if node.op == "call_module" else "pad")
    return (len(pads) + 1) // 2 if isinstance(pads, tuple | list) else None


def padded(node: fx.Node, shapes: KnownShapes) -> Shape:
    """The last axes get other sizes, as many as there are pairs of paddings."""
    given, axes = same(node, shapes), padded_axes(node, shapes)
    if given is None:
        return None
    kept = 0 if axes is None else max(0, len(given) - axes)
    return (*given[:kept], *(None,) * (len(given) - kept))


def pixel_shuffled(node: fx.Node, shapes: KnownShapes) -> Shape:
    """(B, C r^2, H, W) to (B, C, r H, r W)."""
    given, factor = same(node, shapes), told(node, shapes, 1, "upscale_factor")
    if given is None or len(given) != 4 or given[1] is None or not isinstance(factor, int):
        return None
    return (given[0], given[1] // factor**2, None, None)


def pixel_unshuffled(node: fx.Node, shapes: KnownShapes) -> Shape:
    """(B, C, r H, r W) to (B, C r^2, H, W)."""
    given, factor = same(node, shapes), told(node, shapes, 1, "downscale_factor")
    if given is None or len(given) != 4 or given[1] is None or not isinstance(factor, int):
        return None
    return (given[0], given[1] * factor**2, None, None)
