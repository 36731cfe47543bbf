"""The classifier's pooled features as rows."""

from torch import nn

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite


class FlattenHead(Rewrite):
    """(N, C, 1, 1) becomes (N, C) before the h_swish, v · h_sigmoid(v), not after it.

    Engines that broadcast a scalar over the last axis start anew for every channel when that axis is 1.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer) or len(model.classifier.avgpool) != 2:
            return graph
        model.classifier.avgpool.insert(1, nn.Flatten())
        return graph.rewritten(self.name, model)
