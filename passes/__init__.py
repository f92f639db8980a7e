"""The concrete passes, one file each, in the order of ideas."""

from passes.average_heads import AverageHeads
from passes.carry_permutations import CarryPermutations
from passes.collapse_chains import CollapseChains
from passes.collapse_concats import CollapseConcats
from passes.collapse_sums import CollapseSums
from passes.drop_noops import DropNoops
from passes.fold_product_scales import FoldProductScales
from passes.fold_scales import FoldScales
from passes.fuse_attention import FuseAttention
from passes.merge_siblings import MergeSiblings
from passes.split_concats import SplitConcats
from repfx.protocol import Pass

DEFAULT_PASSES: tuple[Pass, ...] = (
    DropNoops(),
    CollapseChains(),
    FoldScales(),
    FoldProductScales(),
    CollapseSums(),
    AverageHeads(),
    CollapseConcats(),
    SplitConcats(),
    FuseAttention(),
    MergeSiblings(),
    CarryPermutations(),
)

__all__ = ["DEFAULT_PASSES"]
