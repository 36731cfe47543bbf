"""Channel shuffles that move blocks of channels within each position."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.merge_groups import select_
from mf_deploy.models.mobile_former import ChannelShuffle


class BlockShuffles(Rewrite):
    """Between two 1×1 convolutions of g groups, each group takes a block of channels from each other.

    The order within a group is the weights': so one transposition of blocks in NHWC is enough, g² of them a
    position, where a shuffle of single channels takes three: to planes, of planes, and back. Follows
    MergeGroups, where the channels of a group divide by g.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, FlatMobileFormer):
            return graph
        blocks = [each for each in graph.module.features if isinstance(each, FlatBlock) and not each.down]
        found = [block for block in blocks if _shuffles_blocks(block)]
        for block in found:
            _rewrite(block)
        return graph.rewritten(self.name, graph.module) if found else graph


def _shuffles_blocks(block: FlatBlock) -> bool:
    shuffle, project = block.stage("conv1")[-1], block.stage("conv3")[0]
    if not isinstance(shuffle, ChannelShuffle) or not isinstance(project, nn.Conv2d):
        return False
    return project.groups == shuffle.groups and project.in_channels % shuffle.groups**2 == 0


def _rewrite(block: FlatBlock) -> None:
    """Shuffle blocks, and give all that follows up to the projection its channels in their order."""
    expand, depthwise, project = block.stage("conv1"), block.stage("conv2")[0], block.stage("conv3")[0]
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(project, nn.Conv2d)
    groups, channels = project.groups, project.in_channels
    within = torch.arange(channels // groups).view(-1, groups).t().flatten()
    order = torch.cat([within + group * len(within) for group in range(groups)])
    expand[-1] = BlockShuffle(groups)
    for name in block.hyper:
        block.relu(name).permute_(order)
    select_(depthwise, order)
    project.weight = nn.Parameter(project.weight[:, within], requires_grad=False)


class BlockShuffle(nn.Module):
    """(N, C, H, W), which lies there as NHWC: block b of group a becomes block a of group b."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        blocks = x.permute(0, 2, 3, 1).reshape(batch * height * width, self.groups, self.groups, -1)
        return blocks.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
