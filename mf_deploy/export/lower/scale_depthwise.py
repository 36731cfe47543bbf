"""One of the two multiplications of a dynamic ReLU moves into the depthwise convolution beside it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatDynamicReLU, FlatMobileFormer
from mf_deploy.export.lower.fold_scales import SlopeClip
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import ChannelShuffle

SMALLEST_GAIN = 2.0**-60
WIDE = 28


class ScaleDepthwise(Rewrite):
    """max(a1·u, a2·u) = a1·max(u, r·u) = max(v, r·v) with r = a2/a1 and v = a1·u, for a1 > 0.

    A depthwise convolution is linear in each channel, so a1 need not multiply the whole map. In a block
    that halves the map it scales the few weights of the convolution before the dynamic ReLU. In a
    bottleneck the gains before and after the depthwise convolution are taken together with its bias:
    a1(after)·(a1(before)·w∗y + b), one pass, and w stays a constant, which x86 keeps in its blocked layout.
    One pass over the map goes away for each dynamic ReLU.

    a1 = 1 + clip(v₁/3, −1, 1) ≥ 0 may be zero; it is taken as 2⁻⁶⁰ there. Nothing is lost: r·a1 = a2
    holds to one rounding whatever a1 is, so y changes by at most 2⁻⁶⁰·|u|. float32 has room for 2⁻⁶⁰ and
    2⁶⁰; half precision and integers have not, so ``unscale`` takes the rewrite back for those.

    For one image only: the weights become those of an image. Spatial slopes differ from place to place.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer) or graph.batch != 1:
            return graph
        blocks = [block for block in model.features if type(block) is FlatBlock and not block.spatial]
        for block in blocks:
            if block.down:
                delay_shuffle_(block, "conv1", ["hyper1"], "conv2")
                delay_shuffle_(block, "conv3", ["hyper3"], "conv4")
            else:
                delay_shuffle_(block, "conv1", ["hyper1", "hyper2"], "conv3", past="conv2")
            block.__class__ = ScaledBlock
        return graph.rewritten(self.name, model) if blocks else graph


def unscale(module: nn.Module) -> None:
    """Take the rewrite back, in place: the slopes multiply the maps again, and weights are constants."""
    for block in [each for each in module.modules() if isinstance(each, ScaledBlock)]:
        setattr(block, "__class__", FlatBlock)  # noqa: B010 (mypy takes the assignment for a mistake)


def delay_shuffle_(
    block: FlatBlock, name: str, relus: list[str], following: str, past: str | None = None
) -> None:
    """Shuffle after the dynamic ReLUs and the depthwise convolution ``past``: they keep channels apart."""
    stage = block.stage(name)
    shuffles = [index for index, layer in enumerate(stage) if isinstance(layer, ChannelShuffle)]
    if not shuffles:
        return
    shuffle = stage[shuffles[0]]
    stage[shuffles[0]] = nn.Identity()
    channels = torch.arange(block.relu(relus[0]).channels)
    order = shuffle(channels.view(1, -1, 1, 1)).flatten().argsort()
    for relu in relus:
        block.relu(relu).permute_(order)
    if past is not None:
        conv = block.stage(past)[0]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        conv.weight = nn.Parameter(conv.weight[order], requires_grad=False)
        conv.bias = nn.Parameter(conv.bias[order], requires_grad=False)
    block.mobile[following] = nn.Sequential(shuffle, *block.stage(following))


class ScaledBlock(FlatBlock):
    """``FlatBlock`` for one image whose depthwise convolutions carry the first slopes."""

    def convolve(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        conv, first = self.mobile, tokens[:1]
        gain, ratio = gain_and_ratio(self.relu("hyper1"), first)
        if self.down:
            y = conv["conv2"](leak(scaled_stage(self.stage("conv1"), x, gain, gain), ratio))
            gain, ratio = gain_and_ratio(self.relu("hyper3"), first)
            return conv["conv4"](leak(scaled_stage(self.stage("conv3"), y, gain, gain), ratio)) + y
        depthwise = self.stage("conv2")[0]
        assert isinstance(depthwise, nn.Conv2d)
        y = leak(conv["conv1"](x), ratio)
        after, next_ratio = gain_and_ratio(self.relu("hyper2"), first)
        y = scale_and_shift(
            depthwise._conv_forward(y, depthwise.weight, None), gain * after, depthwise.bias * after
        )
        return conv["conv3"](leak(y, next_ratio))[..., : x.shape[-1]]


def gain_and_ratio(relu: FlatDynamicReLU, token: Tensor) -> tuple[Tensor, Tensor]:
    """a1 and a2/a1, (1, C), of a dynamic ReLU for one token (1, D)."""
    last, clip = relu.hyper[2], relu.hyper[3]
    assert isinstance(last, nn.Linear)
    assert isinstance(clip, SlopeClip)
    hidden, channels = relu.hyper[:2](token), relu.channels
    a1, a2 = (
        F.linear(hidden, weight, bias)
        for weight, bias in zip(
            last.weight.split(channels), (last.bias + clip.shift).split(channels), strict=True
        )
    )
    a1, a2 = a1.clamp(SMALLEST_GAIN, 2.0), a2.clamp(-1.0, 1.0)
    return a1, a2 / a1


def scale_and_shift(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """gain·x + bias for each channel, gain and bias (1, C): a batch norm, which engines take in one pass."""
    zeros = torch.zeros_like(bias.flatten())
    return F.batch_norm(x, zeros, zeros + 1, gain.flatten(), bias.flatten(), eps=0.0)


def leak(x: Tensor, ratio: Tensor) -> Tensor:
    """max(x, r·x) for maps (1, C, H, W) or rows (HW, C), and r as (1, C).

    On narrow maps r·x is a batch norm, too: a product starts anew for each channel, at twice the price.
    """
    if x.dim() == 2:
        return torch.maximum(x, x * ratio)
    if x.shape[-1] < WIDE:
        return torch.maximum(x, scale_and_shift(x, ratio, torch.zeros_like(ratio)))
    return torch.maximum(x, ratio.view(1, -1, 1, 1) * x)


def scaled_stage(stage: nn.Sequential, x: Tensor, weight_gain: Tensor, bias_gain: Tensor) -> Tensor:
    """A stage whose depthwise convolution has weights and bias scaled by gains, (1, C), per output."""
    conv = stage[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    # Channels last for the product: an engine starts anew for every row of three.
    weight = (conv.weight.permute(1, 2, 3, 0) * weight_gain).permute(3, 0, 1, 2)
    return stage[1:](conv._conv_forward(x, weight, conv.bias * bias_gain.flatten()))
