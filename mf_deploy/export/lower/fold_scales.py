"""Constants of the formulas move into the weights beside them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import (
    FlatDynamicReLU,
    FlatFormer,
    FlatFormerToMobile,
    FlatMobileToFormer,
)
from mf_deploy.export.lower.graph import DeployGraph, Rewrite


class FoldAttentionScale(Rewrite):
    """softmax(s·q·k): the scale s becomes part of the weights of q (of k where q is the feature map)."""

    def apply(self, graph: DeployGraph) -> DeployGraph:
        found = False
        for module in graph.module.modules():
            if isinstance(module, FlatMobileToFormer | FlatFormer):
                scale_(module.q, module.scale)
            elif isinstance(module, FlatFormerToMobile):
                scale_(module.k, module.scale)
            else:
                continue
            module.scale, found = 1.0, True
        return graph.rewritten(self.name, graph.module) if found else graph


class FoldSlopes(Rewrite):
    """The arithmetic around the h_sigmoid of every dynamic ReLU becomes one clip.

    With h_sigmoid(v) = relu6(v + 3)/6: a1 = 2·h_sigmoid(v₁) = 1 + clip(v₁/3, −1, 1) and
    a2 = 2·h_sigmoid(v₂) − 1 = clip(v₂/3, −1, 1); the thirds move into the linear layer.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        found = False
        for module in graph.module.modules():
            if isinstance(module, FlatDynamicReLU):
                last = module.hyper[2]
                assert isinstance(last, nn.Linear)
                scale_(last, 1 / 3)
                module.hyper[3] = SlopeClip(module.channels)
                module.affine, found = False, True
        return graph.rewritten(self.name, graph.module) if found else graph


class FoldGates(Rewrite):
    """2·h_sigmoid(v) = relu6(v + 3)/3: the shift joins the gate's bias, the third the projection."""

    def apply(self, graph: DeployGraph) -> DeployGraph:
        found = False
        for module in graph.module.modules():
            if isinstance(module, FlatMobileToFormer):
                gate = module.alpha[0]
                assert isinstance(gate, nn.Linear)
                gate.bias.data += 3
                module.alpha[1] = nn.ReLU6()
                module.proj.weight.data /= 3
                module.gate_gain, found = 1.0, True
        return graph.rewritten(self.name, graph.module) if found else graph


class SlopeClip(nn.Module):
    """clip(v, −1, 1) for both slopes, plus one for the first: (…, 2C) in and out."""

    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, v: Tensor) -> Tensor:
        return F.hardtanh(v) + self.shift


def scale_(layer: nn.Linear, factor: float) -> None:
    """Multiply the layer's output by ``factor``, in place."""
    layer.weight.data *= factor
    layer.bias.data *= factor
