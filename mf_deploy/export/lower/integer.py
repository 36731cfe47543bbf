"""The rewrites for int8, where its kernels or its file want another graph than float kernels."""

from mf_deploy.artifact import Target
from mf_deploy.export.lower import COMMON, REWRITES
from mf_deploy.export.lower.batch_heads import BatchHeads
from mf_deploy.export.lower.block_shuffles import BlockShuffles
from mf_deploy.export.lower.block_stem import BlockStem
from mf_deploy.export.lower.dense_shuffles import DenseShuffles
from mf_deploy.export.lower.factor_slopes import FactorSlopes
from mf_deploy.export.lower.flatten_head import FlattenHead
from mf_deploy.export.lower.graph import Rewrite
from mf_deploy.export.lower.head_views import HeadViews
from mf_deploy.export.lower.integer_planes import RepeatPlanes
from mf_deploy.export.lower.merge_groups import MergeGroups
from mf_deploy.export.lower.pad_hidden import PadHidden
from mf_deploy.export.lower.patch_stem import PatchStem
from mf_deploy.export.lower.repeat_channels import RepeatChannels
from mf_deploy.export.lower.repeat_rows import RepeatRows
from mf_deploy.export.lower.row_slopes import RowSlopes
from mf_deploy.export.lower.split_layer_norm import SplitLayerNorm
from mf_deploy.export.lower.split_repeats import SplitRepeats
from mf_deploy.export.lower.wide_softmax import WideSoftmax

WORTH_SPLITTING = 16
"""Channels from which three int8 convolutions cost less than one on three copies of the map: below, the 26M
takes 0.4 M instructions more, above, the 294M 0.8 M fewer (LiteRT, cortex-a76)."""

INTEGER_REWRITES: dict[Target, tuple[Rewrite, ...]] = REWRITES | {
    "onnx": (
        *(*COMMON, BatchHeads(), FlattenHead(), DenseShuffles(), PatchStem()),
        *(RepeatChannels(), RepeatPlanes(), PadHidden(), FactorSlopes()),
    ),
    "tflite": (
        *(*COMMON, BatchHeads(), RepeatChannels(), RepeatRows(), SplitRepeats(WORTH_SPLITTING)),
        *(MergeGroups(), BlockShuffles(), SplitLayerNorm(), RowSlopes(), WideSoftmax(), HeadViews()),
        BlockStem(),
    ),
}

FLOAT_ONLY = ("SplitRepeats", "PadHidden", "FillTiles")
"""What half precision does not gain from: its tiles are sixteen outputs wide, and it copies padded maps."""

WEIGHT_REWRITES: dict[Target, tuple[Rewrite, ...]] = REWRITES | {
    "tflite": tuple(each for each in REWRITES["tflite"] if each.name not in FLOAT_ONLY),
}
"""Where only weights are int8."""
