"""What type a traced value has, from what computes it.

`isinstance(x, Tensor)`, `type(n)`, `hasattr(out, "logits")`: a model's code asks, and the graph often tells.
Where it does not, the answer is None, which is a refusal and no guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from repfx.graph import is_shape, is_size, module_at
from repfx.layers import EMITTED, CustomFunction

Known = Callable[[fx.Node], type | None]

# What the methods and functions of torch return that do not return one tensor.  None: several things, or it depends.
# `tests/test_questions.py` holds this against torch's own schemas.
_BOOL = (
    "allclose", "equal", "is_complex", "is_conj", "is_contiguous", "is_distributed", "is_floating_point",
    "is_inference", "is_neg", "is_nonzero", "is_pinned", "is_same_size", "is_set_to", "is_shared", "is_signed",
    "is_coalesced", "can_cast", "is_tensor", "is_storage", "cudnn_is_acceptable", "is_vulkan_available",
    "__contains__",
)  # fmt: skip
_INT = (
    "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "storage_offset", "dense_dim",
    "sparse_dim", "data_ptr", "const_data_ptr", "q_per_channel_axis", "q_zero_point", "__len__", "__int__",
)  # fmt: skip
_TUPLE = (
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind", "unsafe_chunk",
    "unsafe_split", "unsafe_split_with_sizes", "dim_order", "split_copy", "split_with_sizes_copy", "unbind_copy",
)  # fmt: skip
_UNSURE = (
    "max", "min", "median", "nanmedian", "mode", "kthvalue", "topk", "sort", "aminmax", "cummax", "cummin", "frexp",
    "var_mean", "std_mean", "unique", "unique_consecutive", "where", "nonzero", "meshgrid", "broadcast_tensors",
    "gradient", "svd", "qr", "eig", "eigh", "symeig", "slogdet", "lstsq", "lu", "lu_unpack", "geqrf", "histogram",
    "histogramdd", "triangular_solve", "solve", "lobpcg", "pca_lowrank", "svd_lowrank", "inv_ex", "cholesky_ex",
    "solve_ex", "ldl_factor", "ldl_factor_ex", "lu_factor", "lu_factor_ex", "eigvals", "unravel_index",
    "atleast_1d", "atleast_2d", "atleast_3d", "align_tensors",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "quantized_lstm", "quantized_gru", "quantized_lstm_cell",
    "multi_head_attention_forward", "embedding_bag", "native_batch_norm", "native_layer_norm", "native_group_norm",
    "native_dropout", "batch_norm_stats", "batch_norm_update_stats", "batch_norm_gather_stats",
    "batch_norm_gather_stats_with_counts", "batch_norm_backward_reduce", "cudnn_batch_norm", "miopen_batch_norm",
    "miopen_ctc_loss", "miopen_rnn", "mkldnn_rnn_layer", "mkldnn_linear_backward_weights",
    "choose_qparams_optimized", "fbgemm_linear_quantize_weight", "dequantize", "quantize_per_tensor",
    "boolean_dispatch", "fn", "linear_cross_entropy",
    "item", "tolist", "numpy", "stride", "q_scale", "qscheme", "type", "storage", "storage_type", "untyped_storage",
    "typename", "register_hook", "register_post_accumulate_grad_hook", "backward", "retain_grad", "record_stream",
    "apply_", "map_", "map2_", "reinforce", "as_subclass", "module_load", "to_dlpack", "from_dlpack", "result_type",
    "promote_types", "broadcast_shapes", "wait", "fork", "cond", "while_loop", "vmap", "save", "load", "reduce",
    "set_rng_state", "linalg_polar",
    "__class__", "__reduce_ex__", "__deepcopy__", "__format__", "__repr__", "__float__", "__index__", "__complex__",
    "__array__", "__dlpack__", "__dlpack_device__",
)  # fmt: skip
_POOLS = {  # the position of return_indices, by name
    **{f"max_pool{n}d": 6 for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": 2 for n in (1, 2, 3)},
    **{f"fractional_max_pool{n}d": 4 for n in (2, 3)},
}
_RETURNED: dict[str, type | None] = {
    **dict.fromkeys(_BOOL, bool),
    **dict.fromkeys(_INT, int),
    **dict.fromkeys(_TUPLE, tuple),
    **dict.fromkeys(_UNSURE, None),
    **{f"{name}_with_indices": None for name in _POOLS},
}
ATTRIBUTES: dict[str, type] = {
    **dict.fromkeys(("T", "H", "mT", "mH", "data", "real", "imag"), Tensor),
    **dict.fromkeys(("ndim", "itemsize", "nbytes", "output_nr"), int),
    **dict.fromkeys(("requires_grad", "is_leaf", "retains_grad", "volatile"), bool),
    **{name: bool for name in dir(Tensor) if name.startswith("is_") and not callable(getattr(Tensor, name))},
    "dtype": torch.dtype,
    "device": torch.device,
    "layout": torch.layout,
    "shape": torch.Size,
}
_SIZE_SUMS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg)
_ONE_TENSOR = {  # where the modules, and subclasses of theirs, are that return one tensor
    f"torch.nn.modules.{name}"
    for name in (
        "conv", "linear", "batchnorm", "instancenorm", "normalization", "pooling", "padding", "dropout", "flatten",
        "fold", "pixelshuffle", "upsampling", "channelshuffle", "sparse", "activation",
    )
}  # fmt: skip


def kind(node: fx.Node, known: Known, root: nn.Module) -> type | None:
    """The type of a node's value, from what computes it and the types (`known`) of what that reads."""
    match node.op:
        case "get_attr":
            return Tensor
        case "call_module":
            return _of_module(module_at(root, str(node.target)))
        case "call_method":
            return _of_method(node, known)
        case "call_function" if node.target is getattr:
            return _of_attribute(node, known)
        case "call_function" if node.target is operator.getitem:
            return _of_item(node, known, root)
        case "call_function":
            return _of_function(node, known)
        case _:
            return None


def _of_module(module: nn.Module) -> type | None:
    if isinstance(module, CustomFunction):
        return Tensor if module.parts is None else tuple
    plain = any(base.__module__ in _ONE_TENSOR for base in type(module).__mro__) or isinstance(module, EMITTED)
    several = isinstance(module, nn.MultiheadAttention) or getattr(module, "return_indices", False)
    return Tensor if plain and not several else None


def _of_method(node: fx.Node, known: Known) -> type | None:
    owner, name = node.args[0], str(node.target)
    if not isinstance(owner, fx.Node) or known(owner) is not Tensor or not hasattr(Tensor, name):
        return None
    if name == "size":
        return torch.Size if is_shape(node) else int
    return _returned(node, name, known)


def _of_attribute(node: fx.Node, known: Known) -> type | None:
    owner, name = node.args[0], str(node.args[1])
    assert isinstance(owner, fx.Node)
    return ATTRIBUTES.get(name) if known(owner) is Tensor else None


def _of_item(node: fx.Node, known: Known, root: nn.Module) -> type | None:
    owner, index = node.args[0], node.args[1]
    assert isinstance(owner, fx.Node)
    of = known(owner)
    if of is Tensor:
        return Tensor
    if of is torch.Size:
        return torch.Size if isinstance(index, slice) else int
    if of is not tuple or not isinstance(index, int):
        return None
    split = _name(owner) in _TUPLE and _name(owner) != "dim_order"
    custom = owner.op == "call_module" and isinstance(module_at(root, str(owner.target)), CustomFunction)
    return Tensor if split or custom else None


def _of_function(node: fx.Node, known: Known) -> type | None:
    if is_size(node) and not any(isinstance(a, tuple | list) for a in node.args):
        kinds = {known(source) for source in node.all_input_nodes}
        plain = all(isinstance(a, int | fx.Node) for a in node.args)
        if kinds != {int} or not plain:
            return None
        return int if node.target in _SIZE_SUMS else float if node.target is operator.truediv else None
    name = _name(node)
    joined = node.target is operator.add and any(
        known(source) in (torch.Size, tuple) for source in node.all_input_nodes
    )
    if joined:
        return tuple
    if getattr(operator, name, None) is node.target or getattr(operator, f"{name}_", None) is node.target:
        return Tensor if any(known(source) is Tensor for source in node.all_input_nodes) else None
    ours = (getattr(node.target, "__module__", None) or "").split(".")[0] == "repfx"
    if node.target is torch.adaptive_max_pool1d:
        return None  # a tensor and its indices, always, unlike that of torch.nn.functional
    return _returned(node, name, known) if ours or id(node.target) in _TORCHS or name in _POOLS else None


_SPACES = (torch, torch.nn.functional, torch.fft, torch.linalg, torch.special)
_TORCHS = {id(getattr(space, name)) for space in _SPACES for name in dir(space)}  # a trace lends some of them a wrapper


def _returned(node: fx.Node, name: str, known: Known) -> type | None:
    """What a method or function of torch of this name returns."""
    full = name
    for space in ("special_", "linalg_", "fft_"):
        name = name.removeprefix(space)
    if name in ("max", "min", "median", "nanmedian"):
        alone = len(node.args) == 1 and not node.kwargs
        other = node.args[1] if len(node.args) == 2 and not node.kwargs else None
        elementwise = isinstance(other, fx.Node) and known(other) is Tensor
        return Tensor if alone or elementwise else None
    if name in _POOLS:
        with_indices = node.kwargs.get("return_indices", True in node.args[_POOLS[name] :])
        return Tensor if with_indices is False else None
    if name == "where":
        return Tensor if len(node.args) + len(node.kwargs) > 1 else None
    if name == "type":
        return Tensor if len(node.args) + len(node.kwargs) > 1 else None
    return _RETURNED.get(full, _RETURNED.get(name, Tensor))


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
