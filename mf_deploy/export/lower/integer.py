"""The rewrites for integer kernels, where those want another graph than float kernels."""

from mf_deploy.artifact import Target
from mf_deploy.export.lower import COMMON, REWRITES
from mf_deploy.export.lower.batch_heads import BatchHeads
from mf_deploy.export.lower.block_stem import BlockStem
from mf_deploy.export.lower.dense_shuffles import DenseShuffles
from mf_deploy.export.lower.factor_slopes import FactorSlopes
from mf_deploy.export.lower.flatten_head import FlattenHead
from mf_deploy.export.lower.graph import Rewrite
from mf_deploy.export.lower.integer_planes import RepeatPlanes
from mf_deploy.export.lower.pad_hidden import PadHidden
from mf_deploy.export.lower.patch_stem import PatchStem
from mf_deploy.export.lower.repeat_channels import RepeatChannels

FLOAT_ONLY = ("SplitRepeats", "PadHidden", "FillTiles")
"""What spares float kernels work and gives integer kernels more: 15.7 M instructions without, 16.5 M with
them (the 26M in LiteRT on cortex-a76)."""

INTEGER_REWRITES: dict[Target, tuple[Rewrite, ...]] = REWRITES | {
    "onnx": (
        *(*COMMON, BatchHeads(), FlattenHead(), DenseShuffles(), PatchStem()),
        *(RepeatChannels(), RepeatPlanes(), PadHidden(), FactorSlopes()),
    ),
    "tflite": (*(each for each in REWRITES["tflite"] if each.name not in FLOAT_ONLY), BlockStem()),
}
