"""From the reference model to the graph that phones run: a visible list of exact rewrites."""

import copy

import torch
from torch import nn

from mf_deploy.artifact import Target
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export.lower.batch_heads import BatchHeads
from mf_deploy.export.lower.block_shuffles import BlockShuffles
from mf_deploy.export.lower.constant_tokens import ConstantTokens
from mf_deploy.export.lower.dense_shuffles import DenseShuffles
from mf_deploy.export.lower.fill_tiles import FillTiles
from mf_deploy.export.lower.flatten_head import FlattenHead
from mf_deploy.export.lower.flatten_tokens import FlattenTokens
from mf_deploy.export.lower.fold_batch_norm import FoldBatchNorm
from mf_deploy.export.lower.fold_scales import FoldAttentionScale, FoldGates, FoldSlopes
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.head_views import HeadViews
from mf_deploy.export.lower.merge_groups import TILE, MergeGroups
from mf_deploy.export.lower.neural_engine import NeuralEngine
from mf_deploy.export.lower.pad_columns import PadColumns
from mf_deploy.export.lower.pad_hidden import PadHidden
from mf_deploy.export.lower.repeat_channels import RepeatChannels
from mf_deploy.export.lower.repeat_pairs import RepeatPairs
from mf_deploy.export.lower.repeat_rows import RepeatRows
from mf_deploy.export.lower.row_blocks import RowBlocks
from mf_deploy.export.lower.row_slopes import RowSlopes
from mf_deploy.export.lower.scale_depthwise import ScaleDepthwise
from mf_deploy.export.lower.split_columns import SplitColumns
from mf_deploy.export.lower.split_layer_norm import SplitLayerNorm
from mf_deploy.export.lower.split_repeats import SplitRepeats
from mf_deploy.export.lower.wide_softmax import WideSoftmax
from mf_deploy.models.stored import ModelRecord

__all__ = ["REWRITES", "DeployGraph", "Rewrite", "lower", "reference_graph"]

COMMON: tuple[Rewrite, ...] = (
    FoldBatchNorm(),
    FlattenTokens(),
    FoldAttentionScale(),
    FoldSlopes(),
    FoldGates(),
    ConstantTokens(),
)

TFLITE_REPEATS: tuple[Rewrite, ...] = (*COMMON, BatchHeads(), RepeatChannels(), RepeatRows())
TFLITE_SHAPES: tuple[Rewrite, ...] = (
    MergeGroups(),
    BlockShuffles(),
    SplitLayerNorm(),
    RowSlopes(),
    WideSoftmax(),
    HeadViews(),
)
"""What float and int8 kernels share, before and after what depends on the width of their tiles."""

REWRITES: dict[Target, tuple[Rewrite, ...]] = {
    "onnx": (
        *(*COMMON, BatchHeads(), FlattenHead()),
        *(SplitColumns(), RepeatPairs(), ScaleDepthwise(), RowBlocks(), PadColumns()),
    ),
    "coreml": (*COMMON, DenseShuffles(), NeuralEngine()),
    "tflite": (
        *(*TFLITE_REPEATS, SplitRepeats(), PadHidden(TILE, grouped=False), FillTiles()),
        *TFLITE_SHAPES,
    ),
}

TOLERANCE = 1e-9


def reference_graph(model: nn.Module, record: ModelRecord, batch: int = 1) -> DeployGraph:
    """The model as its authors wrote it, as a graph that the exporters take."""
    return DeployGraph(_private_copy(model), record, batch, "reference")


def lower(
    model: nn.Module,
    record: ModelRecord,
    target: Target,
    batch: int = 1,
    rewrites: tuple[Rewrite, ...] | None = None,
) -> DeployGraph:
    """Rewrite ``model`` for the engines of ``target``, and prove that the function is the same.

    Rewriting and proof run in float64, where two formulas for one function agree to about 1e-14: a
    wrong rewrite cannot hide behind rounding. The weights are rounded to float32 once, at the end.

    Raises:
        MfDeployError: the rewritten graph differs by more than 1e-9 of the range of the logits.
    """
    exact = _private_copy(model).double()
    graph = DeployGraph(_private_copy(exact), record, batch)
    for rewrite in REWRITES[target] if rewrites is None else rewrites:
        graph = rewrite.apply(graph)
    prove_equal(exact, graph)
    graph.module.float()
    return graph


def prove_equal(exact: nn.Module, graph: DeployGraph) -> None:
    """Compare a float64 ``graph`` with the float64 model ``exact`` on normal, flat and smooth inputs."""
    normal = graph.example().double()
    smooth = nn.functional.interpolate(normal[..., ::16, ::16], normal.shape[2:], mode="bilinear") * 2
    for images in (normal, torch.zeros_like(normal), smooth):
        with torch.no_grad():
            expected, actual = exact(images), graph.module(images)
        error = (expected - actual).abs().max().item()
        spread = (expected.max() - expected.min()).item()
        if not error <= TOLERANCE * max(spread, 1e-6):
            raise MfDeployError(
                f"Lowering {graph.record.source.name} changed its function",
                f"logits differ by {error:.1e} at a range of {spread:.1e} after {', '.join(graph.rewrites)}",
                "Export with --graph reference and report this model.",
                GATE_FAILED,
            )


def _private_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
