"""Strided convolutions over wide maps, for engines that gather every other column one by one."""

from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer, FlatPlainBlock
from mf_deploy.export.lower.graph import DeployGraph, Rewrite

MIN_WIDTH = 56
MAX_FILTERS = 16


class SplitColumns(Rewrite):
    """A 3×3 convolution with stride 2: split even from odd columns once, then step through whole rows.

    Row h becomes two rows, 2h with its even columns and 2h + 1 with its odd ones, half as wide. Output
    (y, x) reads columns 2x − 1, 2x and 2x + 1, which are odd x − 1, even x and odd x: a 6×2 kernel with
    rows (0, w₁) and (w₀, w₂) in turn, vertical stride 4 and horizontal stride 1. A quarter of its taps are
    zeros; the columns are copied in whole rows all the same, which is what costs where few filters read
    them: up to 16 of a group, on maps at least 56 wide.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        width, found = graph.record.preprocessing.input_size, False
        for stage in (model.stem, *(first_stage(block) for block in model.features)):
            conv = stage[0]
            assert isinstance(conv, nn.Conv2d)
            if conv.stride != (2, 2):
                continue
            few = conv.out_channels // conv.groups <= MAX_FILTERS
            if conv.kernel_size == (3, 3) and few and width % 2 == 0 and width >= MIN_WIDTH:
                stage[0], found = ColumnConv(conv), True
            width = -(-width // 2)
        return graph.rewritten(self.name, model) if found else graph


def output_widths(model: FlatMobileFormer, input_size: int) -> list[tuple[FlatPlainBlock | FlatBlock, int]]:
    """Each block, and the width of the map that it gives."""
    width = -(-input_size // 2)
    found: list[tuple[FlatPlainBlock | FlatBlock, int]] = []
    for block in model.features:
        assert isinstance(block, FlatPlainBlock | FlatBlock)
        width = -(-width // block.stride)
        found.append((block, width))
    return found


def first_stage(block: nn.Module) -> nn.Sequential:
    """The stage of a block that reads its input, and strides where the block does."""
    if isinstance(block, FlatPlainBlock):
        return block.conv
    assert isinstance(block, FlatBlock)
    return block.stage("conv1" if block.down else "conv2")


class ColumnConv(nn.Conv2d):
    """A 3×3 convolution with stride 2 and padding 1 on even and odd columns; (N, C, H, W), W and H even."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__(source.in_channels, source.out_channels, (6, 2), stride=(4, 1), groups=source.groups)
        assert source.bias is not None
        kernel = source.weight.new_zeros(*source.weight.shape[:2], 3, 2, 2)  # row, parity, column
        kernel[..., 0, 1] = source.weight[..., 1]
        kernel[..., 1, :] = source.weight[..., ::2]
        self.weight = nn.Parameter(kernel.flatten(2, 3), requires_grad=False)
        self.bias = nn.Parameter(source.bias, requires_grad=False)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batch, channels, height, width = input.shape
        columns = input.view(batch, channels, height, width // 2, 2).transpose(-1, -2)
        rows = columns.reshape(batch, channels, 2 * height, width // 2)
        return F.conv2d(F.pad(rows, (1, 0, 2, 0)), weight, bias, self.stride, groups=self.groups)
