"""The classifier reads the first token alone, so the last bridge updates no other."""

from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite


class FirstToken(Rewrite):
    """Tokens attend to the map independently: of the last bridge, only the first one's row is needed."""

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer) or isinstance(model.local_global, OnFirstToken):
            return graph
        model.local_global = OnFirstToken(model.local_global)
        return graph.rewritten(self.name, model)


class OnFirstToken(nn.Module):
    """A bridge from Mobile to Former, (…, C, HW) and (…, T, D) to (…, 1, D)."""

    def __init__(self, bridge: nn.Module) -> None:
        super().__init__()
        self.bridge = bridge

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        updated: Tensor = self.bridge(x, tokens[..., :1, :])
        return updated
