"""Channel repeats of integer codes, four at a time."""

from torch import Tensor

from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise, repeat

WORD = 4


class RepeatWords(Rewrite):
    """Where planes are copied, four int8 channels are one 32-bit word.

    XNNPACK transposes words of 32 bits as quickly as bytes, one by one in either case: a quarter of the
    work. Follows RepeatRows.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        kinds = {RepeatedDepthwise: WordRepeatedDepthwise}
        return graph.recast(self.name, kinds, lambda of: of.copies_planes and of.inputs % WORD == 0)


class WordRepeatedDepthwise(RepeatedDepthwise):
    """``RepeatedDepthwise`` on (N, HW, C/4, 4), of which the axes in the middle change places."""

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        words = x.permute(0, 2, 3, 1).reshape(batch, height * width, -1, WORD).transpose(1, 2)
        rows = repeat(words, self.times).transpose(1, 2).reshape(batch, height, width, -1)
        return self.conv(rows.permute(0, 3, 1, 2))
