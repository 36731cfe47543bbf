"""Dynamic ReLUs for integer kernels: one gain that the convolution carries, one bounded ratio."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatDynamicReLU, FlatMobileFormer
from mf_deploy.export.lower.fold_scales import SlopeClip
from mf_deploy.export.lower.graph import DeployGraph, Rewrite

SMALLEST_SLOPE = 2.0**-60


class FactorSlopes(Rewrite):
    """max(a1·u, a2·u) = max(v, r·v) with v = g·u: g is the larger slope in magnitude, |r| ≤ 1.

    An integer convolution multiplies its sums by a float for each channel anyway: g comes for free there,
    and u is never rounded. v and r·v share one scale, because r shrinks; their maximum is that of their
    codes. For one image: the gains become part of a weight's scale. Spatial slopes differ from place to
    place and stay as they are.

    a1 = 1 + clip(v₁/3, −1, 1) may be zero together with a2; it is taken as 2⁻⁶⁰ there.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, FlatMobileFormer) or graph.batch != 1:
            return graph
        found = [m for m in graph.module.modules() if type(m) is FlatDynamicReLU and not m.spatial]
        for relu in found:
            last, clip = relu.hyper[2], relu.hyper[3]
            assert isinstance(last, nn.Linear)
            assert isinstance(clip, SlopeClip)
            last.bias.data += clip.shift
            relu.hyper[3] = nn.Identity()
            relu.__class__ = FactoredReLU
        return graph.rewritten(self.name, graph.module) if found else graph


class FactoredReLU(FlatDynamicReLU):
    """``FlatDynamicReLU`` for one image, by gain and ratio."""

    def forward(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        a1, a2 = self.hyper(tokens[:1]).split(self.channels, dim=1)
        a1, a2 = a1.clamp(SMALLEST_SLOPE, 2.0), a2.clamp(-1.0, 1.0)
        first = a1 >= a2.abs()
        gain = torch.where(first, a1, a2)
        ratio = torch.where(first, a2, a1) / gain
        scaled = x * gain.view(1, -1, 1, 1)
        return torch.maximum(scaled, scaled * ratio.view(1, -1, 1, 1))
