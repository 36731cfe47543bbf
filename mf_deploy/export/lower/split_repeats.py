"""Depthwise convolutions with a channel multiplier that halve the map, in parts."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer, FlatPlainBlock
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise, repeat_planes, repeat_rows
from mf_deploy.export.lower.repeat_rows import RowRepeatedDepthwise

PARTS = 3
"""Measured on cortex-a76: six filters a channel as three convolutions take fewer instructions than as two,
for maps of 12 to 64 channels."""


class SplitRepeats(Rewrite):
    """Three or six filters a channel at stride 2: the input once or twice, then three convolutions.

    Their outputs, which are joined, are a quarter of the inputs that need not be copied. The activation of
    the first block moves into each of them. Follows RepeatRows.

    Args:
        least: input channels from which a convolution is split.
    """

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        stages = [
            block.conv if isinstance(block, FlatPlainBlock) else block.stage("conv1")
            for block in model.features
            if isinstance(block, FlatPlainBlock | FlatBlock)
        ]
        found = [stage for stage in stages if _is_split(stage[0], self.least)]
        for stage in found:
            _split(stage)
        return graph.rewritten(self.name, model) if found else graph


def _is_split(module: nn.Module, least: int) -> bool:
    if not isinstance(module, RepeatedDepthwise) or module.conv.in_channels < least * module.times:
        return False
    return module.conv.stride == (2, 2) and module.times % PARTS == 0


def _split(stage: nn.Sequential) -> None:
    """Split the depthwise convolution at the head of ``stage``."""
    whole, activation = stage[0], nn.Identity()
    assert isinstance(whole, RepeatedDepthwise)
    for index, layer in enumerate(stage):
        if isinstance(layer, nn.ReLU6):
            activation, stage[index] = layer, nn.Identity()
    stage[0] = SplitDepthwise(whole, activation)


class SplitDepthwise(nn.Module):
    """(N, C, H, W) to (N, e·C, H/2, W/2) through three plain depthwise convolutions."""

    def __init__(self, source: RepeatedDepthwise, activation: nn.Module) -> None:
        super().__init__()
        self.times, self.activation = source.times // PARTS, activation
        self.rows = isinstance(source, RowRepeatedDepthwise)
        whole = source.conv
        assert whole.bias is not None
        channels = whole.out_channels // PARTS
        weights, biases = whole.weight.split(channels), whole.bias.split(channels)
        self.convs = nn.ModuleList()
        for weight, bias in zip(weights, biases, strict=True):
            conv = nn.Conv2d(
                channels, channels, whole.kernel_size, whole.stride, whole.padding, groups=channels
            )
            conv.weight = nn.Parameter(weight, requires_grad=False)
            conv.bias = nn.Parameter(bias, requires_grad=False)
            self.convs.append(conv)

    def forward(self, x: Tensor) -> Tensor:
        copies = self._copies(x)
        parts = [self.activation(conv(copies)).permute(0, 2, 3, 1) for conv in self.convs]
        return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)

    def _copies(self, x: Tensor) -> Tensor:
        if self.times == 1:
            return x
        return (repeat_rows if self.rows else repeat_planes)(x, self.times)
