"""The rewrites for int8, where its kernels or its file want another graph than float kernels."""

from mf_deploy.artifact import Target
from mf_deploy.export.lower import COMMON, REWRITES, TFLITE_REPEATS, TFLITE_SHAPES
from mf_deploy.export.lower.add_tokens import AddTokens
from mf_deploy.export.lower.batch_heads import BatchHeads
from mf_deploy.export.lower.block_stem import BlockStem
from mf_deploy.export.lower.dense_groups import DenseGroups
from mf_deploy.export.lower.dense_shuffles import DenseShuffles
from mf_deploy.export.lower.factor_slopes import FactorSlopes
from mf_deploy.export.lower.flatten_head import FlattenHead
from mf_deploy.export.lower.graph import Rewrite
from mf_deploy.export.lower.integer_planes import RepeatPlanes
from mf_deploy.export.lower.joint_heads import JointHeads
from mf_deploy.export.lower.pad_hidden import PadHidden
from mf_deploy.export.lower.patch_stem import PatchStem
from mf_deploy.export.lower.repeat_channels import RepeatChannels
from mf_deploy.export.lower.repeat_words import RepeatWords
from mf_deploy.export.lower.split_repeats import SplitRepeats

WORTH_SPLITTING = 16
"""Channels from which three int8 convolutions cost less than one on three copies of the map: below, the 26M
takes 0.4 M instructions more, above, the 294M 0.8 M fewer (LiteRT, cortex-a76)."""

HALF_PRECISION: tuple[Rewrite, ...] = (JointHeads(), AddTokens())
"""For the kernels that compute what is float in a quantized TFLite file."""

INTEGER_REWRITES: dict[Target, tuple[Rewrite, ...]] = REWRITES | {
    "onnx": (
        *(*COMMON, BatchHeads(), FlattenHead(), DenseShuffles(), PatchStem()),
        *(RepeatChannels(), RepeatPlanes(), PadHidden(), FactorSlopes()),
    ),
    "tflite": (
        *(*TFLITE_REPEATS, RepeatWords(), SplitRepeats(WORTH_SPLITTING), DenseGroups()),
        *(*HALF_PRECISION, *TFLITE_SHAPES, BlockStem()),
    ),
}

WEIGHT_REWRITES: dict[Target, tuple[Rewrite, ...]] = REWRITES | {
    "tflite": (*TFLITE_REPEATS, *HALF_PRECISION, *TFLITE_SHAPES),
}
"""Where only weights are int8. What is float may run in half precision, whose tiles are sixteen outputs wide
and which copies padded maps: it gains nothing from convolutions in parts, or from filled tiles."""
