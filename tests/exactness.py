"""The specification, line by line: what shows that each line is accepted, and what is declined one step away.

`ROWS` restates each statement of exactness in our own words and names the tests that hold it: `accepts` fold or
pass, `declines` are the near misses that stay (or are repaired) for the stated reason.  A test is named
"file::function" or "file::function[case]".  `tests/test_exactness.py` fails when a name stops existing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One statement and its tests."""

    line: str
    accepts: tuple[str, ...]
    declines: tuple[str, ...] = ()
    alone: str = ""  # why no near miss exists


def folds(*names: str) -> tuple[str, ...]:
    """Cases of the table of networks that fold."""
    return tuple(f"test_lifting.py::test_folds[{name}]" for name in names)


def stays(*names: str) -> tuple[str, ...]:
    """Cases of the table of near misses."""
    return tuple(f"test_lifting.py::test_stays[{name}]" for name in names)


def traps(*names: str) -> tuple[str, ...]:
    """Tests of `test_traps.py`, without their prefix."""
    return tuple(f"test_traps.py::test_{name}" for name in names)


SERIAL = "test_serial.py::test_accepted_iff_the_merged_kernel_is_right_at_every_size"
PARALLEL = "test_parallel.py::test_accepted_iff_output_sizes_agree_at_every_size"


def serial(*names: str) -> tuple[str, ...]:
    """Accepted pairs of maps."""
    return tuple(f"test_serial.py::test_exact[{name}]" for name in names)


def apart(*names: str) -> tuple[str, ...]:
    """Declined pairs of maps."""
    return tuple(f"test_serial.py::test_not_exact[{name}]" for name in names)


LISTED = {
    "one convolution, called twice, two norms": (
        "a_conv_called_twice_each_call_followed_by_its_own_batch_norm", "a_conv_called_twice_in_a_row"),
    "tied weights": ("weight_tied_parameters",),
    "norms by dataflow, not by registration": (
        "a_batch_norm_found_by_registration_order_instead_of_dataflow",
        "a_batch_norm_registered_behind_a_conv_but_run_before_it"),
    "a parent without fuse()": ("a_batch_norm_dropped_because_its_parent_has_no_fuse",),
    "intermediates that somebody sees": (
        "an_intermediate_that_is_also_returned", "an_intermediate_that_is_hooked",
        "a_hook_that_changes_its_output", "an_intermediate_that_a_feature_extractor_reads"),
    "norms by another name, functional norms": (
        "batch_norms_that_are_subclasses", "functional_batch_norm_with_buffers"),
    "norms that use the batch": ("a_batch_norm_that_uses_the_batch_stays",),
    "shape guards": ("shape_guards_count_as_users_unless_removed",),
    "positional and keyword arguments": ("positional_versus_keyword_arguments",),
    "padding='same' with even kernels": ("padding_same_with_even_kernels",),
    "padding modes": ("padding_mode_other_than_zeros",),
    "padding that depends on the size": ("conv2d_same_whose_padding_depends_on_the_input_size",),
    "parametrizations, stale weights, generators": (
        "parametrizations", "orthogonal_parametrization", "weight_norm_hooks_leave_a_stale_weight",
        "scaled_std_conv", "weight_generators_are_folded_under_no_grad"),
    "weights that depend on the input": ("weights_that_depend_on_the_input_are_never_folded",),
    "attributes made by train() and eval()": ("tensor_attributes_made_by_train_and_eval",),
    "wrapped and averaged copies": ("ddp_and_ema_copies",),
    "meta tensors": ("meta_tensors",),
}  # fmt: skip

ROWS: dict[str, tuple[Row, ...]] = {
    "pointwise": (
        Row(
            "a batch norm with running statistics behind a convolution, in every spelling",
            folds("conv, BatchNorm2d", "conv, SyncBatchNorm", "conv, FrozenBatchNorm2d", "conv, BatchNormAct2d",
                  "conv, F.batch_norm positional", "conv, F.batch_norm by keyword", "conv1d, BatchNorm1d",
                  "conv3d, BatchNorm3d"),
            stays("no running statistics", "F.batch_norm that uses the batch",
                  "F.batch_norm whose weight depends on the input"),
        ),
        Row("the same without weight and bias", folds("conv, BatchNorm2d without affine"),
            stays("no running statistics")),
        Row("a batch norm behind a linear, where the normalised axis is the features",
            folds("linear, BatchNorm1d"), stays("linear, BatchNorm1d of a value of unknown rank")),
        Row("times, plus, minus, divided by a constant per channel",
            folds("times (C,1,1)", "times (1,C,1,1), plus", "minus, divided", "constant minus", "scalar constant",
                  "numbers", "negated"),
            (*stays("constant with spatial extent", "constant along the width"),
             "test_unlisted_traps.py::test_trap[constant with more axes than the value]")),
        Row("constants that are expressions of parameters",
            folds("sigmoid of a parameter", "exp and getitem of a parameter"),
            stays("weight that depends on the input")),
        Row("per-pixel map, then a convolution that pads nothing", folds("norm, valid conv"),
            folds("norm, padded conv")),
        Row("per-pixel map, then a zero-padded convolution: the shift becomes a border term",
            (*folds("norm, padded conv"), "test_border.py::test_exact_at_every_size"),
            ("test_border.py::test_dropping_it_is_wrong",)),
        Row("per-pixel map, then padding that repeats the image",
            (*folds("norm, reflecting conv"), *serial("norm then reflect", "norm then replicate",
                                                      "norm then circular")),
            (*apart("3x3 p1 then circular"), *stays("mixed padding modes"))),
        Row("operations that do nothing in eval mode",
            (*folds("dropouts and no-ops"), "passes/test_drop_noops.py::test_noops_disappear"),
            ("test_lifting.py::test_a_dropout_that_drops_stays", "passes/test_drop_noops.py::test_near_misses_stay")),
    ),
    "serial": (
        Row("stride, padding and kernel of a pair; one kernel is flipped", (SERIAL,), (SERIAL,)),
        Row("exact iff nothing outside the inner output is seen",
            (SERIAL, "test_serial.py::test_constants_are_exact_wherever_they_are_accepted"),
            apart("3x3 p1 then 3x3 p1", "1xk pad then 1xk pad")),
        Row("one tap sees nothing outside: 1xk, kx1 and 1x1, kxk",
            (*serial("1xk pad then kx1 pad", "1x1 then 3x3 p1"), *folds("1xk, kx1")), stays("3x3 p1, 3x3 p1")),
        Row("padding twice what the next one crops", (*serial("3x3 p2 then valid 3x3"), *folds("3x3 p2, valid 3x3")),
            apart("3x3 p1 then 3x3 p1")),
        Row("strided, then padded: right for odd sizes, so never", serial("3x3 s2 p1 then valid 3x3"),
            (*apart("3x3 s2 p1 then 3x3 p1"), *stays("3x3 s2 p1, 3x3 p1"),
             "test_serial.py::test_strided_then_padded_is_right_for_odd_sizes_only")),
        Row("an inner bias of a strip pair is no outer bias",
            ("test_serial.py::test_the_border_term_is_what_makes_it_right",),
            ("test_border.py::test_dropping_it_is_wrong",)),
        Row("reflected twice is no convolution", serial("norm then reflect"), apart("reflect then reflect")),
        Row("groups merge on who reads whom",
            ("test_serial.py::test_groups_merge_on_the_incidence",
             "test_serial.py::test_depthwise_then_depthwise_stays_depthwise"), apart("channel counts")),
        Row("PixelUnshuffle, then 3x3, is 6x6 of stride 2",
            ("test_serial.py::test_pixel_unshuffle_then_conv3_is_conv6_stride_2",),
            ("test_lifting.py::test_a_pixel_shuffle_before_a_padded_convolution_stays",)),
    ),
    "parallel": (
        Row("one input, equal strides and extents, one padding mode",
            (PARALLEL, *folds("a + b + norm")),
            (PARALLEL, *stays("branches of unequal size", "mixed padding modes"),
             "test_parallel.py::test_not_summable[stride]")),
        Row("the support is the union: strips, dilated, even, cropped",
            tuple(f"test_parallel.py::test_summable[{name}]" for name in (
                "kx1 + 1xk + kxk", "2x2 d2 p1 inside 3x3 p1", "even kernels, asymmetric pads",
                "cropped branch (negative pad)")),
            ("test_parallel.py::test_not_summable[output sizes]", "test_parallel.py::test_not_summable[one-sided]")),
        Row("identity, norm and scale join where the stride is one",
            ("test_parallel.py::test_identity_norm_and_scale_join_any_groups", *folds("scaled identity")),
            ("test_parallel.py::test_not_summable[strided identity]",)),
        Row("different groups are embedded; whether it pays is a cost",
            ("test_parallel.py::test_different_groups_are_block_embedded",),
            ("passes/test_collapse_sums.py::test_declined_for_its_cost",)),
        Row("every spelling of a sum",
            folds("torch.add with alpha", "a - b", "sum of a list", "stack.sum", "torch.mean of a stack",
                  "half of a sum", "sum of halves", "in place"),
            ("test_unlisted_traps.py::test_trap[stack along axis=]",
             "test_unlisted_traps.py::test_trap[sum of a stack with keepdims=]")),
        Row("in-place sums are values only if nobody shares their memory", folds("in place"),
            traps("aliasing_of_in_place_adds", "in_place_activation_on_a_shared_value")),
        Row("the average of heads behind norms of their own",
            (*folds("two heads, each with its norm"), "passes/test_average_heads.py::test_averaged"),
            ("passes/test_average_heads.py::test_declined_where_a_head_is_returned_by_itself",
             "passes/test_average_heads.py::test_heads_of_different_vectors_stay_two")),
    ),
    "split and concatenate": (
        Row("parts, a map for each, joined: identical, reordered, dropped, doubled, unequal",
            folds("chunk, parts, cat", "reordered, duplicated, dropped parts", "slices, cat"),
            (*stays("slice of an unknown number of channels"),
             "passes/test_collapse_concats.py::test_declined_for_unequal_output_sizes")),
        Row("clones joined are a convolution and a channel order, which readers take up",
            ("passes/test_carry_permutations.py::test_depthwise_branches_of_a_clone_cost_no_permutation",
             "passes/test_carry_permutations.py::test_along_a_residual_stream", *folds("cloned depthwise, cat, 1x1")),
            ("test_parallel.py::test_cloned_depthwise_branches_are_no_multiplier_two_convolution",
             "passes/test_carry_permutations.py::test_declined_where_the_order_reaches_the_output")),
        Row("an interleaving stack, where its sizes are provably the parts' own", folds("stack and reshape"),
            ("test_lifting.py::test_a_stack_reshaped_to_sizes_that_are_not_its_own_stays",)),
        Row("a norm behind a concatenation goes into the branches", folds("norm after cat"),
            ("passes/test_fold_scales.py::test_a_branch_that_is_read_elsewhere_takes_no_scale",)),
        Row("siblings are stacked and sliced",
            ("passes/test_merge_siblings.py::test_siblings_are_stacked_and_sliced",
             "passes/test_merge_siblings.py::test_query_key_value"),
            ("passes/test_merge_siblings.py::test_other_windows_strides_and_groups_stay",)),
        Row("shuffle, flip and index_select are channel orders",
            folds("shuffle carried through an activation", "flip carried through an activation",
                  "index_select carried through an activation"),
            ("passes/test_carry_permutations.py::test_declined_where_channels_are_told_apart",
             "test_unlisted_traps.py::test_trap[shuffle, instance norm with weights]",
             "test_unlisted_traps.py::test_trap[shuffle, linear over columns]")),
    ),
    "pooling": (
        Row("an average that counts its padding is a convolution",
            (*folds("average pool that counts its padding"),
             "test_parallel.py::test_average_pool_that_counts_its_padding_joins_a_sum"),
            stays("pool that does not count its padding")),
        Row("a divisor of its own", folds("average pool with a divisor"),
            ("test_unlisted_traps.py::test_trap[pool of one pixel with a divisor]",)),
        Row("clipped windows are no convolution", folds("average pool that counts its padding"),
            stays("pool that clips")),
    ),
    "constant padding": (
        Row("padded by a value", (*folds("padded by a value"),
                                  "test_border.py::test_constant_padding_is_a_border_term"),
            stays("padding by a value that depends on the size")),
        Row("a frame written by assignment is a pad by that value",
            folds("frame written whole", "border written as the norm's response"),
            stays("frame written on three sides", "frame of two values", "frame wider than the pad")),
        Row("a frame equal to the shift needs no constant",
            ("test_border.py::test_pad_value_equal_to_the_shift_needs_no_constant_at_the_border",),
            folds("frame written whole")),
    ),
    "numbers": (
        Row("folded in float64, cast once", ("test_form.py::test_values_are_cast_once_at_the_end",),
            ("test_mutations.py::test_one_percent_is_noticed",)),
        Row("a half-precision overflow is refused, with its channel",
            ("test_compiler.py::test_dtype_is_kept",),
            ("test_form.py::test_overflow_names_module_and_channel",
             *traps("dead_and_huge_channels_in_half_precision"))),
    ),
    "traps": (
        *(Row(line, traps(*names), alone="a trap is passed or not") for line, names in LISTED.items()),
        Row("prefixes of wrapped checkpoints",
            tuple(f"test_checkpoint_reading.py::test_common_layouts_load[{name}]"
                  for name in ("data parallel", "compiled", "both")),
            alone="a trap is passed or not"),
        Row("traps that no list names", ("test_unlisted_traps.py::test_trap",), alone="a trap is passed or not"),
    ),
}  # fmt: skip

BESIDE_THEIR_IMPLEMENTATION = (
    "the weights of a layer or group norm go into the next linear; the normalisation stays",
    "transposed convolutions: a norm behind, a 1x1 on either side",
    "nearest and bilinear resampling commute with what is per-pixel",
    "pools that do not count their padding, and global means, commute with per-pixel maps and their biases",
    "circular padding twice is one circular convolution",
    "a 1x1 behind a concatenation of values without a common origin is a sum of 1x1s",
    "heads written one by one are one attention",
    "a forward with optional arguments",
    "to(), casts and views that change nothing",
)
"""Lines whose tests stand with the code that implements them; they get rows here when they are in."""
