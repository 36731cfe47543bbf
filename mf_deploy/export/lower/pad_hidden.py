"""Bottlenecks whose hidden channels do not fill the vectors of an integer depthwise kernel."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatDynamicReLU, FlatMobileFormer
from mf_deploy.export.lower.fold_scales import SlopeClip
from mf_deploy.export.lower.graph import DeployGraph, Rewrite

# onnxruntime's integer depthwise kernel takes 8 or 16 channels at a time and the rest one by one: 980
# instructions a position for 36 channels, 376 for 48 (measured on cortex-a76).
VECTOR, ROW = 8, 16


class PadHidden(Rewrite):
    """Zero channels in the middle of a bottleneck, up to a multiple of ``row``, where 8 does not divide them.

    ``grouped``: also where its 1×1 convolutions have groups; they become dense.
    """

    def __init__(self, row: int = ROW, grouped: bool = True) -> None:
        self.row, self.grouped = row, grouped

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model, found = graph.module, False
        if not isinstance(model, FlatMobileFormer):
            return graph
        for block in model.features:
            if not isinstance(block, FlatBlock) or block.down:
                continue
            convs = [block.stage(name)[0] for name in ("conv1", "conv2", "conv3")]
            channels = block.relu("hyper1").channels
            if channels % VECTOR and all(self._takes(conv) for conv in (convs[0], convs[2])):
                make_dense_(convs[0])
                make_dense_(convs[2])
                pad_(block, -channels % self.row)
                found = True
        return graph.rewritten(self.name, model) if found else graph

    def _takes(self, conv: nn.Module) -> bool:
        return isinstance(conv, nn.Conv2d) and (self.grouped or conv.groups == 1)


def make_dense_(conv: nn.Module) -> None:
    """One group, with zeros where the groups of a 1×1 convolution do not meet, in place."""
    assert isinstance(conv, nn.Conv2d)
    rows = conv.weight.split(conv.out_channels // conv.groups)
    conv.weight = parameter(torch.block_diag(*(row.flatten(1) for row in rows))[:, :, None, None])
    conv.groups = 1


def pad_(block: FlatBlock, extra: int) -> None:
    """Give the bottleneck ``extra`` hidden channels that are zero, in place."""
    expand, depthwise, project = (block.stage(name)[0] for name in ("conv1", "conv2", "conv3"))
    for conv in (expand, depthwise):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        conv.weight = parameter(F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, extra)))
        conv.bias = parameter(F.pad(conv.bias, (0, extra)))
        conv.out_channels += extra
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(project, nn.Conv2d)
    depthwise.groups = depthwise.in_channels = depthwise.out_channels
    project.weight = parameter(F.pad(project.weight, (0, 0, 0, 0, 0, extra)))
    project.in_channels += extra
    for name in block.hyper:
        pad_slopes_(block.relu(name), extra)


def pad_slopes_(relu: FlatDynamicReLU, extra: int) -> None:
    """Slopes for ``extra`` more channels."""
    last = relu.hyper[2]
    assert isinstance(last, nn.Linear)
    rows, biases = last.weight.split(relu.channels), last.bias.split(relu.channels)
    last.weight = parameter(torch.cat([F.pad(each, (0, 0, 0, extra)) for each in rows]))
    last.bias = parameter(torch.cat([F.pad(each, (0, extra)) for each in biases]))
    relu.channels += extra
    last.out_features = 2 * relu.channels
    relu.hyper[3] = SlopeClip(relu.channels).to(last.weight.dtype)


def parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
