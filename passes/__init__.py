"""The concrete passes, one file each, in the order of ideas."""

from passes.average_heads import AverageHeads
from passes.carry_permutations import CarryPermutations
from passes.collapse_chains import CollapseChains
from passes.collapse_concats import CollapseConcats
from passes.collapse_sums import CollapseSums
from passes.commute_resampling import CommuteResampling
from passes.drop_noops import DropNoops
from passes.fold_norm_affine import FoldNormAffine
from passes.fold_product_scales import FoldProductScales
from passes.fold_scales import FoldScales
from passes.fold_through_shuffle import FoldThroughShuffle
from passes.fold_weights import FoldWeights
from passes.fuse_attention import FuseAttention
from passes.merge_siblings import MergeSiblings
from passes.split_concats import SplitConcats
from passes.stack_heads import StackHeads
from repfx.rewriting import Pass

DEFAULT_PASSES: tuple[Pass, ...] = (
    DropNoops(),
    FoldProductScales(),  # before a chain makes one scale and shift of a factor of scores and their bias
    CollapseChains(),
    FoldScales(),
    FoldThroughShuffle(),
    CollapseSums(),
    AverageHeads(),
    CollapseConcats(),
    SplitConcats(),
    CommuteResampling(),
    FoldNormAffine(),
    StackHeads(),  # before each head is a call of its own
    FuseAttention(),
    FoldWeights(),
    MergeSiblings(),
    CarryPermutations(),
)

__all__ = ["DEFAULT_PASSES"]
