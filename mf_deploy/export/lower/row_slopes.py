"""Slopes of the dynamic ReLUs in the layout of the maps that they multiply."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatDynamicReLU, FlatMobileFormer
from mf_deploy.export.lower.fold_scales import SlopeClip
from mf_deploy.export.lower.graph import DeployGraph, Rewrite

NARROW = 48
"""Channels below which a row is several positions: 36 at 56×56 take 130 k instructions a product for 182 k,
and the reshape 57 k (measured on cortex-a76)."""

WIDE = 4


class RowSlopes(Rewrite):
    """The linear layers of the slopes as 1×1 convolutions on the first token, (N, D, 1, 1).

    The last one becomes two, for a1 − 1 and for a2: what comes out has its clip fused and is a row of
    channels as the map is one, so that nothing is reshaped or sliced. An engine starts anew for every row:
    few channels are multiplied four positions at a time, by slopes that are there four times. Follows
    FoldSlopes; slopes that differ from place to place (spatial) are left alone.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, FlatMobileFormer):
            return graph
        blocks = [each for each in graph.module.features if type(each) is FlatBlock and not each.spatial]
        for block in blocks:
            block.__class__ = RowSlopesBlock
            for relu in block.hyper.values():
                assert isinstance(relu, FlatDynamicReLU)
                first, last = relu.hyper[0], relu.hyper[2]
                assert isinstance(first, nn.Linear)
                assert isinstance(last, nn.Linear)
                assert isinstance(relu.hyper[3], SlopeClip)
                times = WIDE if relu.channels < NARROW else 1
                slopes = nn.ModuleList(pointwise(last, rows, times) for rows in both_slopes(relu.channels))
                relu.hyper = nn.Sequential(pointwise(first), nn.ReLU(), slopes)
                relu.__class__ = RowDynamicReLU
        return graph.rewritten(self.name, graph.module) if blocks else graph


def both_slopes(channels: int) -> tuple[slice, slice]:
    """The outputs that are a1, and those that are a2."""
    return slice(channels), slice(channels, 2 * channels)


def pointwise(layer: nn.Linear, rows: slice = slice(None), times: int = 1) -> nn.Conv2d:
    """Some outputs of a linear layer, ``times`` over, as a 1×1 convolution."""
    weight, bias = layer.weight[rows].repeat(times, 1), layer.bias[rows].repeat(times)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    conv.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


class RowSlopesBlock(FlatBlock):
    """``FlatBlock`` whose dynamic ReLUs take the first token as (N, D, 1, 1)."""

    def convolve(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        rows = tokens[..., :1, :].reshape(x.shape[0], 1, 1, -1)
        return super().convolve(x, rows.permute(0, 3, 1, 2), attention)


class RowDynamicReLU(FlatDynamicReLU):
    """``FlatDynamicReLU`` for one driving token, (N, D, 1, 1)."""

    def forward(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        hidden, lasts = self.hyper[:2](tokens), self.hyper[2]
        assert isinstance(lasts, nn.ModuleList)
        a1, a2 = (F.hardtanh(conv(hidden)) for conv in lasts)
        times, width = a1.shape[1] // self.channels, x.shape[3]
        if width % times:
            a1, a2, times = a1[:, : self.channels], a2[:, : self.channels], 1
        if times == 1:
            return torch.maximum((a1 + 1) * x, a2 * x)
        rows = x.permute(0, 2, 3, 1)
        wide = rows.reshape(*rows.shape[:2], width // times, -1).permute(0, 3, 1, 2)
        y = torch.maximum((a1 + 1) * wide, a2 * wide).permute(0, 2, 3, 1)
        return y.reshape(rows.shape).permute(0, 3, 1, 2)
