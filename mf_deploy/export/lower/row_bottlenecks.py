"""Bottlenecks on small maps: the 1×1 convolutions as matrix products with packed weights."""

from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.scale_depthwise import ScaledBlock, gain_and_ratio, leak

MAX_WIDTH = 14


class RowBottlenecks(Rewrite):
    """Positions as rows (H·W, C) between the depthwise convolutions of maps at most 14 wide.

    As a convolution a 1×1 product has the positions as columns, computed eight at a time: 49 cost as
    much as 56, and nothing is packed ahead. As rows there are 49, and the weights are packed once. A
    dynamic ReLU then scales whole rows, not one channel's few positions after another; and the columns of
    zeros that spare the depthwise kernel its edges are whole rows to insert.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model, found = graph.module, False
        if not isinstance(model, FlatMobileFormer):
            return graph
        width = -(-graph.record.preprocessing.input_size // 2)
        for block in model.features:
            if type(block) is ScaledBlock:
                width = -(-width // block.stride)
                convs = [block.stage(name)[0] for name in ("conv1", "conv3") if not block.down]
                dense = all(isinstance(conv, nn.Conv2d) and conv.groups == 1 for conv in convs)
                if convs and dense and block.stride == 1 and width <= MAX_WIDTH:
                    block.__class__, found = RowBlock, True
        return graph.rewritten(self.name, model) if found else graph


class RowBlock(ScaledBlock):
    """``ScaledBlock`` without a stride, positions as rows except in its depthwise convolution."""

    def convolve(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        height, width = x.shape[2:]
        expand, depthwise, project = (self.stage(name)[0] for name in ("conv1", "conv2", "conv3"))
        assert isinstance(depthwise, nn.Conv2d)
        gain, ratio = gain_and_ratio(self.relu("hyper1"), tokens[:1])
        after, next_ratio = gain_and_ratio(self.relu("hyper2"), tokens[:1])
        gain, bias = gain * after, after * depthwise.bias
        ratio, next_ratio = ratio.flatten(1), next_ratio.flatten(1)
        rows = leak(pointwise(expand, x.permute(0, 2, 3, 1).reshape(height * width, -1)), ratio)
        # One column of zeros before, and after it as many as fill the kernel's vectors of four.
        more = 1 + -width % 4
        grid = F.pad(rows.view(1, height, width, -1), (0, 0, 1, more)).permute(0, 3, 1, 2)
        sums = F.conv2d(grid, depthwise.weight, padding=(1, 0), groups=depthwise.groups)
        rows = sums.permute(0, 2, 3, 1)[:, :, :width].reshape(height * width, -1)
        rows = pointwise(project, leak(rows * gain + bias, next_ratio))
        return rows.view(1, height, width, -1).permute(0, 3, 1, 2)


def pointwise(conv: nn.Module, rows: Tensor) -> Tensor:
    """A 1×1 convolution on rows, (positions, channels)."""
    assert isinstance(conv, nn.Conv2d)
    return F.linear(rows, conv.weight.flatten(1), conv.bias)
