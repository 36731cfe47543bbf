"""1×1 convolutions whose outputs do not fill the tiles of a matrix kernel."""

from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatMobileFormer, FlatPlainBlock
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.merge_groups import MIN_GROUP, TILE, absorb_shuffles, merge_


class FillTiles(Rewrite):
    """Outputs of a group are filled up with zeros to a multiple of eight; who reads them leaves those out.

    XNNPACK computes eight outputs at a time, but where their number leaves more than one place empty it takes
    a kernel for two, at up to twice the cost (measured on cortex-a76). Groups of three or six outputs are
    merged only as far as a tile goes. For the convolutions that narrow a map on its way to a bridge, which
    takes planes: there the zeros are left out by a copy of whole planes. Precedes MergeGroups.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, FlatMobileFormer):
            return graph
        filled = [_fill(block, *place) for block in graph.module.features for place in _closing(block)]
        return graph.rewritten(self.name, graph.module) if any(filled) else graph


def _closing(block: nn.Module) -> list[tuple[nn.Sequential, int]]:
    """Where the 1×1 convolutions are that narrow a map: a sequence, and the place in it.

    A plain block with a residual stays in NHWC: two transpositions cost what the tiles gain.
    """
    if isinstance(block, FlatPlainBlock):
        return [] if block.residual else [(block.conv, 4)]
    assert isinstance(block, FlatBlock)
    return [(block.stage(name), 0) for name in (("conv2", "conv4") if block.down else ("conv3",))]


def _fill(block: nn.Module, stage: nn.Sequential, place: int) -> bool:
    """Fill up one convolution, where it is worth it; whether it was."""
    conv = stage[place]
    assert isinstance(conv, nn.Conv2d)
    outputs = conv.out_channels // conv.groups
    if conv.groups > 1:
        if outputs >= TILE:
            return False
        bottleneck = isinstance(block, FlatBlock) and not block.down
        merge_(conv, conv.groups if bottleneck and conv.out_channels <= MIN_GROUP else TILE // outputs)
        if bottleneck:
            absorb_shuffles(block)
    elif outputs % TILE in (0, TILE - 1):
        return False
    stage[place] = FilledConv2d(conv)
    return True


class FilledConv2d(nn.Module):
    """(N, C, H, W) to (N, C', H, W): a 1×1 convolution with zero outputs behind those of each group."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        assert source.bias is not None
        groups, outputs = source.groups, source.out_channels // source.groups
        self.outputs = outputs
        fill = -outputs % TILE
        self.conv = nn.Conv2d(source.in_channels, groups * (outputs + fill), 1, groups=groups)
        weight = F.pad(source.weight.unflatten(0, (groups, outputs)), (0, 0, 0, 0, 0, 0, 0, fill))
        self.conv.weight = nn.Parameter(weight.flatten(0, 1), requires_grad=False)
        bias = F.pad(source.bias.unflatten(0, (groups, outputs)), (0, fill))
        self.conv.bias = nn.Parameter(bias.flatten(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        # Without a leading one, the planes have the shape of the heads that read them.
        lead = () if y.shape[0] == 1 else y.shape[:1]
        planes = y.reshape(*lead, self.conv.groups, -1, y.shape[2] * y.shape[3])
        return planes[..., : self.outputs, :].reshape(y.shape[0], -1, *y.shape[2:])
