"""Cross-layer equalization: the channels between two convolutions get ranges that int8 likes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import BottleneckBlock, DownBlock

SMALLEST = 0.02
"""No channel is scaled up more than fifty times: a dead one would swallow the weights of its reader."""


@dataclass(frozen=True)
class Equalize(Rewrite):
    """Divide a channel by s before a dynamic ReLU, and multiply the weights that read it by s.

    Exact: max(a1·x/s, a2·x/s) = max(a1·x, a2·x)/s for s > 0, so a dynamic ReLU lets a scale through
    (Nagel et al., arXiv 1906.04721, section 4.1, for ReLU). A depthwise reader has one scale a channel for
    its weights, so its inputs get the same range for nothing: s = peak. A dense reader shares the range of
    its inputs between activations and weights: s = √(peak of the channel / peak of its weights)
    (Xiao et al., arXiv 2211.10438, with α = ½). Follows FoldBatchNorm.

    ``peaks``: path of a convolution → largest |input| of each channel, (C,), as calibration saw it.
    """

    peaks: Mapping[str, Tensor] = field(default_factory=dict)

    def apply(self, graph: DeployGraph) -> DeployGraph:
        pairs = list(equalizable(graph.module))
        for first, reader_path, reader in pairs:
            scale_between_(first, reader, channel_scales(self.peaks[reader_path], reader))
        return graph.rewritten(self.name, graph.module) if pairs else graph


def equalizable(module: nn.Module) -> Iterator[tuple[nn.Sequential, str, nn.Conv2d]]:
    """(convolution and what follows it, path of its reader, the reader) around each dynamic ReLU."""
    for path, block in module.named_modules():
        if isinstance(block, BottleneckBlock):
            names = (("conv1", "conv2"), ("conv2", "conv3"))
        elif isinstance(block, DownBlock):
            names = (("conv1", "conv2"), ("conv3", "conv4"))
        else:
            continue
        for first, reader in names:
            yield block.get_submodule(first), f"{path}.{reader}.0", block.get_submodule(f"{reader}.0")


def channel_scales(peak: Tensor, reader: nn.Conv2d) -> Tensor:
    """s for each input channel of ``reader``, (C,), at most 1."""
    peak = peak.to(reader.weight.dtype)
    scales = peak / peak.max()
    if reader.groups != reader.in_channels:
        weights = by_input_channel(reader).abs().amax((1, 2))
        scales = (scales / (weights / weights.max()).clamp_min(SMALLEST)).sqrt()
    return (scales / scales.max()).clamp_min(SMALLEST)


def by_input_channel(conv: nn.Conv2d) -> Tensor:
    """The weights as (input channel, output channel of its group, taps)."""
    grouped = conv.weight.flatten(2).unflatten(0, (conv.groups, -1))  # group, output, input, tap
    return grouped.transpose(1, 2).flatten(0, 1)


def scale_between_(first: nn.Sequential, reader: nn.Conv2d, scales: Tensor) -> None:
    """Divide what ``first`` gives by ``scales`` and multiply what ``reader`` weighs, in place."""
    conv = first[0]
    order = torch.arange(len(scales), dtype=scales.dtype)[None, :, None, None]
    for shuffle in list(first)[1:]:
        order = shuffle(order)
    outputs = torch.empty_like(scales)
    outputs[order.flatten().long()] = scales
    conv.weight.data = conv.weight / outputs.view(-1, 1, 1, 1)
    conv.bias.data = conv.bias / outputs
    grouped = reader.weight.unflatten(0, (reader.groups, -1))
    by_group = scales.view(reader.groups, 1, -1, 1, 1)
    reader.weight.data = (grouped * by_group).flatten(0, 1)
