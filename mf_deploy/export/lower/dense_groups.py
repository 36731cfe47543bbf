"""Grouped 1×1 convolutions with few inputs a group, for integer kernels."""

from torch import nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.merge_groups import merge_, select_, shuffled_order
from mf_deploy.models.mobile_former import ChannelShuffle

SMALL_GROUP = 8
"""Input channels of a group below which a grouped convolution costs less as a dense one with zeros between
the groups (the 26M on cortex-a76: 0.48 M for 0.66 M instructions at 6 channels, but 0.20 M for 0.15 M
at 36)."""


class DenseGroups(Rewrite):
    """A convolution with fewer than eight inputs a group turns dense, and takes the shuffle behind it.

    Precedes MergeGroups.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        blocks = [each for each in model.features if isinstance(each, FlatBlock)]
        found = [stage for block in blocks for stage in block.mobile.values() if _is_small(stage[0])]
        for stage in found:
            conv = stage[0]
            merge_(conv, conv.groups)
            if isinstance(stage[-1], ChannelShuffle):
                select_(conv, shuffled_order(stage[-1], conv.out_channels))
                stage[-1] = nn.Identity()
        return graph.rewritten(self.name, model) if found else graph


def _is_small(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.groups == 1:
        return False
    return module.in_channels // module.groups < SMALL_GROUP
