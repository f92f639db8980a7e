"""What is known of the shape of each value from structure alone: a partial shape.

A partial shape is a tuple with an int where a size is known and None where it is not, or None where
not even the rank is.  It comes from the layers (a Conv2d gives rank 4 and its channels), not from
running anything; `example_inputs` fill in what structure leaves open.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repfx.graph.constants import attribute
from repfx.graph.module_traversal import module_at
from repfx.layers import assign

Shape = tuple[int | None, ...] | None

_BATCH_NORM_RANK: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
_SAME = (
    nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ReLU,
    nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Tanh,
    nn.Softmax, nn.Mish, nn.Softplus, nn.Hardtanh,
)  # fmt: skip
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_PADS = (
    nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)  # fmt: skip
_PIXELWISE = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool3d)
_SAME_FUNCTIONS = {
    F.relu, F.gelu, F.silu, F.sigmoid, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu, F.tanh, F.softmax, F.dropout,
    F.batch_norm, F.layer_norm, F.group_norm, F.relu6, F.mish, F.softplus, F.hardtanh, F.normalize, torch.relu,
    torch.sigmoid, torch.tanh, torch.clamp, torch.exp, torch.sqrt, torch.rsqrt, torch.abs, torch.neg, torch.square,
    torch.log, torch.erf, operator.neg, torch.softmax, torch.batch_norm, torch.negative, torch.clone, operator.pos,
    assign,
}  # fmt: skip
_SAME_METHODS = {
    "contiguous", "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "clamp", "clamp_", "float", "half", "double", "to",
    "type_as", "softmax", "exp", "sqrt", "rsqrt", "abs", "neg", "square", "clone", "detach", "pow", "log", "mul_",
    "add_", "sub_", "div_", "hardtanh_",
}  # fmt: skip
_BINARY = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.subtract, torch.multiply, torch.divide,
    torch.true_divide, torch.lerp, torch.rsub, torch.addcmul, torch.addcdiv, torch.maximum, torch.minimum, operator.pow,
}  # fmt: skip
_BINARY_METHODS = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "lerp", "addcmul", "addcdiv"}


class Shapes:
    """Partial shapes of all values of a graph, computed on demand and remembered."""

    def __init__(
        self,
        root: nn.Module,
        constants: Callable[[fx.Node], torch.Size | None],
        ranks: Mapping[fx.Node, int] | None = None,
    ) -> None:
        self.root = root
        self._constant = constants
        self._ranks = ranks or {}  # of values whose rank structure does not give
        self._known: dict[fx.Node, Shape] = {}

    def set(self, node: fx.Node, shape: Shape) -> None:
        """Record a shape that is known otherwise."""
        self._known[node] = shape

    def of(self, node: fx.Node) -> Shape:
        """Partial shape of one value."""
        if node not in self._known:
            self._compute(node)
        return self._known[node]

    def rank(self, node: fx.Node) -> int | None:
        """Number of dimensions, if known."""
        shape = self.of(node)
        return None if shape is None else len(shape)

    def size(self, node: fx.Node, dim: int) -> int | None:
        """Size along one dimension, if known."""
        shape = self.of(node)
        if shape is None or not -len(shape) <= dim < len(shape):
            return None
        return shape[dim]

    def _compute(self, root: fx.Node) -> None:
        stack = [root]
        while stack:
            node = stack[-1]
            missing = [a for a in node.all_input_nodes if a not in self._known]
            if node in self._known:
                stack.pop()
            elif missing and node.op != "placeholder":
                stack.extend(missing)
            else:
                stack.pop()
                shape, rank = self._rule(node), self._ranks.get(node)
                self._known[node] = (None,) * rank if shape is None and rank is not None else shape

    def _rule(self, node: fx.Node) -> Shape:
        constant = self._constant(node)
        if constant is not None:
            return tuple(constant)
        match node.op:
            case "placeholder":
                return self._from_readers(node)
            case "call_module":
                return self._module(node, module_at(self.root, str(node.target)))
            case "call_function":
                return self._function(node, node.target)
            case "call_method":
                return self._method(node, str(node.target))
            case _:
                return None

    def _from_readers(self, node: fx.Node) -> Shape:
        """A model input has the rank and channels that its first convolution asks for."""
        for user in node.users:
            if self._keeps_channels(user, node):
                behind = self._from_readers(user)
                if behind is not None and self._pads_space_only(user, len(behind) - 2):
                    return (*behind[:2], *(None,) * (len(behind) - 2))
            if user.op == "call_module":
                module = module_at(self.root, str(user.target))
                if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and user.args[:1] == (node,):
                    return (None, module.in_channels, *(None,) * len(module.kernel_size))
                if type(module) in _BATCH_NORM_RANK:
                    rank = _BATCH_NORM_RANK[type(module)]
                    return (None, int(module.num_features), *(None,) * (rank - 2))  # type: ignore[arg-type]
            if user.op == "call_function" and user.target in _CONVOLUTIONS and user.args[:1] == (node,):
                weight, groups = _argument(user, 1, "weight", None), _argument(user, 6, "groups", 1)
                shape = self._constant(weight) if isinstance(weight, fx.Node) else None
                if shape is not None and isinstance(groups, int):
                    return (None, shape[1] * groups, *(None,) * (len(shape) - 2))
        for user in node.users:
            quarter = self._chunked(node, user)
            if quarter is not None:
                return quarter
        return None

    def _keeps_channels(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether a reader of `node` keeps its rank and channels: pads, pools, crops, what acts pixel by pixel."""
        source = user.args[0] if user.args else user.kwargs.get("input")
        if source is not node:
            return False
        if user.op == "call_module":
            return isinstance(module_at(self.root, str(user.target)), (*_PADS, *_POOLS, *_PIXELWISE))
        if user.op != "call_function":
            return False
        if user.target is operator.getitem:
            items = user.args[1]
            return (
                isinstance(items, tuple) and all(isinstance(i, slice) for i in items) and items[1:2] == (slice(None),)
            )
        return user.target in (F.pad, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.relu, F.gelu, F.silu, F.relu6)

    def _pads_space_only(self, user: fx.Node, axes: int) -> bool:
        pads = _argument(user, 1, "pad", ()) if user.target is F.pad else ()
        return isinstance(pads, tuple | list) and len(pads) <= 2 * axes

    def _chunked(self, node: fx.Node, user: fx.Node) -> Shape:
        """chunk(x, n, 1) whose first and last parts feed convolutions of q channels: x has n q."""
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        if name != "chunk" or _argument(user, 2, "dim", 0) != 1:
            return None
        count = _argument(user, 1, "chunks", None)
        sizes: dict[int, tuple[int, int]] = {}
        for part in user.users:
            if part.target is operator.getitem and isinstance(part.args[1], int):
                shape = self._from_readers(part)
                if shape is not None and isinstance(shape[1], int):
                    sizes[part.args[1]] = (shape[1], len(shape))
        if not isinstance(count, int) or count - 1 not in sizes or len({s for s, _ in sizes.values()}) != 1:
            return None
        (size, rank) = sizes[count - 1]
        if len(sizes) == 1:
            return None
        return (None, size * count, *(None,) * (rank - 2))

    def _module(self, node: fx.Node, module: nn.Module) -> Shape:
        source = node.args[0] if node.args else None
        given = self.of(source) if isinstance(source, fx.Node) else None
        match module:
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                return (None, module.out_channels, *_convolved(given, module))
            case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
                return (None, module.out_channels, *(None,) * len(module.kernel_size))
            case nn.Linear():
                return None if given is None else (*given[:-1], module.out_features)
            case nn.BatchNorm2d() | nn.BatchNorm3d():
                rank = 4 if isinstance(module, nn.BatchNorm2d) else 5
                return given or (None, module.num_features, *(None,) * (rank - 2))
            case nn.Flatten():
                return _flattened(given, module.start_dim, module.end_dim)
        if isinstance(module, _SAME):
            return given
        if isinstance(module, _POOLS):
            axes = _axes_in_name(module, _POOLS)
            return None if given is None else (*given[:-axes], *(None,) * axes)
        if isinstance(module, _ADAPTIVE):
            axes = _axes_in_name(module, _ADAPTIVE)
            out = module.output_size
            sizes = (out,) * axes if isinstance(out, int) or out is None else tuple(out)
            return None if given is None else (*given[:-axes], *sizes)
        if isinstance(module, (nn.Upsample, *_PADS)):
            return None if given is None else (*given[:2], *(None,) * (len(given) - 2))
        if isinstance(module, nn.PixelShuffle | nn.PixelUnshuffle) and given is not None and given[1] is not None:
            if isinstance(module, nn.PixelShuffle):
                return (given[0], given[1] // module.upscale_factor**2, None, None)
            return (given[0], given[1] * module.downscale_factor**2, None, None)
        return None

    def _function(self, node: fx.Node, target: Any) -> Shape:
        inputs = [self.of(a) for a in node.all_input_nodes]
        given = inputs[0] if inputs else None
        if target in _SAME_FUNCTIONS:
            return given
        if target in _BINARY:
            return self._broadcast(node)
        name = getattr(target, "__name__", "")
        if name in ("conv1d", "conv2d", "conv3d"):
            weight = _argument(node, 1, "weight", None)
            shape = self.of(weight) if isinstance(weight, fx.Node) else None
            return (None, shape[0] if shape else None, *(None,) * int(name[4]))
        if name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
            weight, groups = _argument(node, 1, "weight", None), _argument(node, 6, "groups", 1)
            shape = self.of(weight) if isinstance(weight, fx.Node) else None
            width = shape[1] if shape is not None and isinstance(groups, int) else None
            return (None, None if width is None else width * groups, *(None,) * int(name[-2]))
        if name in ("matmul", "mm", "addmm"):
            return self._product(node, 1 if name == "addmm" else 0)
        if name == "einsum":
            return self._einsum(node)
        if name == "linear":
            weight = _argument(node, 1, "weight", None)
            shape = self.of(weight) if isinstance(weight, fx.Node) else None
            return None if given is None or shape is None else (*given[:-1], shape[0])
        if name in (
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
            "max_pool2d",
            "max_pool2d_with_indices",
            "interpolate",
            "pad",
        ):
            return None if given is None else (*given[:2], *(None,) * (len(given) - 2))
        if name in ("boolean_dispatch", "_max_pool2d", "fn"):
            return None if given is None else (*given[:2], *(None,) * (len(given) - 2))
        if name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"):
            out, axes = _argument(node, 1, "output_size", None), int(name[-2])
            sizes = (out,) * axes if isinstance(out, int) else tuple(out) if isinstance(out, tuple | list) else ()
            known = [s if isinstance(s, int) else None for s in sizes or (None,) * axes]
            return None if given is None else (*given[:-axes], *(known * axes if len(known) == 1 else known))
        if name in (
            "flatten",
            "mean",
            "sum",
            "amax",
            "permute",
            "transpose",
            "cat",
            "concat",
            "stack",
            "index_select",
            "squeeze",
            "unsqueeze",
            "concatenate",
            "hstack",
            "flip",
            "roll",
            "narrow",
            "index_select",
            "unflatten",
            "matmul",
            "bmm",
        ):
            return self._rearranged(node, name)
        if target is operator.getitem:
            return self._getitem(node)
        return None

    def _product(self, node: fx.Node, first: int) -> Shape:
        """Rows by columns: one factor is a matrix, or both are of one rank and leading axes of size one broadcast."""
        names = (("mat1",), ("mat2",)) if first else (("input", "tensor1"), ("other", "mat2", "tensor2"))
        given = [next((node.kwargs[n] for n in own if n in node.kwargs), None) for own in names]
        operands = [node.args[first + i] if len(node.args) > first + i else given[i] for i in range(2)]
        left, right = (self.of(a) if isinstance(a, fx.Node) else None for a in operands)
        if left is None or right is None or len(left) < 2 or len(right) < 2:
            return None
        if len(right) == 2:
            return (*left[:-1], right[-1])
        if len(left) == 2:
            return (*right[:-2], left[-2], right[-1])
        if len(left) != len(right):
            return None
        lead = tuple(a if a not in (1, None) else b if b != 1 else a for a, b in zip(left[:-2], right[:-2]))
        return (*lead, left[-2], right[-1])

    def _einsum(self, node: fx.Node) -> Shape:
        equation, *operands = node.args
        if not isinstance(equation, str) or "->" not in equation or "." in equation:
            return None
        inputs, output = equation.replace(" ", "").split("->")
        sizes: dict[str, int] = {}
        for letters, operand in zip(inputs.split(","), operands):
            shape = self.of(operand) if isinstance(operand, fx.Node) else None
            sizes.update({a: s for a, s in zip(letters, shape or ()) if s is not None})
        return tuple(sizes.get(letter) for letter in output)

    def _method(self, node: fx.Node, name: str) -> Shape:
        given = self.of(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if name in _BINARY_METHODS:
            return self._broadcast(node)
        if name in _SAME_METHODS:
            return given
        if name in ("view", "reshape"):
            sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
            if len(sizes) == 1 and isinstance(sizes[0], fx.Node):
                return None  # a whole shape, or one number: the rank is not written here
            return tuple(s if isinstance(s, int) and s >= 0 else None for s in sizes)
        if name in ("matmul", "mm", "__matmul__"):
            return self._product(node, 0)
        return self._rearranged(node, name)

    def _rearranged(self, node: fx.Node, name: str) -> Shape:
        first = node.args[0] if node.args else node.kwargs.get("input")
        given = self.of(first) if isinstance(first, fx.Node) else None
        if name in ("cat", "concat", "concatenate", "hstack", "stack"):
            return self._joined(node, name)
        if name == "permute" and given is None:
            order = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
            return (None,) * len(order) or None
        if name in ("mean", "sum", "amax") and len(node.args) + len(node.kwargs) == 1:
            return ()
        if given is None:
            return None
        match name:
            case "matmul" | "bmm":
                return self._product(node, 0)
            case "flatten":
                start, end = _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
                return _flattened(given, start, end)
            case "mean" | "sum" | "amax":
                dims = _argument(node, 1, "dim", None)
                keep = _argument(node, 2, "keepdim", False)
                if isinstance(dims, int):
                    dims = (dims,)
                if not isinstance(dims, tuple | list):
                    return ()
                gone = {d % len(given) for d in dims}
                return tuple(1 if i in gone else s for i, s in enumerate(given) if keep or i not in gone)
            case "permute":
                dims = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
                return tuple(given[d] for d in dims)  # type: ignore[index]
            case "transpose":
                if len(node.args) != 3:
                    return None
                sizes = list(given)
                a, b = node.args[1], node.args[2]
                sizes[a], sizes[b] = sizes[b], sizes[a]  # type: ignore[index]
                return tuple(sizes)
            case "squeeze":
                dims = _argument(node, 1, "dim", None)
                squeezed = (dims,) if isinstance(dims, int) else dims
                if not isinstance(squeezed, tuple | list) or any(given[d] is None for d in squeezed):
                    return None
                gone = {d % len(given) for d in squeezed if given[d] == 1}
                return tuple(s for i, s in enumerate(given) if i not in gone)
            case "select":
                dim = _argument(node, 1, "dim", None)
                return tuple(s for i, s in enumerate(given) if i != dim % len(given)) if isinstance(dim, int) else None
            case "flip" | "roll":
                return given
            case "narrow" | "index_select":
                dim = _argument(node, 1, "dim", None)
                size = _argument(node, 3, "length", None)
                if name == "index_select":
                    index = _argument(node, 2, "index", None)
                    length = self._constant(index) if isinstance(index, fx.Node) else None
                    size = length[0] if length is not None and len(length) == 1 else None
                if not isinstance(dim, int) or not -len(given) <= dim < len(given):
                    return None
                place = dim % len(given)
                return (*given[:place], size if isinstance(size, int) else None, *given[place + 1 :])
            case "unflatten":
                dim, sizes = _argument(node, 1, "dim", None), _argument(node, 2, "sizes", None)
                if not isinstance(dim, int) or not isinstance(sizes, tuple | list):
                    return None
                place = dim % len(given)
                parts = tuple(s if isinstance(s, int) and s >= 0 else None for s in sizes)
                return (*given[:place], *parts, *given[place + 1 :])
            case "unsqueeze":
                dim = _argument(node, 1, "dim", 0)
                place = dim % (len(given) + 1)
                return (*given[:place], 1, *given[place:])
            case _:
                return None

    def _joined(self, node: fx.Node, name: str) -> Shape:
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = 1 if name == "hstack" else _argument(node, 1, "dim", node.kwargs.get("axis", 0))
        if not isinstance(parts, tuple | list) or not isinstance(dim, int):
            return None
        shapes = [self.of(p) for p in parts if isinstance(p, fx.Node)]
        known = next((s for s in shapes if s is not None), None)
        if known is None:
            return None
        if name == "stack":
            place = dim % (len(known) + 1)
            return (*known[:place], len(parts), *known[place:])
        if not -len(known) <= dim < len(known):
            return None
        place = dim % len(known)
        sizes = [None if s is None else s[place] for s in shapes]
        total = None if None in sizes else sum(s for s in sizes if s is not None)
        return (*known[:place], total, *known[place + 1 :])

    def _getitem(self, node: fx.Node) -> Shape:
        source, item = node.args
        if not isinstance(source, fx.Node):
            return None
        if isinstance(item, int):
            return self._part(source, item)
        given = self.of(source)
        if given is None or not isinstance(item, tuple | slice):
            return None
        items = item if isinstance(item, tuple) else (item,)
        if Ellipsis in items:
            place = items.index(Ellipsis)
            fill = len(given) - sum(i is not None for i in items) + 1
            items = (*items[:place], *(slice(None),) * fill, *items[place + 1 :])
        out: list[int | None] = []
        sizes = iter(given)
        for index in items:
            if index is None:
                out.append(1)
                continue
            size = next(sizes)
            if isinstance(index, slice):
                plain = all(v is None or isinstance(v, int) for v in (index.start, index.stop, index.step))
                whole = index == slice(None)
                out.append(size if whole else len(range(size)[index]) if size is not None and plain else None)
            elif isinstance(index, fx.Node | list):
                if sum(isinstance(i, fx.Node | list) for i in items) != 1:
                    return None
                length = self._length(index)
                if length is None:
                    return None
                out.append(length)
            elif not isinstance(index, int):
                return None
        return (*out, *sizes)

    def _length(self, index: fx.Node | list[object]) -> int | None:
        """Entries of an index along one axis; None for masks and for what has several axes."""
        if isinstance(index, fx.Node):
            shape = self._constant(index)
            tensor = attribute(self.root, str(index.target)) if index.op == "get_attr" else None
            integers = isinstance(tensor, Tensor) and tensor.dtype in (torch.int64, torch.int32, torch.int16)
            return shape[0] if integers and shape is not None and len(shape) == 1 else None
        return len(index) if all(type(i) is int for i in index) else None

    def _part(self, source: fx.Node, index: int) -> Shape:
        """One part of a chunk, split or unbind."""
        name = source.target if isinstance(source.target, str) else getattr(source.target, "__name__", "")
        first = source.args[0] if source.args else source.kwargs.get("input", source.kwargs.get("tensor"))
        given = self.of(first) if isinstance(first, fx.Node) else None
        if given is None or name not in (*SPLITS, "unbind"):
            return None
        dim = _argument(source, 1, "dim", 0) if name == "unbind" else split_dim(source, name)
        if not isinstance(dim, int) or not -len(given) <= dim < len(given):
            return None
        dim %= len(given)
        if name == "unbind":
            return (*given[:dim], *given[dim + 1 :])
        sizes = part_sizes(source, given[dim])
        size = sizes[index] if sizes is not None and -len(sizes) <= index < len(sizes) else None
        return (*given[:dim], size, *given[dim + 1 :])

    def _broadcast(self, node: fx.Node) -> Shape:
        shapes = [self.of(a) for a in node.args if isinstance(a, fx.Node)]
        if not shapes or any(s is None for s in shapes):
            # an unknown operand is taken to have the known one's shape only where both are values
            return None
        if all(s == shapes[0] for s in shapes):
            return shapes[0]
        rank = max(len(s) for s in shapes if s is not None)
        out: list[int | None] = []
        for i in range(-rank, 0):
            sizes = [s[i] for s in shapes if s is not None and -i <= len(s)]
            big = [s for s in sizes if s != 1]
            known = [s for s in big if s is not None]
            out.append(known[0] if known else (1 if not big else None))
        return tuple(out)


SPLITS = ("chunk", "split", "split_with_sizes", "tensor_split", "hsplit")
_AT_INDICES = ("indices_or_sections", "tensor_indices_or_sections", "indices", "sections")


def split_dim(node: fx.Node, name: str) -> Any:
    """The axis that one of `SPLITS` splits; hsplit, of a value with several axes, axis 1."""
    return 1 if name == "hsplit" else _argument(node, 2, "dim", 0)


def part_sizes(node: fx.Node, total: int | None) -> list[int] | None:
    """Sizes of the parts that a chunk or split makes, if known."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("tensor_split", "hsplit"):
        given = next((node.kwargs[key] for key in _AT_INDICES if key in node.kwargs), None)
        return _sizes_at(node.args[1] if len(node.args) > 1 else given, total)
    wish = _argument(node, 1, {"chunk": "chunks", "split": "split_size_or_sections"}.get(name, "sizes"), None)
    if wish is None:
        wish = node.kwargs.get("split_size", node.kwargs.get("split_sizes"))
    if isinstance(wish, tuple | list) and all(isinstance(s, int) for s in wish):
        return [int(s) for s in wish]
    if total is None or not isinstance(wish, int) or wish <= 0:
        return None
    size = -(-total // wish) if name == "chunk" else wish
    return [min(size, total - start) for start in range(0, total, size)]


def _convolved(given: Shape, module: Any) -> tuple[int | None, ...]:
    """Spatial sizes of a convolution's output, where those of its input are known."""
    axes = len(module.kernel_size)
    plain = type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    if given is None or len(given) != axes + 2 or isinstance(module.padding, str) or not plain:
        return (None,) * axes
    if given[2:] == (None,) * axes:
        return given[2:]
    rows = zip(given[2:], module.kernel_size, module.stride, module.padding, module.dilation)
    return tuple(None if h is None else (h + 2 * p - d * (k - 1) - 1) // s + 1 for h, k, s, p, d in rows)


def _sizes_at(wish: object, total: int | None) -> list[int] | None:
    """tensor_split: n nearly equal parts, the larger ones first, or parts that end at indices."""
    if total is None:
        return None
    if isinstance(wish, int) and wish > 0:
        return [total // wish + (i < total % wish) for i in range(wish)]
    if not isinstance(wish, tuple | list) or not all(isinstance(i, int) and 0 <= i <= total for i in wish):
        return None
    ends = [0, *(int(i) for i in wish), total]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    return sizes if all(size > 0 for size in sizes) else None


def _axes_in_name(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    """2 of AvgPool2d, also for its subclasses."""
    return next(int(kind.__name__[-2]) for kind in kinds if isinstance(module, kind))


def _flattened(given: Shape, start: int, end: int) -> Shape:
    if given is None:
        return None
    start, end = start % len(given), end % len(given)
    sizes = given[start : end + 1]
    product: int | None = 1
    for s in sizes:
        product = None if s is None or product is None else product * s
    return (*given[:start], product, *given[end + 1 :])


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)
