"""Depthwise convolutions with a channel multiplier, for engines that have no kernel for them."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatDynamicReLU, FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import ChannelShuffle

# Copying a pixel's few channels side by side costs about 40 instructions a copy; from three copies on it
# is then cheaper to copy whole planes and transpose the result (measured on cortex-a76).
MIN_ROW = 24
MIN_COPIES = 3


class RepeatChannels(Rewrite):
    """A depthwise convolution with multiplier e: repeat the input e times, then convolve one to one.

    Output i·e + j of the original, filter j of input i, becomes channel j·C + i. What follows takes
    that order: the slopes of the dynamic ReLU and the inputs of the 1×1 convolution are permuted.
    Where the model shuffles its channels here (the 26M), this is the shuffle: it disappears.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        for block in model.features:
            if isinstance(block, FlatBlock):
                if block.down:
                    _repeat(block.mobile["conv1"], block.hyper["hyper1"], block.mobile["conv2"][0])
                    _repeat(block.mobile["conv3"], block.hyper["hyper3"], block.mobile["conv4"][0])
            else:
                _repeat(block.conv, None, block.conv[4])
        return graph.rewritten(self.name, model)


class RepeatedDepthwise(nn.Module):
    """(N, C, H, W) to (N, e·C, H', W') through a plain depthwise convolution."""

    conv: nn.Conv2d

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.times = conv.out_channels // conv.in_channels
        channels, order = conv.out_channels, channel_order(conv)
        self.conv = nn.Conv2d(
            channels,
            channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            groups=channels,
        )
        assert conv.bias is not None
        self.conv.weight = nn.Parameter(conv.weight[order], requires_grad=False)
        self.conv.bias = nn.Parameter(conv.bias[order], requires_grad=False)

    @property
    def inputs(self) -> int:
        """Channels before the repeat."""
        return self.conv.in_channels // self.times

    @property
    def copies_planes(self) -> bool:
        """Whether it is cheaper to copy whole planes than what lies there."""
        return self.inputs < MIN_ROW and self.times >= MIN_COPIES

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((repeat_planes if self.copies_planes else repeat)(x, self.times))


def repeat(x: Tensor, times: int, axis: int = 1) -> Tensor:
    """``times`` copies along the channels, by concatenations of at most four: XNNPACK takes up to five."""
    if times <= 4:
        return torch.cat([x] * times, dim=axis)
    half = repeat(x, times // 2, axis)
    return torch.cat([half, half] if times % 2 == 0 else [half, half, x], dim=axis)


def repeat_planes(x: Tensor, times: int) -> Tensor:
    """``times`` copies of the whole planes of (N, C, H, W)."""
    return repeat(x.flatten(2), times).unflatten(2, x.shape[2:])


def repeat_rows(x: Tensor, times: int) -> Tensor:
    """``times`` copies of each pixel's channels side by side, in NHWC; (N, C, H, W) in and out."""
    return repeat(x.permute(0, 2, 3, 1), times, axis=-1).permute(0, 3, 1, 2)


def channel_order(conv: nn.Conv2d) -> Tensor:
    """For each channel of the repeated convolution, the channel of the original."""
    inputs = conv.in_channels
    return torch.arange(conv.out_channels).view(inputs, -1).t().reshape(-1)


def _repeat(stage: nn.Sequential, slopes: FlatDynamicReLU | None, following: nn.Conv2d) -> None:
    """Rewrite the depthwise convolution at the head of ``stage`` and what reads its channels."""
    conv = stage[0]
    assert isinstance(conv, nn.Conv2d)
    order = channel_order(conv)
    stage[0] = RepeatedDepthwise(conv)
    shuffles = [index for index, layer in enumerate(stage) if isinstance(layer, ChannelShuffle)]
    if shuffles:
        stage[shuffles[0]] = nn.Identity()
        return
    following.weight = nn.Parameter(following.weight[:, order], requires_grad=False)
    if slopes is not None:
        slopes.permute_(order)
