"""The first convolution on blocks of four pixels, for integer kernels with tiles of sixteen outputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite

BLOCK = 4
MAX_CHANNELS = 8


class BlockStem(Rewrite):
    """A 3×3 convolution with stride 2 gives two neighbouring positions of its output at once.

    Integer kernels compute sixteen outputs a step and take four inputs at a time. Eight outputs leave half
    of every step empty, and a window of nine positions with three channels each is nine steps of four.
    Seen as blocks of four pixels, (H, W/4, 12), the two windows of a block lie in it and the block to its
    left: six steps of twelve for sixteen outputs. In memory with channels last both views are the same.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model, side = graph.module, graph.record.preprocessing.input_size
        if not isinstance(model, FlatMobileFormer) or side % BLOCK:
            return graph
        conv = model.stem[0]
        assert isinstance(conv, nn.Conv2d)
        if conv.out_channels > MAX_CHANNELS:
            return graph
        model.stem[0] = BlockConv(conv)
        return graph.rewritten(self.name, model)


class BlockConv(nn.Conv2d):
    """A 3×3 convolution with stride 2 and padding 1; (N, C, H, W), H even, W a multiple of four."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__(BLOCK * source.in_channels, 2 * source.out_channels, (3, 2), stride=(2, 1))
        assert source.bias is not None
        # Output position, output, row, column from the left of the former block, channel.
        weight = source.weight.new_zeros(2, source.out_channels, 3, 2 * BLOCK, source.in_channels)
        for position in range(2):
            first = BLOCK - 1 + 2 * position
            weight[position, :, :, first : first + 3] = source.weight.permute(0, 2, 3, 1)
        blocks = weight.flatten(0, 1).unflatten(2, (2, BLOCK)).flatten(3).permute(0, 3, 1, 2)
        self.weight = nn.Parameter(blocks.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([source.bias, source.bias]), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        blocks = images.permute(0, 2, 3, 1).reshape(batch, height, width // BLOCK, -1)
        padded = F.pad(blocks, (0, 0, 1, 0, 1, 0))  # what lies left of the first block and above row 0
        pairs = F.conv2d(padded.permute(0, 3, 1, 2), self.weight, self.bias, self.stride)
        rows = pairs.permute(0, 2, 3, 1).reshape(batch, height // 2, width // 2, -1)
        return rows.permute(0, 3, 1, 2)
