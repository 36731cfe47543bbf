"""Softmax over the positions of wide maps, divided after the product that it weighs."""

from torch import Tensor

from mf_deploy.export.lower.batch_heads import BatchedMobileToFormer, ConstantBatchedMobileToFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite

MIN_POSITIONS = 56 * 56


class WideSoftmax(Rewrite):
    """softmax(s)·X = (e·X) / Σe with e = exp(s − max s): the division is of tokens, not of the map.

    Follows BatchHeads. On maps of 56 × 56 positions and more, where a pass costs more than an operation.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        kinds = {
            BatchedMobileToFormer: WideMobileToFormer,
            ConstantBatchedMobileToFormer: ConstantWideMobileToFormer,
        }
        return graph.recast(self.name, kinds)


class WideMobileToFormer(BatchedMobileToFormer):
    """``BatchedMobileToFormer`` that normalises what it has summed."""

    def weigh(self, scores: Tensor, heads: Tensor) -> Tensor:
        if scores.shape[-1] < MIN_POSITIONS:
            return super().weigh(scores, heads)
        exp = (scores - scores.amax(-1, keepdim=True)).exp()
        return (exp @ heads.transpose(-1, -2)) / exp.sum(-1, keepdim=True)


class ConstantWideMobileToFormer(WideMobileToFormer, ConstantBatchedMobileToFormer):
    """The same with a constant query and gate."""
