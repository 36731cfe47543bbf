"""Channel shuffles beside grouped 1×1 convolutions (the 26M), for an engine that moves channels at a cost."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatDynamicReLU, FlatMobileFormer, FlatPlainBlock
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import ChannelShuffle


class DenseShuffles(Rewrite):
    """Every channel shuffle becomes the order of the weights of one 1×1 convolution, which turns dense.

    A grouped convolution cannot read its channels in any order; a dense one with zeros between the
    groups can. A shuffle between two 1×1 convolutions moves past the depthwise convolution and the
    dynamic ReLUs between them, whose channels are permuted, so that only the second one turns dense:
    it takes both the shuffle before it and the one behind it.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model = graph.module
        if not isinstance(model, FlatMobileFormer):
            return graph
        if not any(isinstance(module, ChannelShuffle) for module in model.modules()):
            return graph
        for block in model.features:
            if isinstance(block, FlatPlainBlock):
                stage = _stage(block, "conv")
                read_shuffled_(stage, 4, take_shuffle_(stage))
            elif isinstance(block, FlatBlock) and block.down:
                _move_shuffle(block, "conv1", ["hyper1"], "conv2")
                _move_shuffle(block, "conv3", ["hyper3"], "conv4")
            elif isinstance(block, FlatBlock):
                order = _move_shuffle(block, "conv1", ["hyper1", "hyper2"], "conv3")
                reorder_outputs_(_stage(block, "mobile.conv2"), order.argsort())
                project = _stage(block, "mobile.conv3")
                reorder_outputs_(project, take_shuffle_(project))
        head = _stage(model, "classifier.conv")
        read_shuffled_(head, 1, take_shuffle_(head))
        return graph.rewritten(self.name, model)


def _stage(module: nn.Module, path: str) -> nn.Sequential:
    stage = module.get_submodule(path)
    assert isinstance(stage, nn.Sequential)
    return stage


def _move_shuffle(block: FlatBlock, behind: str, relus: list[str], reader: str) -> Tensor:
    """From the end of one convolution, past dynamic ReLUs, into the next 1×1 convolution."""
    order = take_shuffle_(_stage(block, f"mobile.{behind}"))
    for name in relus:
        relu = block.hyper[name]
        assert isinstance(relu, FlatDynamicReLU)
        relu.permute_(order.argsort())
    read_shuffled_(_stage(block, f"mobile.{reader}"), 0, order)
    return order


def take_shuffle_(stage: nn.Sequential) -> Tensor:
    """Remove the shuffle of ``stage``; its output k was its input ``order[k]``."""
    index, shuffle = next((i, layer) for i, layer in enumerate(stage) if isinstance(layer, ChannelShuffle))
    neighbour = stage[0] if index > 0 else stage[1]
    assert isinstance(neighbour, nn.Conv2d)
    channels = neighbour.out_channels if index > 0 else neighbour.in_channels
    stage[index] = nn.Identity()
    return torch.arange(channels).view(int(shuffle.groups), -1).t().reshape(-1)


def read_shuffled_(stage: nn.Sequential, index: int, order: Tensor) -> None:
    """Let the 1×1 convolution at ``index`` read the channels as they were before the shuffle."""
    conv = stage[index]
    assert isinstance(conv, nn.Conv2d)
    dense = nn.Conv2d(conv.in_channels, conv.out_channels, 1)
    weight = conv.weight.new_zeros(dense.weight.shape)
    weight[:, order] = torch.block_diag(*conv.weight.flatten(1).chunk(conv.groups))[..., None, None]
    dense.weight, dense.bias = nn.Parameter(weight, requires_grad=False), conv.bias
    stage[index] = dense


def reorder_outputs_(stage: nn.Sequential, order: Tensor) -> None:
    """Output k of the dense or depthwise convolution becomes what output ``order[k]`` was."""
    conv = stage[0]
    assert isinstance(conv, nn.Conv2d)
    conv.weight = nn.Parameter(conv.weight[order], requires_grad=False)
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias[order], requires_grad=False)
