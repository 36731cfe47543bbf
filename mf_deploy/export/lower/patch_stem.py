"""The first convolution as a matrix product, for integer kernels that gather three channels at a time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.flatten_tokens import FlatMobileFormer
from mf_deploy.export.lower.graph import DeployGraph, Rewrite


class PatchStem(Rewrite):
    """A 3×3 convolution with stride 2 over few channels becomes a 1×1 convolution over 9 shifted copies.

    An integer convolution with channels last copies each position of its window by itself: 4.5 M
    instructions for the 26M's stem, whose products are 0.7 M of them (measured on cortex-a76). Planes are
    copied in whole rows once their even and odd columns are apart.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        model, even = graph.module, graph.record.preprocessing.input_size % 2 == 0
        if not isinstance(model, FlatMobileFormer) or not even:
            return graph
        conv = model.stem[0]
        assert isinstance(conv, nn.Conv2d)
        model.stem[0] = PatchConv(conv)
        return graph.rewritten(self.name, model)


class PatchConv(nn.Conv2d):
    """A 3×3 convolution with stride 2 and padding 1 on patches; (N, C, H, W), H and W even."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__(9 * source.in_channels, source.out_channels, 1)
        assert source.bias is not None
        # Column, row and channel of the window, in this order.
        weight = source.weight.permute(0, 3, 2, 1).flatten(1)[:, :, None, None]
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(source.bias, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        parities = images.view(batch, channels, height, width // 2, 2).permute(0, 4, 1, 2, 3)
        even, odd = 0, 1
        padded = F.pad(parities, (1, 0, 1, 0))  # what lies left of column 0 and above row 0
        shifts = ((odd, slice(0, -1)), (even, slice(1, None)), (odd, slice(1, None)))
        copies = [
            padded[:, parity : parity + 1, :, row : height + row - 1 : 2, columns]
            for parity, columns in shifts
            for row in range(3)
        ]
        patches = torch.cat(copies, dim=1).reshape(batch, -1, height // 2, width // 2)
        return F.conv2d(patches, self.weight, self.bias)
