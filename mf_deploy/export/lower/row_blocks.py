"""Blocks on small maps: the 1×1 convolutions as matrix products with packed weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.scale_depthwise import ScaledBlock, gain_and_ratio, leak, scaled_stage
from mf_deploy.export.lower.split_columns import output_widths

MAX_WIDTH = 14
MAX_DOWN_WIDTH = 7
POINTWISE = {False: ("conv1", "conv3"), True: ("conv2", "conv4")}


class RowBlocks(Rewrite):
    """Positions as rows, (H·W, C), from one depthwise convolution to the next on maps at most 14 wide.

    In a convolution the positions are columns, computed eight at a time: 49 cost as much as 56. As rows
    there are 49, and the weights are packed once. A dynamic ReLU scales whole rows, not a few positions
    of one channel after the other; and the columns of zeros that spare the depthwise kernel its edges are
    whole rows to insert. Transposing to channels and back costs less than that gains: in bottlenecks up to
    14 wide; in blocks that halve the map, and in the head, where 8 does not divide the positions.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model, found = graph.module, False
        if not isinstance(model, FlatMobileFormer):
            return graph
        widths = output_widths(model, graph.record.preprocessing.input_size)
        for block, width in widths:
            if type(block) is ScaledBlock:
                limit = MAX_DOWN_WIDTH if block.down else MAX_WIDTH
                dense = all(is_dense(block.stage(name)[0]) for name in POINTWISE[block.down])
                if dense and width <= limit and (block.down or block.stride == 1):
                    block.__class__, found = RowDownBlock if block.down else RowBottleneck, True
        conv = model.classifier.conv[1]
        if graph.batch == 1 and widths[-1][1] <= MAX_DOWN_WIDTH and is_dense(conv):
            model.classifier.conv[1], found = RowPointwise(conv), True
        return graph.rewritten(self.name, model) if found else graph


def unrow(module: nn.Module) -> None:
    """Give the head its convolution back, in place; ``unscale`` does so for the blocks."""
    for name, child in list(module.named_modules()):
        if isinstance(child, RowPointwise):
            module.set_submodule(name, child.source)


def is_dense(conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.groups == 1


class RowBottleneck(ScaledBlock):
    """An inverted bottleneck on rows."""

    def convolve(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        gain, ratio = gain_and_ratio(self.relu("hyper1"), tokens[:1])
        after, next_ratio = gain_and_ratio(self.relu("hyper2"), tokens[:1])
        depthwise = self.stage("conv2")[0]
        rows = leak(pointwise(self.stage("conv1"), to_rows(x)), ratio)
        rows = row_depthwise(depthwise, rows, x.shape[2:])
        rows = leak(rows * (gain * after) + after * depthwise.bias, next_ratio)
        return to_map(pointwise(self.stage("conv3"), rows), x.shape[2:])


class RowDownBlock(ScaledBlock):
    """Two depthwise–pointwise pairs, on rows from the first depthwise convolution on."""

    def convolve(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        gain, ratio = gain_and_ratio(self.relu("hyper1"), tokens[:1])
        maps = scaled_stage(self.stage("conv1"), x, gain, gain)
        size = maps.shape[2:]
        y = pointwise(self.stage("conv2"), leak(to_rows(maps), ratio))
        gain, ratio = gain_and_ratio(self.relu("hyper3"), tokens[:1])
        depthwise = self.stage("conv3")[0]
        rows = row_depthwise(depthwise, y, size) * gain + gain * depthwise.bias
        return to_map(pointwise(self.stage("conv4"), leak(rows, ratio)) + y, size)


class RowPointwise(nn.Module):
    """A 1×1 convolution of one image, (1, C, H, W) to (1, C', H, W), computed on rows."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return to_map(pointwise(self.source, to_rows(x)), x.shape[2:])


def to_rows(x: Tensor) -> Tensor:
    """(1, C, H, W) as (H·W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_map(rows: Tensor, size: Sequence[int]) -> Tensor:
    """(H·W, C) as (1, C, H, W)."""
    return rows.view(1, *size, -1).permute(0, 3, 1, 2)


def pointwise(conv: nn.Module, rows: Tensor) -> Tensor:
    """A 1×1 convolution on rows; ``conv`` may be the stage that it leads."""
    conv = conv[0] if isinstance(conv, nn.Sequential) else conv
    assert isinstance(conv, nn.Conv2d)
    return F.linear(rows, conv.weight.flatten(1), conv.bias)


def row_depthwise(conv: nn.Module, rows: Tensor, size: Sequence[int]) -> Tensor:
    """A 3×3 depthwise convolution of stride 1 without its bias; (H·W, C) to (H·W, e·C).

    Its columns are padded by hand: one before, and after as many as fill the kernel's vectors of four.
    """
    assert isinstance(conv, nn.Conv2d)
    height, width = size
    after = 1 + -width % 4
    grid = F.pad(rows.view(1, height, width, -1), (0, 0, 1, after)).permute(0, 3, 1, 2)
    copies = [grid.unsqueeze(2)] * (conv.out_channels // conv.in_channels)
    repeated = torch.cat(copies, dim=2).flatten(1, 2) if len(copies) > 1 else grid
    sums = F.conv2d(repeated, conv.weight, padding=(1, 0), groups=conv.out_channels)
    return sums.permute(0, 2, 3, 1)[:, :, :width].reshape(height * width, -1)
