"""Softmax over few tokens, whose sum is a few additions of whole maps."""

from torch import Tensor

from mf_deploy.export.lower.batch_heads import BatchedFormerToMobile
from mf_deploy.export.lower.graph import DeployGraph, Rewrite

MIN_POSITIONS = 28 * 28
FEW = 3
"""XNNPACK adds up seven rows at a time, however few there are: in half precision 54 k instructions for
3 × 6272 numbers, and 12 k in two additions; in single precision both cost about the same."""


class AddTokens(Rewrite):
    """Σe over three tokens as two additions, on maps of 28 × 28 positions and more. Follows BatchHeads."""

    def apply(self, graph: DeployGraph) -> DeployGraph:
        return graph.recast(self.name, {BatchedFormerToMobile: AddingFormerToMobile})


class AddingFormerToMobile(BatchedFormerToMobile):
    """``BatchedFormerToMobile`` that adds up few tokens one by one."""

    def softmax(self, scores: Tensor) -> Tensor:
        tokens, positions = scores.shape[-2:]
        if tokens > FEW or positions < MIN_POSITIONS:
            return super().softmax(scores)
        exp = (scores - scores.amax(-2, keepdim=True)).exp()
        total = exp[..., :1, :]
        for token in range(1, tokens):
            total = total + exp[..., token : token + 1, :]
        return exp / total
