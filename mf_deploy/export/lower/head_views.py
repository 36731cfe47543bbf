"""Feature maps that go over into attention heads, and back, without a copy."""

from itertools import pairwise

import torch
from torch import Tensor

from mf_deploy.export.lower.batch_heads import BatchedFormerToMobile, map_heads
from mf_deploy.export.lower.fill_tiles import FilledConv2d
from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer, FlatPlainBlock
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise
from mf_deploy.export.lower.row_slopes import RowSlopesBlock
from mf_deploy.export.lower.split_repeats import SplitDepthwise
from mf_deploy.models.mobile_former import BRIDGE_HEADS, ChannelShuffle


class HeadViews(Rewrite):
    """The residual is added to heads, (…, heads, C/heads, HW), and the map is transposed as heads.

    XNNPACK gives a reshaped tensor the memory of the other one only where each has one reader; elsewhere it
    copies. So shapes change on the side of the convolutions, before a transposition or behind it. Follows
    BatchHeads, RowSlopes and FillTiles.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        found = [each for each in model.features if type(each) is RowSlopesBlock and _fits(each)]
        for block in found:
            block.__class__ = HeadViewsBlock
        for plain, block in pairwise(model.features):
            if isinstance(plain, FlatPlainBlock) and isinstance(block, HeadViewsBlock):
                block.takes_rows = not isinstance(plain.conv[4], FilledConv2d)
        return graph.rewritten(self.name, model) if found else graph


def _fits(block: RowSlopesBlock) -> bool:
    return isinstance(block.global_local, BatchedFormerToMobile) and not (block.down and block.residual)


class HeadViewsBlock(RowSlopesBlock):
    """``RowSlopesBlock`` that adds its residual to heads.

    ``takes_rows``: its map comes from a convolution, in NHWC, and not from another block as heads.
    """

    takes_rows = False

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        heads = map_heads(self.flat(x))
        tokens = self.global_block(self.local_global(self.flat(x), tokens))
        kept = self.takes_rows or self._repeats_planes()
        y = self.convolve(x if kept else _rows_of_heads(heads, x.shape), tokens, None)
        shape = y.shape
        y = map_heads(self.flat(y)) if self._gives_planes() else self._heads_of_rows(y)
        y = heads + y if self.residual else y
        return self.global_local(y.flatten(-3, -2), tokens).view(shape), tokens

    def _repeats_planes(self) -> bool:
        """Whether the first convolution copies whole planes."""
        first = self.stage("conv1")[0]
        return type(first) is RepeatedDepthwise or (isinstance(first, SplitDepthwise) and not first.rows)

    def _gives_planes(self) -> bool:
        """Whether what follows the last convolution leaves whole planes."""
        last = self.stage("conv4" if self.down else "conv3")
        return isinstance(last[0], FilledConv2d) or isinstance(last[-1], ChannelShuffle)

    def _heads_of_rows(self, x: Tensor) -> Tensor:
        """(N, C, H, W), which lies there as NHWC, as (…, heads, C/heads, HW)."""
        rows = x.permute(0, 2, 3, 1).reshape(*self.lead, -1, BRIDGE_HEADS, x.shape[1] // BRIDGE_HEADS)
        return rows.movedim(-3, -1)


def _rows_of_heads(heads: Tensor, shape: torch.Size) -> Tensor:
    """(…, heads, C/heads, HW) as (N, C, H, W), which lies there as NHWC."""
    batch, channels, height, width = shape
    return heads.movedim(-1, -3).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
