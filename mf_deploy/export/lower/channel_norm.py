"""Layer normalisation over the channels of (N, C, …), as one operation that exporters can recognise."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OPERATION = "mf_deploy::channel_norm"


@torch.library.custom_op(OPERATION, mutates_args=())
def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """γ·(x − mean)/√(variance + ε) + β over axis 1; PyTorch itself normalises the last axes only."""
    last = F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps)
    return last.movedim(-1, 1).contiguous()


@channel_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


class ChannelNorm(nn.Module):
    """``nn.LayerNorm`` for (N, C, 1, S)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = source.eps
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.weight, self.bias, self.eps)
