"""What comes before an integer depthwise convolution with a channel multiplier, in one layout."""

import torch
from torch import Tensor

from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise


class RepeatPlanes(Rewrite):
    """Whole planes are repeated, in one concatenation: integer codes are transposed after it, not before.

    Copying the few channels of one position after another costs about 30 instructions each (measured on
    cortex-a76), the transposition of all of them less than one a channel.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        return graph.recast(self.name, {RepeatedDepthwise: RepeatedPlanes})


class RepeatedPlanes(RepeatedDepthwise):
    """``RepeatedDepthwise`` by one concatenation of the whole map."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x] * self.times, dim=1))
