"""Depthwise convolutions with a channel multiplier that halve the map, in parts."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise, repeat
from mf_deploy.export.lower.repeat_rows import RowRepeatedDepthwise

PARTS = 3
"""Measured on cortex-a76: six filters a channel as three convolutions take fewer instructions than as two,
for maps of 12 to 64 channels."""


class SplitRepeats(Rewrite):
    """Six filters a channel at stride 2: the input twice, then three convolutions side by side.

    Their outputs, which are joined, are a quarter of the inputs that need not be copied. Follows RepeatRows.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        found = [(name, each) for name, each in graph.module.named_modules() if _is_split(each)]
        for name, module in found:
            assert isinstance(module, RepeatedDepthwise)
            graph.module.set_submodule(name, SplitDepthwise(module))
        return graph.rewritten(self.name, graph.module) if found else graph


def _is_split(module: nn.Module) -> bool:
    if not isinstance(module, RepeatedDepthwise):
        return False
    return module.conv.stride == (2, 2) and module.times > PARTS and module.times % PARTS == 0


class SplitDepthwise(nn.Module):
    """(N, C, H, W) to (N, e·C, H/2, W/2) through three plain depthwise convolutions."""

    def __init__(self, source: RepeatedDepthwise) -> None:
        super().__init__()
        self.times = source.times // PARTS
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
        if self.rows:
            copies = repeat(x.permute(0, 2, 3, 1), self.times, axis=-1).permute(0, 3, 1, 2)
        else:
            batch, _, height, width = x.shape
            copies = repeat(x.flatten(2), self.times).view(batch, -1, height, width)
        parts = [conv(copies).permute(0, 2, 3, 1) for conv in self.convs]
        return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)
