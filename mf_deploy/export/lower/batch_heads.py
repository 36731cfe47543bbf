"""Attention heads as one batched matrix product over views of the feature map."""

from torch import Tensor, nn

from mf_deploy.export.lower.constant_tokens import ConstantMobileToFormer
from mf_deploy.export.lower.flatten_tokens import FlatFormer, FlatFormerToMobile, FlatMobileToFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import BRIDGE_HEADS, FORMER_HEADS


class BatchHeads(Rewrite):
    """(…, C, HW) seen as (…, heads, C/heads, HW): the map is never sliced or copied for its heads.

    Only the few tokens change their layout. The softmax of the positions over the tokens is taken
    along a strided axis, where every step is an elementwise operation on whole maps; along the last
    axis an engine starts anew for each row of three to six numbers.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        kinds = {
            FlatMobileToFormer: BatchedMobileToFormer,
            ConstantMobileToFormer: ConstantBatchedMobileToFormer,
            FlatFormer: BatchedFormer,
            FlatFormerToMobile: BatchedFormerToMobile,
        }
        return graph.recast(self.name, kinds)


def map_heads(x: Tensor) -> Tensor:
    """(…, C, HW) as (…, heads, C/heads, HW); a view."""
    return x.unflatten(-2, (BRIDGE_HEADS, -1))


def token_heads(tokens: Tensor, heads: int) -> Tensor:
    """(…, T, C) as (…, heads, T, C/heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(-2, -3)


def join_heads(tokens: Tensor) -> Tensor:
    """(…, heads, T, d) as (…, T, heads·d)."""
    return tokens.transpose(-2, -3).flatten(-2)


class BatchedMobileToFormer(FlatMobileToFormer):
    """``FlatMobileToFormer`` with both heads in one product."""

    layer_norm: nn.LayerNorm
    proj: nn.Linear

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        query, gate = self.query_and_gate(tokens)
        heads = map_heads(x)
        attended = join_heads(self.weigh(token_heads(query, BRIDGE_HEADS) @ heads, heads))
        return self.layer_norm(tokens + self.proj(attended * gate))

    def weigh(self, scores: Tensor, heads: Tensor) -> Tensor:
        """Positions weighed by the softmax of their scores: (…, T, HW) and (…, d, HW) to (…, T, d)."""
        return scores.softmax(-1) @ heads.transpose(-1, -2)


class ConstantBatchedMobileToFormer(BatchedMobileToFormer, ConstantMobileToFormer):
    """The same with a constant query and gate."""


class BatchedFormer(FlatFormer):
    """``FlatFormer`` with all heads in one product."""

    def attend(self, tokens: Tensor) -> Tensor:
        heads = token_heads(tokens, FORMER_HEADS)
        weights = (token_heads(self.q(tokens), FORMER_HEADS) @ heads.transpose(-1, -2)).softmax(-1)
        return join_heads(weights @ heads)


class BatchedFormerToMobile(FlatFormerToMobile):
    """``FlatFormerToMobile`` with both heads in one product; the map keeps its layout."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        key, value, heads = self.k(tokens), self.proj(tokens), map_heads(x)
        weights = self.softmax(token_heads(key, BRIDGE_HEADS) @ heads)
        attended = token_heads(value, BRIDGE_HEADS).transpose(-1, -2) @ weights
        return (heads + attended).flatten(-3, -2)

    def softmax(self, scores: Tensor) -> Tensor:
        """Over the tokens of (…, T, HW), along the axis before the last one, step by step."""
        exp = (scores - scores.amax(-2, keepdim=True)).exp()
        return exp / exp.sum(-2, keepdim=True)
