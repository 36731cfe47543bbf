"""Channel repeats that stay in NHWC."""

from torch import Tensor

from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise, repeat_rows

MIN_ROW = 16


class RepeatRows(Rewrite):
    """From 16 channels on, a pixel's channels are copied side by side, also where the map comes in NCHW.

    Behind a bridge it does; left to itself, the converter then copies planes and transposes e times as much.
    Follows RepeatChannels.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        kinds = {RepeatedDepthwise: RowRepeatedDepthwise}
        return graph.recast(self.name, kinds, lambda module: module.inputs >= MIN_ROW)


class RowRepeatedDepthwise(RepeatedDepthwise):
    """``RepeatedDepthwise`` that spells its layout out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(repeat_rows(x, self.times))
