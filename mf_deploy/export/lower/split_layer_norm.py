"""LayerNorm spelled out for engines that have no kernel for it."""

from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite


class SplitLayerNorm(Rewrite):
    """(c / √(mean(c²) + ε))·γ + β with c = x − mean(x), on the tokens' own shape.

    The converter's expansion reshapes every intermediate; this one is nine operations.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, FlatMobileFormer):
            return graph
        for name, module in list(graph.module.named_modules()):
            if isinstance(module, nn.LayerNorm):
                graph.module.set_submodule(name, ElementaryLayerNorm(module))
        return graph.rewritten(self.name, graph.module)


class ElementaryLayerNorm(nn.Module):
    """``nn.LayerNorm`` over the last axis."""

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = source.weight, source.bias, source.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias
