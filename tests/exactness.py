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


def passing(name: str, *tests: str) -> tuple[str, ...]:
    """Tests of the test file of one pass, without their prefix."""
    return tuple(f"passes/test_{name}.py::test_{test}" for test in tests)


def transposed(*names: str) -> tuple[str, ...]:
    """Networks with transposed convolutions that fold."""
    return tuple(f"test_transposed.py::test_folds[{name}]" for name in names)


def untransposed(*names: str) -> tuple[str, ...]:
    """Networks with transposed convolutions that stay."""
    return tuple(f"test_transposed.py::test_stays[{name}]" for name in names)


def spelled(*names: str) -> tuple[str, ...]:
    """Spellings that fold."""
    return tuple(f"test_spellings.py::test_folds[{name}]" for name in names)


def misspelled(*names: str) -> tuple[str, ...]:
    """Spellings of something else."""
    return tuple(f"test_spellings.py::test_stays[{name}]" for name in names)


def resized(*names: str) -> tuple[str, ...]:
    """Resamplings that a norm passes on its way to the convolution before it."""
    test = "a_norm_after_a_resize_goes_into_the_convolution_before_it"
    return passing("commute_resampling", *(f"{test}[{name}]" for name in names))


def pooled(*names: str) -> tuple[str, ...]:
    """Global poolings that a norm passes on its way to the head."""
    test = "a_norm_before_a_global_pool_goes_into_the_head"
    return passing("commute_resampling", *(f"{test}[{name}]" for name in names))


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
    "wide dilations": ("a_wide_dilation_is_not_written_out",),
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
        Row("a batch norm behind a transposed convolution, whose weight has the outputs per group on axis 1",
            transposed("norm behind", "grouped, dilated, norm behind", "depthwise, norm behind",
                       "scale and shift behind", "functional with groups"),
            untransposed("told its output size", "weight that depends on the input")),
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
        Row("per-pixel map, then a linear",
            (*serial("norm then linear", "linear then linear"), *spelled("BatchNorm1d before a linear")),
            ("test_unlisted_traps.py::test_trap[constant (1,1,1,1) before a linear]",
             *stays("linear, BatchNorm1d of a value of unknown rank"))),
        Row("per-pixel map, then a zero-padded convolution: the shift becomes a border term",
            (*folds("norm, padded conv"), "test_border.py::test_exact_at_every_size"),
            ("test_border.py::test_dropping_it_is_wrong",)),
        Row("per-pixel map, then padding that repeats the image",
            (*folds("norm, reflecting conv"), *serial("norm then reflect", "norm then replicate",
                                                      "norm then circular")),
            (*apart("3x3 p1 then circular"), *stays("mixed padding modes"))),
        Row("scale and shift of a layer, group or RMS norm go into all its readers; what normalises stays",
            passing("fold_norm_affine", *(f"scale_and_shift_go_into_the_readers[{name}]" for name in (
                "one linear", "three siblings", "functional", "RMS norm", "group norm", "into a patch convolution"))),
            passing("fold_norm_affine", "declined_where_a_reader_is_not_affine", "declined_where_it_is_returned",
                    "declined_where_a_reader_pads", "declined_where_the_reader_reads_other_channels",
                    "other_norms_stay[over positions too]")),
        Row("scale and shift of a global response norm are those of a product",
            passing("fold_norm_affine", "scale_and_shift_of_a_global_response_norm_go_into_the_linear"),
            passing("fold_norm_affine", "a_global_response_norm_that_adds_its_input_keeps_them")),
        Row("operations that do nothing in eval mode, a cast of a value to its own dtype among them; other casts stay",
            (*folds("dropouts and no-ops", "stochastic depth"), *spelled("torch.clone", "+x"),
             *passing("drop_noops", "noops_disappear", "a_whole_slice_and_a_whole_permutation_are_no_copies",
                      "a_cast_to_what_a_value_is_disappears")),
            ("test_lifting.py::test_a_dropout_that_drops_stays",
             *passing("drop_noops", "near_misses_stay", "a_dropout_in_training_mode_stays",
                      "a_cast_to_what_another_value_is_stays"),
             *misspelled("norm behind another memory format"), *stays("norm behind a cast"))),
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
        Row("circular padding twice is one circular convolution, bias included, if the first keeps the size",
            (*serial("circular then circular", "one-sided circular twice"), *spelled("circular, then circular"),
             "test_spellings.py::test_going_round_more_than_once_survives_compiling_again_and_exporting"),
            (*apart("circular with a stride, then circular", "circular that grows, then circular",
                    "circular that shrinks, then circular", "valid, then circular", "3x3 p1 then circular",
                    "circular then 3x3 p1", "constants that fade, then circular"),
             *misspelled("circular and strided, then circular", "zeros, then circular"))),
        Row("transposed convolution and a 1x1 on either side",
            (*transposed("1x1 behind", "1x1 and norm behind", "scale before", "1x1 before"),
             "test_transposed.py::test_behind_a_pointwise_map_without_a_shift"),
            ("test_transposed.py::test_not_exact[a shift before it]",
             "test_transposed.py::test_not_exact[a convolution before it]", *untransposed("norm before"))),
        Row("transposed convolution, then a convolution that sees nothing outside its output",
            ("test_transposed.py::test_before_a_convolution_that_sees_nothing_outside",),
            ("test_transposed.py::test_not_exact[cut, then a padded kernel]",
             "test_transposed.py::test_not_exact[a bias padded behind it]",
             "test_transposed.py::test_not_exact[a stride behind it]", *untransposed("padded kernel behind"))),
        Row("upsampling, nearest or linear, and a per-pixel map change places, constants included",
            (*resized("nearest", "bilinear", "bicubic", "align_corners", "to a size"),
             *passing("commute_resampling", "a_pixel_wise_convolution_moves_to_the_lower_resolution",
                      "a_norm_before_a_resize_goes_into_a_padded_reader_as_a_border_term")),
            passing("commute_resampling", "declined_where_it_would_cost_more", "declined_where_a_reader_is_not_affine",
                    "declined_where_the_convolution_before_is_read_too")),
        Row("a per-channel map and a PixelShuffle change places, spread over its pixels",
            passing("fold_through_shuffle", "folds[module]", "folds[F.pixel_shuffle]",
                    "a_shifted_scale_before_a_padded_shuffle_keeps_its_border_term"),
            passing("fold_through_shuffle", "declined_where_the_shuffled_image_is_read_too",
                    "declined_where_the_convolution_is_read_too", "declined_behind_an_activation")),
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
            ("test_parallel.py::test_not_summable[strided identity]", "test_parallel.py::test_not_summable[inputs]",
             "test_parallel.py::test_broadcast_channels_are_not_added")),
        Row("transposed convolutions add up where their zooms and sizes agree",
            ("test_transposed.py::test_sums_and_concatenations", *transposed("two branches", "concatenated")),
            ("test_transposed.py::test_not_summable",)),
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
        Row("a norm behind a concatenation goes into the branches, or on into the readers",
            (*folds("norm after cat"), *passing("fold_scales", "backward_over_a_concatenation",
                                                "forward_into_all_readers")),
            passing("fold_scales", "a_branch_that_is_read_elsewhere_takes_no_scale",
                    "a_reader_that_is_not_affine_keeps_the_norm", "declined_for_unknown_parts",
                    "declined_into_a_reader_that_extends_the_border_otherwise")),
        Row("a 1x1 behind a concatenation of values without a common origin is a sum of 1x1s",
            passing("split_concats", "branches_take_their_slices[single-branch]", "branches_take_their_slices[macs]",
                    "the_bias_of_the_mixing_convolution_is_added_once", "tokens",
                    "a_padded_convolution_reaches_pointwise_branches"),
            passing("split_concats", "a_padded_convolution_does_not_reach_a_padded_branch",
                    "two_bare_branches_are_declined", "a_wide_mixing_convolution_is_declined",
                    "declined_where_the_concatenation_is_read_elsewhere", "grouped_readers_are_no_mixture")),
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
        Row("what divides by the pixels it sees is no convolution, but per-pixel maps pass it, constants included",
            resized("uncounted padding", "ceil mode", "ceil mode, uncounted", "adaptive"),
            (*stays("pool that does not count its padding", "pool that clips"),
             *passing("commute_resampling", "rows_that_do_not_sum_to_one_keep_the_norm"))),
        Row("what counts its padding lets the linear part pass: a shift before it becomes a border term",
            folds("norm, average pool that counts its padding"),
            passing("commute_resampling", "rows_that_do_not_sum_to_one_keep_the_norm")),
        Row("a global mean and a norm, 1x1 or linear change places",
            (*pooled("mean method", "pool, flatten", "keepdim, flatten", "permute, mean", "pool, view by its size"),
             *passing("commute_resampling", "a_norm_around_the_mean_leaves_mean_and_linear",
                      "a_pixel_wise_convolution_and_a_head_are_one")),
            passing("commute_resampling", "other_reductions_keep_the_norm", "declined_where_one_of_two_readers_cannot",
                    "one_pixel_by_the_example_alone_is_no_fact", "a_view_that_cuts_the_batch_keeps_no_channels")),
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
    "attention": (
        Row("heads written one by one are one linear and one attention over stacked heads",
            passing("stack_heads", *(f"one_linear_per_head[{name}]" for name in (
                "after the product", "on the queries", "einsum", "none")), "constant_bias[per key]",
                "heads_that_are_calls_are_stacked"),
            passing("stack_heads", "unequal_heads_cannot_be_stacked", "heads_of_different_values",
                    "heads_joined_along_tokens", "projections_that_are_read_elsewhere_stay")),
        Row("attention that is written out is one call, for every number of tokens",
            passing("fuse_attention", "stacked_heads", "bias_of_the_stacked_form_is_one_call_too"),
            passing("fuse_attention", "masks", "softmax_over_another_axis", "softmax_in_another_type",
                    "scores_or_weights_that_are_returned", "a_bias_that_could_widen_one_query",
                    "dropout_in_training_mode", "shapes_that_structure_does_not_tell")),
        Row("a factor of the scores goes into the projection of one of them",
            (*passing("fold_product_scales", "scale_of_scores", "on_images_with_channels_first",
                      "the_keys_take_it_where_the_queries_cannot"),),
            passing("fold_product_scales", "channels_that_are_read_elsewhere", "a_projection_that_is_returned",
                    "scores_that_are_read_before_they_are_scaled", "one_projection_in_both_factors",
                    "overlapping_channels_in_both_factors", "a_view_that_hides_the_channels",
                    "a_factor_per_key_or_between_others_stays")),
    ),
    "any model": (
        Row("arguments that are no values are compiled in: as the example gives them, or as their defaults are",
            ("test_arguments.py::test_an_optional_argument_is_left_out",
             "test_arguments.py::test_an_example_gives_the_arguments", "test_arguments.py::test_the_signature_stays",
             "test_arguments.py::test_a_child_that_is_never_given_its_optional_argument_is_compiled"),
            ("test_arguments.py::test_another_value_than_the_default_is_an_error",
             "test_arguments.py::test_a_required_argument_was_a_value_when_it_was_compiled",
             "test_arguments.py::test_a_default_that_no_graph_can_hold_leaves_the_forward_as_it_is",
             "test_arguments.py::test_a_child_that_may_be_given_none_or_a_tensor_stays")),
        Row("what sizes decide is decided by an example and checked; what data decides is not",
            ("test_sizes.py::test_the_example_decides_and_another_way_is_an_error[wide]",
             "test_sizes.py::test_a_check_that_raises_is_passed"),
            ("test_sizes.py::test_without_an_example_no_size_is_lost[wide]",
             "test_sizes.py::test_data_decides_nothing")),
        Row("what does not trace stays, and the parts that it only calls are compiled",
            ("test_any_model.py::test_goes_through[yolo]", "test_any_model.py::test_wrappers_are_taken_off"),
            ("test_any_model.py::test_a_child_whose_attributes_are_read_stays_and_its_neighbours_do_not",
             "test_any_model.py::test_a_forward_that_counts_its_calls_stays",
             "test_any_model.py::test_scripted_modules_are_refused_and_scripted_parts_stay")),
    ),
    "numbers": (
        Row("folded in float64, cast once", ("test_form.py::test_values_are_cast_once_at_the_end",),
            ("test_mutations.py::test_one_percent_is_noticed",)),
        Row("the tolerance is derived: one slack, the rounding of the dtype, the root of the fan in",
            ("test_compiler.py::test_the_bound_grows_with_the_rounding_and_the_root_of_the_fan_in",
             "test_compiler.py::test_dtype_is_kept"), ("test_compiler.py::test_verify_finds_one_percent",)),
        Row("a half-precision overflow is refused, with its channel",
            ("test_compiler.py::test_dtype_is_kept",),
            ("test_form.py::test_overflow_names_module_and_channel",
             "test_compiler.py::test_float16_overflow_is_refused_with_the_channel",
             *traps("dead_and_huge_channels_in_half_precision"))),
    ),
    "traps": (
        *(Row(line, traps(*names), alone="a trap is passed or not") for line, names in LISTED.items()),
        Row("copied, never edited in place",
            ("test_compiler.py::test_the_original_is_untouched",
             "test_compiler.py::test_changing_the_result_does_not_change_the_original"),
            alone="a trap is passed or not"),
        Row("generated weights are written down once; those that depend on the input are not",
            passing("fold_weights", *(f"one_convolution_and_nothing_that_makes_its_weight[{name}]" for name in (
                "mask", "standardised", "parametrized", "weight norm"))),
            passing("fold_weights", "a_plain_weight_stays", "a_weight_that_depends_on_the_input_is_declined")),
        Row("prefixes of wrapped checkpoints",
            tuple(f"test_checkpoint_reading.py::test_common_layouts_load[{name}]"
                  for name in ("data parallel", "compiled", "both")),
            alone="a trap is passed or not"),
        Row("traps that no list names", ("test_unlisted_traps.py::test_trap",), alone="a trap is passed or not"),
    ),
}  # fmt: skip
