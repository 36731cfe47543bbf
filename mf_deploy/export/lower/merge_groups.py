"""Grouped 1×1 convolutions whose groups are smaller than a matrix kernel's tile."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import ChannelShuffle

# Output channels of a group below which two groups cost less as one with zeros between them
# (measured on cortex-a76, whose kernels compute eight output channels at a time).
MIN_GROUP = 12
TILE = 8
"""Output channels that a matrix kernel computes at a time."""


class MergeGroups(Rewrite):
    """Merge neighbouring groups until each has 12 output channels; the weights between them are zero.

    Where one group is left, the channel shuffle beside it becomes an order of its weights.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, FlatMobileFormer):
            return graph
        convs = [m for m in graph.module.modules() if isinstance(m, nn.Conv2d) and _is_small(m)]
        for conv in convs:
            merge_(conv, filling(conv))
        for block in graph.module.features:
            if isinstance(block, FlatBlock) and not block.down:
                absorb_shuffles(block)
        return graph.rewritten(self.name, graph.module) if convs else graph


def _is_small(conv: nn.Conv2d) -> bool:
    outputs = conv.out_channels // conv.groups
    return conv.groups > 1 and conv.kernel_size == (1, 1) and outputs < MIN_GROUP and outputs != TILE


def filling(conv: nn.Conv2d) -> int:
    """How many groups are merged, so that each has ``MIN_GROUP`` output channels or one is left."""
    rows = conv.out_channels // conv.groups
    return next(
        f
        for f in range(2, conv.groups + 1)
        if conv.groups % f == 0 and (rows * f >= MIN_GROUP or f == conv.groups)
    )


def merge_(conv: nn.Conv2d, factor: int) -> None:
    """Merge each ``factor`` neighbouring groups of ``conv``, in place."""
    rows, columns = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    merged = conv.weight.new_zeros(conv.out_channels, columns * factor, 1, 1)
    for group in range(conv.groups):
        place = group % factor * columns
        part = slice(group * rows, (group + 1) * rows)
        merged[part, place : place + columns] = conv.weight[part]
    conv.weight = nn.Parameter(merged, requires_grad=False)
    conv.groups //= factor


def absorb_shuffles(block: FlatBlock) -> None:
    """Drop the shuffles of a bottleneck whose projection is dense: it can read and write any order."""
    expand, depthwise, project = (block.mobile[name] for name in ("conv1", "conv2", "conv3"))
    conv = project[0]
    if not isinstance(conv, nn.Conv2d) or conv.groups > 1 or not isinstance(expand[-1], ChannelShuffle):
        return
    order = shuffled_order(expand[-1], expand[0].out_channels).argsort()
    for slopes in block.hyper.values():
        slopes.permute_(order)
    select_(depthwise[0], order)
    conv.weight = nn.Parameter(conv.weight[:, order], requires_grad=False)
    expand[-1] = nn.Identity()
    if isinstance(project[-1], ChannelShuffle):
        select_(conv, shuffled_order(project[-1], conv.out_channels))
        project[-1] = nn.Identity()


def shuffled_order(shuffle: ChannelShuffle, channels: int) -> Tensor:
    """For each channel after the shuffle, the channel before it."""
    return torch.arange(channels).view(shuffle.groups, -1).t().reshape(-1)


def select_(conv: nn.Conv2d, order: Tensor) -> None:
    """Give the output channels of ``conv`` in another order, in place."""
    conv.weight = nn.Parameter(conv.weight[order], requires_grad=False)
    assert conv.bias is not None
    conv.bias = nn.Parameter(conv.bias[order], requires_grad=False)
