"""LayerNorm spelled out for engines that have no kernel for it."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite


class SplitLayerNorm(Rewrite):
    """(c / √(mean(c²) + ε))·γ + β with c = x − mean(x), on the tokens' own shape.

    The converter's expansion reshapes every intermediate; this one is eight operations.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.LayerNorm):
                last = name.startswith("local_global.")  # of the token that the head reads
                rows = model.tokens[..., :1, :1] if last else model.tokens[..., :1]
                model.set_submodule(name, ElementaryLayerNorm(module, rows))
        return graph.rewritten(self.name, model)


class ElementaryLayerNorm(nn.Module):
    """``nn.LayerNorm`` over the last axis, for tokens of which ``rows`` has the shape (…, T, 1)."""

    epsilon: Tensor

    def __init__(self, source: nn.LayerNorm, rows: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias
        # One for each row: the converter would add a number without the last axis, and reshape the sum.
        self.register_buffer("epsilon", torch.full_like(rows, source.eps))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred * (variance + self.epsilon).rsqrt() * self.weight + self.bias
