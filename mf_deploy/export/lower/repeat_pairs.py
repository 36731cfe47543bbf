"""Depthwise convolutions with two filters to a channel, for engines whose depthwise kernel has one."""

from torch import nn

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer, FlatPlainBlock
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise, channel_order
from mf_deploy.models.mobile_former import ChannelShuffle


class RepeatPairs(Rewrite):
    """The first block's multiplier 2 at stride 1: the input twice, then a convolution one to one.

    Output 2i + j of the original, filter j of input i, becomes channel j·C + i; the 1×1 convolution
    after it reads that order. A gather of columns that only two filters read costs more than the
    depthwise kernel; from three filters on, or with a stride, it is the other way round.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        found = [
            block for block in model.features if isinstance(block, FlatPlainBlock) and is_pair(block.conv)
        ]
        for block in found:
            conv, pointwise = block.conv[0], block.conv[4]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(pointwise, nn.Conv2d)
            pointwise.weight = nn.Parameter(pointwise.weight[:, channel_order(conv)], requires_grad=False)
            block.conv[0] = RepeatedDepthwise(conv)
        return graph.rewritten(self.name, model) if found else graph


def is_pair(stage: nn.Sequential) -> bool:
    """Two filters to a channel, stride 1, and no shuffle behind them."""
    conv = stage[0]
    assert isinstance(conv, nn.Conv2d)
    shuffled = any(isinstance(layer, ChannelShuffle) for layer in stage)
    return conv.out_channels == 2 * conv.groups and conv.stride == (1, 1) and not shuffled
