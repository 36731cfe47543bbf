"""Both heads of a narrow map attended by one matrix product, for kernels with tiles of sixteen outputs."""

import torch
from torch import Tensor

from mf_deploy.export.lower.batch_heads import BatchedMobileToFormer, ConstantBatchedMobileToFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import BRIDGE_HEADS

TILE = 16


class JointHeads(Rewrite):
    """The queries of both heads times the channels of both; what mixes heads is masked away.

    Half-precision kernels compute sixteen outputs a step: six channels a head leave most of it empty, and
    the map is packed once instead of head by head. The softmax is divided after the product that it weighs,
    as in WideSoftmax. Follows BatchHeads.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        kinds = {
            BatchedMobileToFormer: JointMobileToFormer,
            ConstantBatchedMobileToFormer: ConstantJointMobileToFormer,
        }
        joined = graph.recast(self.name, kinds, lambda module: module.proj.in_features <= TILE)
        for module in [each for each in joined.module.modules() if isinstance(each, JointMobileToFormer)]:
            own = torch.eye(BRIDGE_HEADS, dtype=module.proj.weight.dtype)
            channels = module.proj.in_features // BRIDGE_HEADS
            module.register_buffer("own", own[:, None].repeat_interleave(channels, dim=2))
        return joined


class JointMobileToFormer(BatchedMobileToFormer):
    """``BatchedMobileToFormer`` with one product for both heads.

    ``own``: (heads, 1, C), 1 for the channels of a head.
    """

    own: Tensor

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        query, gate = self.query_and_gate(tokens)
        scores = (query.unsqueeze(-3) * self.own).flatten(-3, -2) @ x
        exp = (scores - scores.amax(-1, keepdim=True)).exp()
        means = (exp @ x.transpose(-1, -2)) / exp.sum(-1, keepdim=True)
        heads = means.view(*query.shape[:-2], BRIDGE_HEADS, *query.shape[-2:])
        return self.layer_norm(tokens + self.proj((heads * self.own).sum(-3) * gate))


class ConstantJointMobileToFormer(JointMobileToFormer, ConstantBatchedMobileToFormer):
    """The same with a constant query and gate."""
