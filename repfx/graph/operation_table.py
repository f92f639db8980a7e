"""The table of operations, row by row: the one place where it is written what an operation of torch's is.

Rows with the same facts stand together.  In a group, names are apart by blanks; `a=b` are two names of one
operation.  A module of torch.nn that is called like its function (`nn.LeakyReLU`, `leaky_relu`) is found by that.
`tests/test_operations.py` holds the facts against what torch computes, and lists what is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from repfx.graph import shapes_of_arithmetic as arithmetic
from repfx.graph import shapes_of_layers as layers
from repfx.graph import shapes_of_views as views
from repfx.graph.kinds import Draws, Keeps, OpKind, Shares
from repfx.graph.module_traversal import module_at
from repfx.graph.nodes import name_of
from repfx.graph.operations import Operations, OpInfo
from repfx.graph.shape_rules import same
from repfx.layers import EXTENDED, BorderTerm, ChannelOrder, ChannelSlice, ScaleShift, assign

_MODULES = {name.lower(): found for name, found in vars(nn).items() if isinstance(found, type)}
_AXES = (1, 2, 3)


def _group(names: str, **facts: Any) -> Iterator[OpInfo]:
    """One operation for each word of `names`, all with these facts."""
    for word in names.split():
        own = tuple(word.split("="))
        found = (_MODULES.get(name.replace("_", "")) for name in own)
        modules = tuple(dict.fromkeys(module for module in found if module is not None))
        yield OpInfo(own, **{"modules": modules, **facts})


def _over_axes(name: str, **facts: Any) -> Iterator[OpInfo]:
    """One operation over one, two and three spatial axes; facts that are rules are made for each number of them."""
    for axes in _AXES:
        shape = facts["shape"](axes)
        yield from _group(name.format(axes), **{**facts, "axes": axes, "shape": shape})


def _layers() -> Iterator[OpInfo]:
    for axes in _AXES:
        conv, extended = f"conv{axes}d", f"extended_conv{axes}d"
        of_conv: dict[str, Any] = {
            "kind": OpKind.CONVOLUTION,
            "keeps": Keeps.BATCH,
            "axes": axes,
            "shape": layers.convolution(axes),
        }
        yield from _group(conv, **of_conv)
        yield OpInfo((extended,), modules=(EXTENDED[axes],), **{**of_conv, "keeps": Keeps.NOTHING})
    yield from _group("convolution _convolution mkldnn_convolution cudnn_convolution", kind=OpKind.CONVOLUTION)
    yield from _over_axes("conv_transpose{}d", kind=OpKind.TRANSPOSED, keeps=Keeps.BATCH, shape=layers.transposed)
    yield from _group("linear=mkldnn_linear", kind=OpKind.LINEAR, keeps=Keeps.BATCH, shape=layers.linear)
    yield OpInfo(
        ("batch_norm", "_batch_norm_no_update"),
        OpKind.BATCH_NORM,
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        keeps=Keeps.SHAPE,
        shape=layers.batch_norm,
    )
    yield from _group(
        "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm "
        "miopen_batch_norm",
        kind=OpKind.BATCH_NORM,
        returns=None,
    )
    of_norm: dict[str, Any] = {"kind": OpKind.NORM, "keeps": Keeps.SHAPE, "shape": same}
    yield from _group("layer_norm group_norm rms_norm local_response_norm", **of_norm)
    yield OpInfo(("instance_norm",), modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), **of_norm)
    yield from _group("native_layer_norm native_group_norm", kind=OpKind.NORM, returns=None)
    yield from _group("normalize", keeps=Keeps.SHAPE, shape=same)
    yield OpInfo(("border_term",), OpKind.BORDER_TERM, (BorderTerm,))
    yield OpInfo(("scale_shift",), OpKind.SCALE_SHIFT, (ScaleShift,), keeps=Keeps.SHAPE, shape=same)
    yield OpInfo(("channel_order",), OpKind.PERMUTATION, (ChannelOrder,))
    yield OpInfo(("channel_slice",), OpKind.ITEM, (ChannelSlice,), shares=Shares.FIRST)


def _poolings() -> Iterator[OpInfo]:
    facts: dict[str, Any] = {"kind": OpKind.POOLING, "keeps": Keeps.CHANNELS, "channelwise": True}
    for name in ("avg_pool{0}d", "max_pool{0}d=_max_pool{0}d", "lp_pool{0}d"):
        yield from _over_axes(name, **facts, shape=layers.pooled)
    for name in ("adaptive_avg_pool{}d", "adaptive_max_pool{0}d=_adaptive_max_pool{0}d"):
        yield from _over_axes(name, **facts, shape=layers.adaptively_pooled)
    with_indices = " ".join(f"max_pool{n}d_with_indices adaptive_max_pool{n}d_with_indices" for n in _AXES)
    yield from _group(with_indices, kind=OpKind.POOLING, returns=None)
    yield from _group("fractional_max_pool2d fractional_max_pool3d", kind=OpKind.POOLING, draws=Draws.ALWAYS)
    yield from _group(
        "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices",
        kind=OpKind.POOLING,
        draws=Draws.ALWAYS,
        returns=None,
    )
    pads = [f"{way}Pad{n}d" for n in _AXES for way in ("Constant", "Zero", "Reflection", "Replication", "Circular")]
    yield OpInfo(("pad",), OpKind.PADDING, tuple(getattr(nn, name) for name in pads), shape=layers.padded)
    yield OpInfo(("assign",), OpKind.PADDING, functions=(assign,), keeps=Keeps.SHAPE, shape=same)
    yield OpInfo(
        ("interpolate", "upsample"),
        OpKind.RESIZING,
        (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d),
        keeps=Keeps.CHANNELS,
        shape=layers.resized,
    )
    yield from _group("pixel_shuffle", keeps=Keeps.BATCH, shape=layers.pixel_shuffled)
    yield from _group("pixel_unshuffle", keeps=Keeps.BATCH, shape=layers.pixel_unshuffled)
    yield from _group("channel_shuffle=native_channel_shuffle", keeps=Keeps.SHAPE, shape=same)


def _elementwise() -> Iterator[OpInfo]:
    facts: dict[str, Any] = {"elementwise": True, "keeps": Keeps.SHAPE, "shape": arithmetic.broadcast}
    activation: dict[str, Any] = {**facts, "kind": OpKind.ACTIVATION}
    yield from _group(
        "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid=expit hardsigmoid hardswish hardtanh softshrink "
        "tanhshrink softplus softsign logsigmoid=log_sigmoid tanh",
        **activation,
    )
    yield from _group("hardshrink threshold", **activation, jumps=True)
    # A slope for each channel, random slopes, or a normalisation over an axis: not the same for each number.
    other: dict[str, Any] = {"kind": OpKind.ACTIVATION, "keeps": Keeps.SHAPE, "shape": same}
    yield from _group("prelu softmax softmin log_softmax", **other)
    yield OpInfo(("softmax2d",), modules=(nn.Softmax2d,), **other)
    yield from _group("rrelu rrelu_with_noise", **other, draws=Draws.TRAINING)
    yield from _group("gumbel_softmax", **other, draws=Draws.ALWAYS)
    yield from _group("glu", kind=OpKind.ACTIVATION)

    yield from _group("add=iadd=radd sub=subtract=isub", **facts, kind=OpKind.ADD)
    yield from _group("rsub", **facts)  # of a number, mostly 1 - gate: no sum of two branches
    yield from _group("mul=multiply=imul=rmul truediv=itruediv=rtruediv", **facts, kind=OpKind.MULTIPLY)
    yield from _group("div=divide=true_divide", **facts, kind=OpKind.MULTIPLY, jumps=True)  # it may round
    yield from _group("lerp addcmul addcdiv", **facts)
    yield from _group("abs=absolute", functions=(abs,), **facts)
    yield from _group(
        "clamp=clip clamp_min clamp_max neg=negative exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal "
        "pow=ipow=rpow float_power erf erfc erfinv sin cos tan asin=arcsin acos=arccos atan=arctan sinh cosh "
        "asinh=arcsinh acosh=arccosh atanh=arctanh atan2=arctan2 sinc lgamma=gammaln digamma=psi logit nan_to_num "
        "maximum minimum fmax fmin hypot logaddexp logaddexp2 copysign xlogy deg2rad rad2deg ldexp i0 i0e i1 i1e ndtr "
        "bitwise_and=and=iand bitwise_or=or=ior bitwise_xor=xor=ixor bitwise_not=invert",
        **facts,
    )
    yield from _group(
        "floor_divide=floordiv=ifloordiv remainder=mod=imod fmod round floor ceil trunc=fix frac sign sgn heaviside "
        "gt=greater lt=less ge=greater_equal le=less_equal eq ne=not_equal isnan isinf isfinite isposinf isneginf "
        "isclose signbit logical_and logical_or logical_xor logical_not",
        **facts,
        jumps=True,
    )
    yield from _group("where", **{**facts, "shape": _chosen}, returns=None)
    yield from _group(
        "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine bucketize searchsorted", jumps=True
    )


def _chosen(node: fx.Node, shapes: Any) -> Any:
    """where(condition, a, b); where(condition) alone is several lists of places."""
    return arithmetic.broadcast(node, shapes) if len(node.args) + len(node.kwargs) == 3 else None


def _copies() -> Iterator[OpInfo]:
    """The same numbers, in new memory or not."""
    facts: dict[str, Any] = {"kind": OpKind.COPY, "elementwise": True, "keeps": Keeps.SHAPE, "shape": same}
    yield from _group("clone", **facts)
    yield from _group(
        "contiguous detach identity positive=pos to type_as double float half bfloat16 cpu cuda requires_grad_ alias "
        "pin_memory conj_physical resolve_conj resolve_neg conj",
        **facts,
        shares=Shares.FIRST,
    )
    yield from _group("long int short char byte bool", **facts, shares=Shares.FIRST, jumps=True)
    yield from _group("type", **facts, shares=Shares.FIRST, returns=None)
    dropout: dict[str, Any] = {**facts, "elementwise": False, "shares": Shares.FIRST, "draws": Draws.TRAINING}
    yield from _group("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", **dropout)
    yield from _group("feature_dropout", **dropout)
    yield from _group("native_dropout", kind=OpKind.COPY, draws=Draws.TRAINING, returns=None)
    yield from _group("flip roll tril triu cumsum cumprod logcumsumexp", keeps=Keeps.SHAPE, shape=same)


def _products() -> Iterator[OpInfo]:
    facts: dict[str, Any] = {"kind": OpKind.PRODUCT}
    yield from _group("matmul=imatmul mm bmm", **facts, shape=arithmetic.product(0))
    yield from _group("addmm", **facts, shape=arithmetic.product(1))
    yield from _group("baddbmm addbmm addmv mv dot vdot inner outer=ger bilinear scaled_dot_product_attention", **facts)
    yield from _group("einsum", **facts, shape=arithmetic.einsum, shares=Shares.ALL, moves_axes=True)


def _reductions() -> Iterator[OpInfo]:
    facts: dict[str, Any] = {"kind": OpKind.REDUCTION}
    yield from _group("mean sum amax amin", **facts, shape=arithmetic.reduced)
    yield from _group("prod var std norm logsumexp all any nansum nanmean count_nonzero", **facts)
    yield from _group("argmax argmin argsort", **facts, jumps=True)
    yield from _group("max min topk sort msort median nanmedian kthvalue mode", **facts, jumps=True, returns=None)
    yield from _group("aminmax cummax cummin var_mean std_mean", **facts, returns=None)


def _joins_and_parts() -> Iterator[OpInfo]:
    joins: dict[str, Any] = {"kind": OpKind.CONCAT}
    yield from _group("cat=concat=concatenate", **joins, shape=arithmetic.concatenated)
    yield from _group("hstack", **joins, shape=arithmetic.stacked_horizontally)
    yield from _group("stack", **joins, shape=arithmetic.stacked)
    yield from _group("vstack=row_stack dstack column_stack", **joins)
    parts: dict[str, Any] = {"kind": OpKind.SPLIT, "shares": Shares.FIRST, "returns": tuple}
    yield from _group(
        "chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind unsafe_chunk unsafe_split "
        "unsafe_split_with_sizes",
        **parts,
    )
    yield from _group("split_copy split_with_sizes_copy unbind_copy", kind=OpKind.SPLIT, returns=tuple)
    yield from _group("index_select", kind=OpKind.PERMUTATION, shape=views.index_selected)
    yield from _group("getitem", kind=OpKind.ITEM, shape=views.item, shares=Shares.FIRST)


def _views() -> Iterator[OpInfo]:
    facts: dict[str, Any] = {"kind": OpKind.VIEW, "shares": Shares.FIRST}
    yield from _group("view reshape _unsafe_view _reshape_alias", **facts, shape=views.viewed)
    yield from _group("permute", **facts, shape=views.permuted, moves_axes=True)
    yield from _group("transpose=swapaxes=swapdims", **facts, shape=views.transposed, moves_axes=True)
    yield from _group("movedim=moveaxis T=mT=H=mH t adjoint", **facts, moves_axes=True)
    yield from _group("flatten", **facts, shape=views.flattened)
    yield from _group("unflatten", **facts, shape=views.unflattened)
    yield from _group("squeeze", **facts, shape=views.squeezed)
    yield from _group("unsqueeze", **facts, shape=views.unsqueezed)
    yield from _group("select", **facts, shape=views.selected)
    yield from _group("narrow", **facts, shape=views.narrowed)
    yield from _group(
        "view_as reshape_as expand expand_as broadcast_to ravel diagonal as_strided real imag view_as_real "
        "view_as_complex slice slice_inverse align_to align_as refine_names rename values indices crow_indices "
        "col_indices ccol_indices row_indices lift lift_fresh",
        **facts,
    )
    yield OpInfo(("unfold",), **facts)  # Tensor.unfold is a view; nn.Unfold and F.unfold, of that name, are none
    joint: dict[str, Any] = {"kind": OpKind.VIEW, "shares": Shares.ALL}
    yield from _group(
        "broadcast_tensors align_tensors atleast_1d atleast_2d atleast_3d meshgrid", **joint, returns=None
    )
    # Copies mostly, but where there is nothing to do they return what they were given.
    yield from _group(
        "cfloat cdouble chalf sum_to_size to_dense asarray as_tensor coalesce index resize_as", shares=Shares.FIRST
    )
    yield from _group("from_dlpack as_subclass module_load numpy dequantize", shares=Shares.FIRST, returns=None)
    yield from _group("block_diag cartesian_prod", shares=Shares.ALL)


def _random() -> Iterator[OpInfo]:
    yield from _group(
        "rand rand_like randn randn_like randint randint_like randperm bernoulli normal uniform multinomial poisson "
        "exponential cauchy geometric log_normal",
        draws=Draws.ALWAYS,
    )


def _answers() -> Iterator[OpInfo]:
    """What returns no tensor, or several things."""
    yield from _group(
        "allclose equal is_complex is_conj is_contiguous is_distributed is_floating_point is_inference is_neg "
        "is_nonzero is_pinned is_same_size is_set_to is_shared is_signed is_coalesced can_cast is_tensor is_storage "
        "cudnn_is_acceptable is_vulkan_available __contains__",
        returns=bool,
    )
    yield from _group(
        "dim ndimension numel nelement element_size get_device storage_offset dense_dim sparse_dim data_ptr "
        "const_data_ptr q_per_channel_axis q_zero_point __len__ __int__",
        returns=int,
    )
    yield from _group("dim_order", returns=tuple)
    yield from _group(
        "frexp unique unique_consecutive nonzero gradient svd qr eig eigh symeig slogdet lstsq lu lu_unpack geqrf "
        "histogram histogramdd triangular_solve solve lobpcg pca_lowrank svd_lowrank inv_ex cholesky_ex solve_ex "
        "ldl_factor ldl_factor_ex lu_factor lu_factor_ex eigvals unravel_index linalg_polar "
        "lstm gru rnn_tanh=rnn rnn_relu lstm_cell quantized_lstm quantized_gru quantized_lstm_cell "
        "multi_head_attention_forward=multihead_attention embedding_bag "
        "batch_norm_stats batch_norm_update_stats batch_norm_gather_stats batch_norm_gather_stats_with_counts "
        "batch_norm_backward_reduce miopen_ctc_loss miopen_rnn mkldnn_rnn_layer mkldnn_linear_backward_weights "
        "choose_qparams_optimized fbgemm_linear_quantize_weight quantize_per_tensor boolean_dispatch fn "
        "linear_cross_entropy item tolist stride q_scale qscheme storage storage_type untyped_storage typename "
        "register_hook register_post_accumulate_grad_hook backward retain_grad record_stream apply_ map_ map2_ "
        "reinforce to_dlpack result_type promote_types broadcast_shapes wait fork cond while_loop vmap save load "
        "reduce set_rng_state __class__ __reduce_ex__ __deepcopy__ __format__ __repr__ __float__ __index__ __complex__ "
        "__array__ __dlpack__ __dlpack_device__",
        returns=None,
    )
    yield from _group("gru_cell rnn_tanh_cell=rnn_cell embedding fold=col2im cosine_similarity pairwise_distance")
    yield OpInfo(("im2col",), modules=(nn.Unfold,))
    yield from _group("transformer_encoder_layer transformer_decoder_layer")


OPERATIONS = Operations(
    (
        *_layers(),
        *_poolings(),
        *_elementwise(),
        *_copies(),
        *_products(),
        *_reductions(),
        *_joins_and_parts(),
        *_views(),
        *_random(),
        *_answers(),
    )
)


def operation_of(node: fx.Node, root: nn.Module) -> OpInfo | None:
    """The operation that a node is: the very function, a method, or a module that computes as torch's own does."""
    match node.op:
        case "call_module":
            return OPERATIONS.of_module(module_at(root, str(node.target)))
        case "call_function":
            return OPERATIONS.of_function(node.target)
        case "call_method":
            return OPERATIONS.named(str(node.target))
        case _:
            return None


def operation_named(node: fx.Node) -> OpInfo | None:
    """The operation that a function or method is called like, whoever wrote it."""
    return OPERATIONS.named(name_of(node))
