"""Zeros at the sides of a map before its depthwise convolution, where they cost next to nothing."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.row_blocks import RowBottleneck
from mf_deploy.export.lower.scale_depthwise import ScaledBlock
from mf_deploy.export.lower.split_columns import output_widths

NARROW = 7


class PadColumns(Rewrite):
    """In bottlenecks the first 1×1 convolution makes the padding of the depthwise convolution.

    Depthwise kernels handle the first and the last column of every row one by one. Here the 1×1
    convolution before it pads its input by a column on each side; with no bias, and with the bias as the
    weight of one more input channel that is 1 inside and 0 in the padding, W·0 + b·0 = 0 there. A dynamic
    ReLU leaves zeros alone, so the depthwise convolution needs no padding of its own in that direction.
    On maps of seven columns it computes eight, two vectors; the last one is dropped.

    Quantization would have to squeeze bias and weights into one scale: ``unpad`` takes it back.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model, found = graph.module, False
        if not isinstance(model, FlatMobileFormer):
            return graph
        widths = output_widths(model, graph.record.preprocessing.input_size)
        for block, width in widths:
            if (
                not isinstance(block, FlatBlock)
                or block.down
                or block.spatial
                or type(block) is RowBottleneck
            ):
                continue
            stage, depthwise = block.stage("conv1"), block.stage("conv2")[0]
            assert isinstance(stage[0], nn.Conv2d)
            assert isinstance(depthwise, nn.Conv2d)
            if depthwise.padding == (1, 1) and block.stride == 1:
                spare = 1 if width == NARROW and type(block) is ScaledBlock else 0
                stage[0], depthwise.padding, found = PaddedPointwise(stage[0], spare), (1, 0), True
        return graph.rewritten(self.name, model) if found else graph


def unpad(module: nn.Module) -> None:
    """Take the rewrite back, in place."""
    for block in module.modules():
        if isinstance(block, FlatBlock) and isinstance(block.mobile["conv1"], nn.Sequential):
            stage = block.stage("conv1")
            if isinstance(stage[0], PaddedPointwise):
                stage[0] = stage[0].source
                depthwise = block.stage("conv2")[0]
                assert isinstance(depthwise, nn.Conv2d)
                depthwise.padding = (1, 1)


class PaddedPointwise(nn.Module):
    """A 1×1 convolution, (N, C, H, W) to (N, C', H, W + 2 + spare), with zeros in the new columns."""

    source: nn.Conv2d

    def __init__(self, source: nn.Conv2d, spare: int = 0) -> None:
        super().__init__()
        self.source, self.spare = source, spare

    def forward(self, x: Tensor) -> Tensor:
        conv = self.source
        assert conv.bias is not None
        batch, channels, height, width = x.shape
        grouped = x.view(batch * conv.groups, channels // conv.groups, height, width)
        inside = x.new_ones(batch * conv.groups, 1, height, width)
        extended = torch.cat([grouped, inside], dim=1).view(batch, -1, height, width)
        weight = torch.cat([conv.weight, conv.bias.view(-1, 1, 1, 1)], dim=1)
        return nn.functional.conv2d(
            nn.functional.pad(extended, (1, 1 + self.spare)), weight, groups=conv.groups
        )
