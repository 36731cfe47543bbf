"""What depends on the learned tokens alone is computed once, here."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer, FlatMobileToFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite


class ConstantTokens(Rewrite):
    """The first bridge sees the same tokens for every image: its query and its gate are constants."""

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        first = next(block for block in model.features if isinstance(block, FlatBlock))
        first.local_global = ConstantMobileToFormer(first.local_global, model.tokens)
        return graph.rewritten(self.name, model)


class ConstantMobileToFormer(FlatMobileToFormer):
    """``FlatMobileToFormer`` for tokens that never change."""

    query: Tensor
    gate: Tensor

    def __init__(self, source: FlatMobileToFormer, tokens: Tensor) -> None:
        nn.Module.__init__(self)
        self.scale, self.proj, self.layer_norm = source.scale, source.proj, source.layer_norm
        with torch.no_grad():
            query, gate = source.query_and_gate(tokens)
        self.register_buffer("query", query)
        self.register_buffer("gate", gate)

    def query_and_gate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.query, self.gate
